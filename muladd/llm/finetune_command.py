"""`muladd finetune MODEL DATA.jsonl` and `muladd merge MODEL ADAPTER OUTPUT`."""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from muladd.errors import ArgumentError
from muladd.llm import merge as merging
from muladd.llm.adapters import LoRA
from muladd.llm.dataset import LONG
from muladd.llm.finetune import STATE, Progress, Report, Settings, run
from muladd.llm.options import share
from muladd.options import command, positive
from muladd.progress import Bar

DATA = """\
DATA.jsonl has an object a line, of one of these kinds:
  {"text": "..."}                            all of it is learnt
  {"prompt": "...", "completion": "..."}     the completion is learnt
  {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
                                             the assistant's answers are learnt, by the model's
                                             chat template

examples:
  muladd finetune model.gguf data.jsonl --lora 8 --output adapter
  muladd chat model.gguf --adapter adapter
  muladd finetune model.gguf data.jsonl --full --output trained --kind Q8_0
  muladd finetune model.gguf data.jsonl --lora 16 --targets q_proj v_proj --epochs 3
  muladd finetune model.gguf data.jsonl --lora 8 --output adapter --resume
"""


def _shown(bar: Bar) -> Report:
    def show(now: Progress) -> None:
        told = "" if now.validation is None else f"  validation {now.validation:.3f}"
        bar(now.step, now.steps, f"step {now.step}/{now.steps}  loss {now.loss:.3f}{told}  "
            f"{now.rate:,.0f} tokens/s")  # fmt: skip

    return show


def main(arguments: Sequence[str]) -> int:
    """`muladd finetune`; gives the exit code."""
    given = _parser().parse_args(arguments)
    lora = None
    if given.full and given.alpha is not None:
        raise ArgumentError("finetune: --full trains all weights, and --alpha is of --lora; give "
                            "one of them")  # fmt: skip
    if not given.full:
        lora = LoRA(given.lora, given.alpha, given.dropout, tuple(given.targets))
    names = (*(name for name, _, _ in _OPTIONS), "long", "kind")
    settings = Settings(lora=lora, pack=not given.no_pack, recompute=not given.no_recompute,
                        **{name: getattr(given, name) for name in names})  # fmt: skip
    output = given.output or ("trained" if given.full else "adapter")
    out = sys.stderr if given.json else sys.stdout
    bar = Bar(out)
    bar(0, 1, "the first step compiles")
    try:
        found = run(given.model, given.data, output, settings, resume=given.resume,
                    overwrite=given.overwrite, report=_shown(bar))  # fmt: skip
    except (KeyboardInterrupt, SystemExit):
        if (Path(output) / STATE).exists():
            print(f"\nwhat was learnt is kept in {output}; --resume goes on from there, and writes "
                  "the result", file=out)  # fmt: skip
        raise
    before, after = found["validation_before"], found["validation_after"]
    checked = "" if before is None else f"; validation loss {before:.3f} before, {after:.3f} after"
    print(f"{found['trained']:,} weights trained on {found['learnt_tokens']:,} tokens in "
          f"{found['seconds']:.1f} s{checked}\nwritten to {found['output']}", file=out)  # fmt: skip
    if not given.full:
        print(f"talk to it:  muladd chat {given.model} --adapter {found['output']}\n"
              f"one file:    muladd merge {given.model} {found['output']} merged.gguf",
              file=out)  # fmt: skip
    if given.json:
        print(json.dumps(found))
    return 0


def merge(arguments: Sequence[str]) -> int:
    """`muladd merge`; gives the exit code."""
    given = _merge_parser().parse_args(arguments)
    out = sys.stderr if given.json else sys.stdout
    print(f"merging {given.adapter} into {given.model}", file=out, flush=True)
    written = merging.merge(given.model, given.adapter, given.output, given.kind, given.overwrite)
    print(f"written to {written}", file=out)
    if given.json:
        print(json.dumps({"output": str(written)}))
    return 0


def _parser() -> argparse.ArgumentParser:
    usual = Settings()
    parser = command("finetune", "Train a language model on texts of yours.", DATA)
    share(parser, "model")
    parser.add_argument("data", help="texts: a file of JSON lines")
    parser.add_argument("--output", default=None,
                        help="the folder to write to (default: adapter, with --full trained)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--lora", type=positive, default=8, metavar="RANK",
                       help="train adapters of this rank (default: %(default)s)")
    which.add_argument("--full", action="store_true", help="train all weights")
    parser.add_argument("--alpha", type=float, default=None,
                        help="adapters count alpha / rank (default: alpha is twice the rank)")
    parser.add_argument("--dropout", type=float, default=0.0, help="of the adapters' input")
    parser.add_argument("--targets", nargs="+", default=(), metavar="NAME",
                        help="projections with adapters, such as q_proj (default: all)")
    for name, kind, what in _OPTIONS:
        value = getattr(usual, name)
        told = f" (default: {value})" if value is not None else ""
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value,
                            help=what + told)  # fmt: skip
    parser.add_argument("--long", default="error", choices=LONG,
                        help="of conversations longer than a row (default: %(default)s)")
    parser.add_argument("--no-pack", action="store_true", help="one text a row, even short ones")
    parser.add_argument("--no-recompute", action="store_true",
                        help="keep what layers compute: a quarter faster, with more memory")
    parser.add_argument("--kind", default=None, choices=merging.WRITABLE,
                        help="with --full: what a GGUF file's matrices are quantised to")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true",
                       help="go on where an interrupted training of the same settings was saved")
    again.add_argument("--overwrite", action="store_true",
                       help="begin anew, even if the output is there already")
    return parser


_OPTIONS = (
    ("length", positive, "tokens of a row"),
    ("batch", positive, "rows at a time"),
    ("accumulate", positive, "so many batches make a step"),
    ("epochs", positive, "passes over the data"),
    ("steps", positive, "steps, in place of passes"),
    ("rate", float, "the greatest learning rate (default: 2e-4, with --full 2e-5)"),
    ("warmup", float, "the part of all steps in which the rate rises"),
    ("decay", float, "of weights, per step and rate"),
    ("clip", float, "the greatest norm of a gradient; 0 does not clip"),
    ("validation", float, "the part of the examples that is measured, not trained on"),
    ("seed", int, "where its random numbers start"),
    ("save_every", positive, "steps after which everything is saved, to resume"),
)


def _merge_parser() -> argparse.ArgumentParser:
    parser = command(
        "merge", "Write a model with an adapter merged into its weights.",
        "examples:\n  muladd merge model.gguf adapter merged.gguf\n"
        "  muladd merge model.gguf adapter merged.gguf --kind Q8_0\n"
        "  muladd merge folder adapter merged",
    )  # fmt: skip
    share(parser, "model")
    parser.add_argument("adapter", help="the adapter's folder")
    parser.add_argument("output", help="the file (or, for a folder, the folder) to write")
    parser.add_argument("--kind", default=None, choices=merging.WRITABLE,
                        help="quantise all matrices of a GGUF file to this (default: each keeps "
                        "its own, those that change at least Q8_0: less loses most of an adapter)")
    parser.add_argument("--overwrite", action="store_true",
                        help="write even if the output is there already")
    return parser
