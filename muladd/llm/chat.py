"""`muladd chat MODEL`: a conversation in the terminal."""
from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from muladd.errors import MuladdError
from muladd.formats.checkpoint import read_json
from muladd.llm.constrain import json_constraint
from muladd.llm.generate import LanguageModel, load
from muladd.llm.options import share
from muladd.llm.sampling import Sampling
from muladd.llm.speculate import GUESSES, drafting
from muladd.options import command, lines, positive

HELP = """\
  /clear      forget the conversation
  /help       this
  /quit       leave (Ctrl-D does too)
  A line that ends in \\ goes on in the next. Ctrl-C stops an answer, not the program."""


class Chat:
    """A conversation: lines from `ask` (which raises EOFError at the end), answers to `out`, and
    what else there is to say too if that is a terminal, else to standard error."""

    def __init__(
        self, model: LanguageModel, out: TextIO, ask: Callable[[str], str],
        system: str | None = None, clock: Callable[[], float] = time.perf_counter,
        **options: Any,
    ) -> None:  # fmt: skip
        self.model, self.out, self.ask, self.clock = model, out, ask, clock
        self.options = options
        self.notes = out if out.isatty() else sys.stderr  # a pipe gets the answers alone
        first = [] if system is None else [{"role": "system", "content": system}]
        self._first = first
        self.messages: list[dict[str, str]] = list(first)
        self.failed = 0  # lines without an answer

    def run(self) -> None:
        """Until /quit or the input's end."""
        print(f"{self.model}\n/help tells what else there is.", file=self.notes)
        while True:
            try:
                text = self._line().strip()
            except EOFError:
                print(file=self.notes)
                return
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /quit leaves)", file=self.notes)
                continue
            if text == "/quit":
                return
            if text == "/clear":
                self.messages = list(self._first)
            elif text.startswith("/"):
                print(HELP, file=self.notes)
            elif any("\ud800" <= c <= "\udfff" for c in text):
                self.failed += 1
                print("muladd: the line has bytes that are no UTF-8; write it again",
                      file=sys.stderr)  # fmt: skip
            elif text:
                self.answer(text)

    def _line(self) -> str:
        lines = [self.ask("> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            with suppress(EOFError):  # what was said until then is said
                lines.append(self.ask(". "))
        return "\n".join(lines)

    def answer(self, text: str) -> str:
        """Say something and write the answer as it comes; what was said stays in the history."""
        self.messages.append({"role": "user", "content": text})
        start = self.clock()
        first = last = start
        count, said, note = 0, [], ""
        try:
            for piece in self.model.chat(self.messages, **self.options):
                last = self.clock()
                first = last if not count else first
                count += 1
                said.append(piece.text)
                self.out.write(piece.text)
                self.out.flush()
                if piece.finish == "length":
                    note = "; it ends where the room for it does"
        except KeyboardInterrupt:
            note = "; stopped"
        except MuladdError as error:
            self.messages.pop()
            self.failed += 1
            print(f"muladd: {error}; /clear forgets the conversation", file=sys.stderr)
            return ""
        answer = "".join(said)
        self.messages.append({"role": "assistant", "content": answer})
        rate = (count - 1) / (last - first) if count > 1 and last > first else 0.0
        told = f"{count} tokens, {rate:.1f} tokens/s, the first after {first - start:.2f} s{note}"
        print(file=self.out)
        print(f"[{told}]", file=self.notes)
        return answer


def main(arguments: Sequence[str]) -> int:
    """The command; gives the exit code: 1 where a line of a file or pipe had no answer."""
    given = _parser().parse_args(arguments)
    names = [name for name, _, _ in _SAMPLING]
    options = {n: v for n in names if (v := getattr(given, n)) is not None}
    Sampling(**options)  # wrong ones fail now
    schema = None if given.schema is None else read_json(Path(given.schema), "chat: --schema")
    model = load(given.model, context=given.context, cache=given.cache, adapter=given.adapter,
                 arithmetic=given.arithmetic)  # fmt: skip
    if given.max_tokens is not None:
        options["max_tokens"] = given.max_tokens
    if given.draft is not None:
        draft = given.draft if given.draft == "ngram" else load(given.draft)
        options["draft"] = drafting(model, draft)
    if schema is not None:
        options["constraint"] = json_constraint(model.tokens(), schema)
    talk = Chat(model, sys.stderr if given.json else sys.stdout, asker(), given.system, **options)
    model.tokens().chat([*talk.messages, {"role": "user", "content": "Hi"}])  # who cannot, says so
    if sys.stdin.isatty():  # the first answer is as fast as others; a pipe's is there sooner
        model.warm(GUESSES if given.draft else 0)
    talk.run()
    if given.json:
        print(json.dumps({"messages": talk.messages}))
    return int(talk.failed > 0 and not sys.stdin.isatty())


_SAMPLING = (
    ("temperature", float, "0 takes the likeliest token, and is the default"),
    ("top_k", int, "only the k likeliest tokens"),
    ("top_p", float, "only the likeliest that together are this likely"),
    ("min_p", float, "only those this likely, compared with the likeliest"),
    ("repetition_penalty", float, "above 1: say less again what was said"),
    ("seed", int, "where its random numbers start"),
)


def _parser() -> argparse.ArgumentParser:
    parser = command(
        "chat", "Talk to a language model in the terminal.",
        "examples:\n  muladd chat model.gguf\n  muladd chat model.gguf --temperature 0.8\n"
        "  echo 'What is gravity?' | muladd chat model.gguf --json\n"
        "  muladd chat model.gguf --schema person.json --draft ngram",
    )  # fmt: skip
    share(parser, "model", "--adapter", "--context", "--arithmetic")
    share(parser, "--cache", help="dtype of keys and values (default: float16 beside products in "
          "int8, else float32)")  # fmt: skip
    parser.add_argument("--system", default=None, help="what the model is told at the beginning")
    parser.add_argument("--max-tokens", type=positive, default=None, help="tokens of an answer")
    parser.add_argument("--draft", default=None, metavar="ngram|MODEL",
                        help="what guesses tokens ahead: the text itself, or a smaller model; "
                        "answers come sooner")  # fmt: skip
    parser.add_argument("--schema", default=None, metavar="FILE",
                        help="answers are JSON that this JSON schema finds valid")  # fmt: skip
    for name, kind, what in _SAMPLING:
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, help=what)
    return parser


def asker() -> Callable[[str], str]:
    """What reads a line: `input` in a terminal, with the arrow keys' history where the system has
    it; otherwise the lines of standard input, without prompts."""
    if not sys.stdin.isatty():
        return partial(_next, lines())
    try:
        import readline  # noqa: F401  (its import is what makes input() remember)
    except ImportError:
        pass
    return input


def _next(given: Iterator[str], _: str) -> str:
    for line in given:
        return line
    raise EOFError
