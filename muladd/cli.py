"""The command line: `muladd COMMAND`.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 and 143 ended by Ctrl-C and SIGTERM.

Each command is a function that takes the parsed arguments and returns an exit code; what it needs
is imported inside it, so that `muladd --help` is quick and a missing extra hurts only who uses it.
"""
from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muladd.config import ConfigError
from muladd.errors import ArgumentError, MuladdError
from muladd.options import new_file, positive, seconds
from muladd.progress import Bar
from muladd.signals import Terminated, terminable

EXAMPLES = """\
start here:
  muladd demo                       train a small network on handwritten digits, in seconds
  muladd ops                        the whole language: one line per operation
  muladd doctor                     what this machine has, and what muladd makes of it

talk to a language model:
  muladd download OWNER/NAME        bring a model of a hub here
  muladd chat model.gguf            in the terminal; Ctrl-C stops an answer
  muladd serve model.gguf           to clients of OpenAI's API, and on a page at localhost:8080
  muladd bench llm model.gguf       tokens per second
  muladd perplexity model.gguf text how well it foresees a text, and what 4 bits lose
  muladd finetune model.gguf data.jsonl --lora 8
                                    train it on your texts; chat --adapter talks to the result
  muladd embed folder --query pets < lines.txt
                                    texts in order of likeness, by a sentence-embedding model

look inside (any program that uses muladd, not only this one):
  DEBUG=2 muladd demo               a line for every kernel: time, GFLOP/s, share of the roofline
  DEBUG=3 python train.py           and the schedules; 4 adds the source, 5 the assembly
  DEVICE=OPENCL muladd demo         the same on another device

make a model faster:
  muladd tune train.py:step         search schedules by measuring, and keep those that are faster

work on muladd:
  muladd fuzz --minutes 5           random programs on every device against the interpreter
  muladd bench                      speed beside PyTorch in the same process

'muladd COMMAND --help' explains a command. Add --json for one machine-readable object on the last
line. Exit codes: 0 done, 1 failed, 2 wrong usage (options, settings, names), 130 and 143 ended by
Ctrl-C and SIGTERM.
"""

# Commands that bring their own arguments: where they are, and what they do, for --help.
OWN: dict[str, tuple[str, str, str]] = {
    "bench": ("muladd.bench", "main", "measure, beside PyTorch where it is installed"),
    "bench llm": ("muladd.llm.bench", "main", ""),
    "bench serve": ("muladd.llm.serve.bench", "main", ""),
    "bench embeddings": ("muladd.bench.embeddings", "main", ""),
    "chat": ("muladd.llm.chat", "main", "talk to a language model in the terminal"),
    "download": ("muladd.llm.hub", "main", "bring a model of a hub to this machine"),
    "embed": ("muladd.llm.embed", "main", "vectors of texts, which say how alike they are"),
    "finetune": ("muladd.llm.finetune_command", "main", "train a language model on your texts"),
    "merge": ("muladd.llm.finetune_command", "merge", "write a model with an adapter in it"),
    "perplexity": ("muladd.llm.perplexity", "main", "how well a language model foresees a text"),
    "serve": ("muladd.llm.serve.command", "main", "serve a language model over OpenAI's API"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the entry point of the installed program."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for words in (2, 1):
        name = " ".join(given[:words])
        if name in OWN:
            return _guarded(_own, argparse.Namespace(name=name, rest=given[words:]))
    parsed = _parser().parse_args(given)
    return _guarded(parsed.run, parsed)


def _guarded(command, parsed: argparse.Namespace) -> int:  # type: ignore[no-untyped-def]
    """A mistake in use is one line for people; anything else is a bug and shows itself."""
    try:
        with terminable():
            return command(parsed)
    except MuladdError as error:
        print(f"muladd: {type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError | ConfigError) else 1
    except KeyboardInterrupt:
        print("muladd: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Terminated:
        print("muladd: ended by SIGTERM", file=sys.stderr)
        return 128 + signal.SIGTERM
    except BrokenPipeError:  # `muladd ops | head`
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk, a folder that cannot be made
        print(f"muladd: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="muladd", description="Machine-learning jobs as values: train, look inside, measure.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = _add(commands, "demo", _demo, "train a network on handwritten digits",
                "muladd demo\n  muladd demo --epochs 3 --output digits.safetensors")  # fmt: skip
    demo.add_argument("--output", type=new_file, default="muladd-demo.safetensors",
                      help="where the weights are saved (default: %(default)s)")  # fmt: skip
    demo.add_argument("--epochs", type=positive, default=None, help="passes over the digits")
    demo.add_argument("--seed", type=int, default=0, help="where its random numbers start")

    for name, (_, _, summary) in OWN.items():
        if summary:  # `main` has taken these away before
            commands.add_parser(name, help=summary)

    _add(commands, "ops", _ops, "print the table of operations",
         "muladd ops\n  muladd ops --json")  # fmt: skip

    fuzz = _add(commands, "fuzz", _fuzz, "compare random programs on every device",
                "muladd fuzz --minutes 5\n  muladd fuzz --seed 7 --devices CPU OPENCL")  # fmt: skip
    fuzz.add_argument("--minutes", type=float, default=1.0, help="how long (default: %(default)s)")
    fuzz.add_argument("--seed", type=int, default=None,
                      help="which programs (default: others in every run; printed)")  # fmt: skip
    fuzz.add_argument("--program", type=int, default=None, help="only this program of the seed")
    fuzz.add_argument("--devices", nargs="+", default=None,
                      help="devices to compare (default: all there are)")  # fmt: skip
    fuzz.add_argument("--profiles", nargs="+", default=("fast", "exact"),
                      choices=("fast", "exact"), help="profiles of arithmetic")  # fmt: skip

    tune = _add(commands, "tune", _tune, "search faster schedules for a model's kernels",
                "muladd tune train.py:step --seconds 300\n  muladd tune demo --beam 8\n"
                "  muladd tune gpt --export gpt.schedules\n"
                "  muladd tune --import gpt.schedules")  # fmt: skip
    tune.add_argument("model", nargs="?", default="",
                      help="MODULE:FUNCTION or FILE.py:FUNCTION (called without arguments), demo, "
                      "or the name of a benchmark")  # fmt: skip
    tune.add_argument("--seconds", type=seconds, default=60.0,
                      help="how long it searches at most (default: %(default)s)")  # fmt: skip
    tune.add_argument("--beam", type=positive, default=4,
                      help="plans that are followed at a time (default: %(default)s)")  # fmt: skip
    tune.add_argument("--import", dest="taken", type=Path, metavar="FILE",
                      help="first try the schedules of a file")  # fmt: skip
    tune.add_argument("--export", type=new_file, metavar="FILE",
                      help="at the end write all schedules that are kept here")  # fmt: skip

    doctor = _add(commands, "doctor", _doctor, "show the machine, the settings and the devices",
                  "muladd doctor\n  muladd doctor --size")  # fmt: skip
    doctor.add_argument("--size", action="store_true", help="lines of code per floor and room")

    _add(commands, "version", _version, "print the version", "muladd version")
    return parser


def _add(commands, name, run, summary, examples):  # type: ignore[no-untyped-def]
    command = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n  {examples}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="one JSON object on the last line")
    return command


def version() -> str:
    """The installed version, or a note that this is a source tree."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return f"muladd {installed('muladd')}"
    except PackageNotFoundError:
        return "muladd (source tree, not installed)"


# --- the commands ------------------------------------------------------------------------------


def _demo(given: argparse.Namespace) -> int:
    from muladd import demo

    result = demo.run(given.output, epochs=given.epochs, seed=given.seed, quiet=given.json)
    if given.json:
        print(json.dumps(result))
    return 0 if result["passed"] else 1


def _ops(given: argparse.Namespace) -> int:
    from muladd.ir import ops

    columns = ("name", "group", "meaning", "shape_rule", "dtype_rule", "gradient", "flops")
    rows = [{column: getattr(op, column) for column in columns} for op in ops.OPS]
    if given.json:
        print(json.dumps(rows))
        return 0
    widths = (8, 40, 20, 17, 25, 5)
    _print_wrapped(("op", "meaning", "shape", "dtype", "gradient", "FLOPs"), widths)
    group = None
    for row in rows:
        if row["group"] != group:
            group = row["group"]
            print(f"-- {group} ".ljust(sum(widths) + 10, "-"))
        _print_wrapped([str(row[c]) for c in columns if c != "group"], widths)
    print(f"\n{len(rows)} operations; FLOPs are per element (of a reduction: per source element)")
    return 0


def _print_wrapped(cells: Sequence[str], widths: Sequence[int]) -> None:
    """One row of a table whose cells continue below."""
    from itertools import zip_longest
    from textwrap import wrap

    columns = [wrap(cell, width) or [""] for cell, width in zip(cells, widths)]
    for line in zip_longest(*columns, fillvalue=""):
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())


def _fuzz(given: argparse.Namespace) -> int:
    import random
    from itertools import count

    from muladd.compile import fuzzing

    seed = random.SystemRandom().randrange(1 << 31) if given.seed is None else given.seed
    devices = [name.upper() for name in given.devices or fuzzing.available()]
    out = sys.stderr if given.json else sys.stdout
    print(f"seed {seed}, {given.minutes:g} minutes, {' '.join(devices)}", file=out, flush=True)
    bar, begun, programs = Bar(out), time.monotonic(), count(1)
    limit = given.minutes * 60

    def told(device: str, profile: str, report: Any) -> None:
        bar(min(time.monotonic() - begun, limit), limit, f"{next(programs)} programs, now {device} "
            f"{profile}, {len(report.failures)} failures")  # fmt: skip

    one = {} if given.program is None else {"first": given.program, "most_graphs": 1}
    found = fuzzing.run(given.minutes, seed, devices, told, given.profiles, **one)
    bar(limit, limit, f"{found.graphs} programs")
    print(found, file=out)
    for command in found.again():
        print(f"again: {command}", file=out)
    if given.json:
        print(json.dumps({"seed": seed, "programs": found.graphs, "failures": found.failures,
                          "again": found.again()}))  # fmt: skip
    return 1 if found.failures else 0


def _own(given: argparse.Namespace) -> int:
    from importlib import import_module

    module, function, _ = OWN[given.name]
    return getattr(import_module(module), function)(given.rest)


def _tune(given: argparse.Namespace) -> int:
    from muladd import config, device, tune
    from muladd.compile import tuned

    if not (given.model or given.taken or given.export):
        raise ArgumentError("tune: nothing to do; name a model, or --import or --export a file")
    if config.get("NOCACHE"):
        raise ArgumentError("tune: with NOCACHE=1 what is found would be lost; unset it")
    display = tune.Display(sys.stderr if given.json else sys.stdout)
    told: dict[str, Any] = {}
    if given.taken:
        taken, left = tune.adopt(given.taken, device.get(config.get("DEVICE")), given.seconds,
                                 display)  # fmt: skip
        told["imported"] = {"taken": taken, "left": left}
        display.say(f"{taken} schedules of {given.taken} are faster here and were taken, {left} "
                    "were not")  # fmt: skip
    if given.model:
        lines = tune.tune(tune.load(given.model), given.seconds, given.beam, display)
        told["kernels"] = [vars(line) for line in lines]
        told["ratio"] = tune.overall(lines)
        if any(line.state in ("found", "known") for line in lines):
            display.say(f"the model's kernels take {told['ratio']:.0%} of the heuristic's time")
        else:
            display.say("nothing faster than the heuristic's schedules was found")
    if given.export:
        told["exported"] = tuned.export_to(given.export)
        display.say(f"{told['exported']} schedules were written to {given.export}")
    if given.json:
        print(json.dumps(told))
    return 0


def _doctor(given: argparse.Namespace) -> int:
    from muladd import doctor

    report = doctor.examine(size=given.size)
    print(json.dumps(report) if given.json else doctor.as_text(report))
    return 0 if report["healthy"] else 1


def _version(given: argparse.Namespace) -> int:
    print(json.dumps({"version": version()}) if given.json else version())
    return 0


if __name__ == "__main__":
    sys.exit(main())
