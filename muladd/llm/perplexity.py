"""`muladd perplexity MODEL TEXT`: how well a model foresees a text, and what rounding costs."""
from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from muladd import config
from muladd.errors import ArgumentError, FormatError
from muladd.formats import gguf
from muladd.formats.quant import KINDS
from muladd.llm.checks import check_number
from muladd.llm.generate import LanguageModel, load
from muladd.llm.model import Decoder
from muladd.llm.opening import Opened, opened
from muladd.llm.options import share
from muladd.llm.tokenizer import Tokenizer
from muladd.llm.weights import Stored, numbers
from muladd.options import command, number, positive
from muladd.progress import Bar

WINDOW = 512  # tokens that are seen at a time, where a model has as many
FILE = "file"
KINDS_HERE = (FILE, "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_K", "Q4_1", "Q4_0")
_INSTEAD = {"Q4_K": "Q4_1", "Q6_K": "Q8_0"}  # where rows are no whole number of blocks

Row = dict[str, float | str]
Report = Callable[[int, int, float], None]  # tokens done, in all, perplexity so far


@dataclass(frozen=True)
class Measured:
    """`log_likelihoods` are natural logarithms of probabilities, of each token foreseen."""

    log_likelihoods: np.ndarray

    @property
    def tokens(self) -> int:
        """How many."""
        return len(self.log_likelihoods)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability: among so many equally likely tokens the model
        chose on average."""
        return math.exp(-float(self.log_likelihoods.mean()))

    @property
    def error(self) -> float:
        """The standard error of the perplexity."""
        spread = float(self.log_likelihoods.std()) / math.sqrt(max(1, self.tokens - 1))
        return self.perplexity * spread


def measure(
    model: LanguageModel, ids: Sequence[int], *, context: int | None = None,
    stride: int | None = None, first: int | None = None, report: Report | None = None,
) -> Measured:  # fmt: skip
    """The log-probability of each token of a text after those before it.

    At most `context` tokens are seen at a time (default: 512). A window begins `stride` tokens
    after the one before (default: half a context), and adds the tokens that those before it had not
    seen; so a token is foreseen from at least context - stride others, but at the beginning.
    `first` is the token that each window begins with (BOS). Raises ArgumentError for sizes that do
    not fit, and for a text of less than two tokens.
    """
    prefix = [] if first is None else [first]
    context = min(model.context, WINDOW) if context is None else context
    check_number("perplexity", "context", context, 2 + len(prefix), model.context)
    room = context - len(prefix)
    stride = max(1, context // 2) if stride is None else stride
    check_number("perplexity", "stride", stride, 1, context - 1)
    if len(ids) < 2:
        raise ArgumentError(f"perplexity: the text has {len(ids)} tokens; expected two or more")
    found: list[np.ndarray] = []
    total = 0.0
    seen = 1 - len(prefix)  # the first of all tokens is foreseen only after BOS
    for start in range(0, len(ids), stride):
        window = list(ids[start : start + room])
        known = model.log_likelihoods([*prefix, *window])  # of window[1 - len(prefix)] and on
        new = known[seen - start - (1 - len(prefix)) :]
        found.append(new)
        seen = start + len(window)
        total += float(new.sum())
        if report is not None:
            report(seen, len(ids), math.exp(-total / max(1, sum(map(len, found)))))
        if seen == len(ids):
            break
    return Measured(np.concatenate(found))


def requantized(
    tensors: Mapping[str, Stored], kind: str, embedding: str | None = None
) -> dict[str, Stored]:
    """Weights whose matrices are written as one kind (those of embedding and output as another, if
    it is given), and read again. Where a row is no whole number of blocks Q4_K becomes Q4_1, Q6_K
    Q8_0, and these F16. Of kind "file" they stay as they are."""
    found: dict[str, Stored] = {}
    if kind == FILE:
        return dict(tensors)
    for name, stored in tensors.items():
        if len(stored.shape) < 2:
            found[name] = stored
            continue
        ends = name in ("token_embd.weight", "output.weight")
        chosen = embedding if embedding is not None and ends else kind
        while stored.shape[-1] % KINDS[chosen].elements:
            chosen = _INSTEAD.get(chosen, "F16")
        found[name] = gguf.quantized(numbers(stored), chosen)
    return found


def bits(tensors: Mapping[str, Stored]) -> float:
    """Bits per weight of all matrices."""
    matrices = [t for t in tensors.values() if len(t.shape) > 1]
    return 8 * sum(t.nbytes for t in matrices) / sum(math.prod(t.shape) for t in matrices)


def compare(
    source: Opened, ids: Sequence[int], kinds: Sequence[str], *, room: int, cache: str = "float32",
    embedding: str | None = None, arithmetic: str = "float32",
    report: Callable[[str], Report] | None = None, **how: int | None,
) -> Iterator[Row]:  # fmt: skip
    """A row for each kind that the model's matrices are rounded to (see `requantized`): bits per
    weight, perplexity, and the difference of log-perplexities to the first kind with its standard
    error (token by token, so it is known far better than the perplexities)."""
    base: Measured | None = None
    for kind in kinds:
        plain = kind in KINDS_HERE[: KINDS_HERE.index("Q8_0")]
        tensors = requantized(source.tensors, kind, None if plain else embedding)
        model = LanguageModel(Decoder(source.config, tensors, room, arithmetic), source.tokenizer,
                              cache)  # fmt: skip
        one = None if report is None else report(kind)
        now = measure(model, ids, first=_first(model), report=one, **how)
        base = now if base is None else base
        less = base.log_likelihoods - now.log_likelihoods
        yield {"kind": kind, "bits": bits(tensors), "perplexity": now.perplexity,
               "error": now.error, "difference": float(less.mean()),
               "difference_error": float(less.std()) / math.sqrt(len(less)),
               "tokens": len(less)}  # fmt: skip


def _first(model: LanguageModel) -> int | None:
    """BOS, if the model wants texts to begin with it."""
    tokens = model.tokenizer
    return tokens.bos if tokens is not None and tokens.encode("a")[0] == tokens.bos else None


# --- the command ---------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """The command; gives the exit code."""
    given = _parser().parse_args(arguments)
    if given.embedding and not given.kinds:
        raise ArgumentError("perplexity: --embedding is one of --kinds' matrices; give these, too")
    out = sys.stderr if given.json else sys.stdout
    text = _text(given.text)
    with config.threads(given.threads):
        rows = _compared(given, text, out) if given.kinds else [_one(given, text, out)]
    if given.json:
        print(json.dumps({"model": given.model, "text": given.text, "rows": rows}
                         if given.kinds else {"model": given.model, "text": given.text, **rows[0]}))
    return 0


def _one(given: argparse.Namespace, text: str, out: TextIO) -> Row:
    model = load(given.model, context=given.context, cache=given.cache,
                 arithmetic=given.arithmetic)  # fmt: skip
    ids = _ids(model.tokenizer, text, given)
    bar = Bar(sys.stderr)

    def report(done: int, total: int, so_far: float) -> None:
        bar(done, total, f"{done}/{total} tokens, perplexity {so_far:.3f}")

    found = measure(model, ids, context=given.context, stride=given.stride, first=_first(model),
                    report=report)  # fmt: skip
    print(f"perplexity {found.perplexity:.4f} ± {found.error:.4f}  ({found.tokens} tokens)",
          file=out)  # fmt: skip
    return {"perplexity": found.perplexity, "error": found.error, "tokens": found.tokens}


def _compared(given: argparse.Namespace, text: str, out: TextIO) -> list[Row]:
    source = opened(given.model)
    ids = _ids(source.tokenizer, text, given)
    bar = Bar(sys.stderr)

    def report(kind: str) -> Report:
        return lambda done, total, so_far: bar(
            done, total, f"{kind}: {done}/{total} tokens, perplexity {so_far:.3f}")  # fmt: skip

    room = given.context or min(source.config.context, WINDOW)
    rows = []
    print("kind      bits/weight  perplexity          ln(ratio to the first)", file=out)
    how = {"room": room, "cache": given.cache, "embedding": given.embedding,
           "arithmetic": given.arithmetic, "report": report, "context": given.context,
           "stride": given.stride}  # fmt: skip
    for row in compare(source, ids, given.kinds, **how):
        rows.append(row)
        print(f"{row['kind']:9} {row['bits']:11.2f}  {row['perplexity']:8.4f} ± {row['error']:.4f}"
              f"  {row['difference']:+.5f} ± {row['difference_error']:.5f}",
              file=out, flush=True)  # fmt: skip
    return rows


def _text(path: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return raw.decode("utf-8")
    except OSError as error:
        raise FormatError(f"perplexity: {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"perplexity: {path}: byte {error.start} is no UTF-8; convert the text "
                          "first") from None  # fmt: skip


def _ids(tokenizer: Tokenizer | None, text: str, given: argparse.Namespace) -> list[int]:
    if tokenizer is None:
        raise ArgumentError(f"perplexity: {given.model} has no tokenizer; use a GGUF file, or put "
                            "tokenizer.json beside the weights")  # fmt: skip
    ids = tokenizer.encode(text, marks=False, ends=False)
    return ids[: given.tokens] if given.tokens else ids


def _parser() -> argparse.ArgumentParser:
    parser = command(
        "perplexity",
        "How well a language model foresees a text: exp of the mean negative "
        "log-probability of its tokens. Less is better. With --kinds: what is lost when its "
        "weights are rounded.",
        "examples:\n  muladd perplexity model.gguf book.txt\n"
        "  muladd perplexity model.gguf book.txt --context 1024 --stride 256 --json\n"
        "  muladd perplexity model.gguf book.txt --kinds F16 Q8_0 Q4_K Q4_0",
    )  # fmt: skip
    share(parser, "model")
    parser.add_argument("text", help="a file of UTF-8, or - for standard input")
    share(parser, "--context", help="tokens seen at a time (default: 512)",
          type=number(int, lambda n: n > 2, "3 tokens or more"))  # fmt: skip
    parser.add_argument("--stride", type=positive, default=None,
                        help="tokens from window to window (default: half a context)")  # fmt: skip
    parser.add_argument("--tokens", type=positive, default=None,
                        help="only so many, from the beginning")  # fmt: skip
    parser.add_argument("--kinds", nargs="+", choices=KINDS_HERE, default=None, metavar="KIND",
                        help="compare these, the first being what the others are compared with: "
                        + ", ".join(KINDS_HERE))  # fmt: skip
    parser.add_argument("--embedding", choices=KINDS_HERE[1:], default=None, metavar="KIND",
                        help="the kind of embedding and output of quantised rows")  # fmt: skip
    share(parser, "--cache", "--arithmetic", default="float32")
    share(parser, "--threads")
    return parser
