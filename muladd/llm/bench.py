"""`muladd bench llm FILE`: how fast a model reads a prompt and says an answer."""
from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

import numpy as np

from muladd import config
from muladd.errors import ArgumentError
from muladd.llm.generate import LanguageModel, load
from muladd.llm.opening import opened
from muladd.llm.options import share
from muladd.llm.weights import matrix
from muladd.options import command, positive


def main(arguments: Sequence[str]) -> int:
    """Measure and print; gives the exit code."""
    given = _parser().parse_args(arguments)
    with config.threads(given.threads):
        start = time.perf_counter()
        model = load(given.model, context=given.context, arithmetic=given.arithmetic)
        loaded = time.perf_counter() - start
        found = {"file": given.model, "prompt": given.prompt, "decode": given.decode,
                 "threads": given.threads, "load_s": loaded,
                 **measure(model, given.prompt, given.decode, given.repeat)}  # fmt: skip
        del model
        found["laid_gb_s"] = laying(given.model, given.repeat)
    out = sys.stderr if given.json else sys.stdout
    print(f"loaded in {loaded:.2f} s, first token of a new process after "
          f"{loaded + found['first_prompt_s']:.2f} s\n"
          f"weights are laid at {found['laid_gb_s']:.2f} GB/s\n"
          f"prompt  {given.prompt} tokens  {found['prompt_tok_s']:.1f} tokens/s\n"
          f"decode  {given.decode} tokens  {found['decode_tok_s']:.1f} tokens/s",
          file=out)  # fmt: skip
    if given.json:
        print(json.dumps(found))
    return 0


def measure(model: LanguageModel, prompt: int, decode: int, repeat: int = 3) -> dict[str, float]:
    """Tokens per second of reading `prompt` tokens and of saying `decode` more, greedily: the best
    of `repeat` runs after one that compiles. `first_prompt_s` is what that one took to read."""
    if prompt + decode > model.context:
        raise ArgumentError(f"bench: {prompt} + {decode} tokens are more than the context of "
                            f"{model.context}; give --context")  # fmt: skip
    ids = np.random.default_rng(0).integers(0, model.decoder.embedding.shape[0], prompt).tolist()
    reading, saying, first = [], [], 0.0
    for i in range(repeat + 1):
        model.forget()
        start = time.perf_counter()
        logits = model.next_logits(ids)
        read = time.perf_counter()
        text = [*ids]
        for _ in range(decode):
            text.append(int(logits.argmax()))
            logits = model.after(text)
        said = time.perf_counter()
        if i == 0:
            first = read - start
            continue
        reading.append(prompt / (read - start))
        saying.append(decode / (said - read))
    return {"prompt_tok_s": max(reading), "decode_tok_s": max(saying), "first_prompt_s": first}


def laying(path: str, repeat: int = 3) -> float:
    """GB of the file a second at which its matrices are brought into the order of products, or read
    where they are plain numbers: the best of `repeat` runs after one that compiles."""
    taken = []
    for _ in range(repeat + 1):
        stored = [t for t in opened(path).tensors.values() if len(t.shape) > 1]
        start = time.perf_counter()
        laid = [matrix(t) for t in stored]
        taken.append(time.perf_counter() - start)
        del laid
    return sum(t.nbytes for t in stored) / min(taken[1:]) / 1e9


def _parser() -> argparse.ArgumentParser:
    parser = command(
        "bench llm", "Tokens per second of a language model.",
        "examples:\n  muladd bench llm model.gguf --prompt 256 --decode 96 --threads 2",
    )  # fmt: skip
    share(parser, "model", "--context", "--arithmetic", "--threads")
    for name, value, what in (("prompt", 256, "tokens of the prompt"),
                              ("decode", 96, "tokens of the answer"),
                              ("repeat", 3, "runs, of which the best counts")):  # fmt: skip
        parser.add_argument(f"--{name}", type=positive, default=value,
                            help=f"{what} (default: %(default)s)")  # fmt: skip
    return parser
