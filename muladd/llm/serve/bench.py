"""`muladd bench serve MODEL`: how much a server says to one client, and to many at a time.

The server is a process of its own, as users run it; clients are threads here, each with a prompt
that nobody else has, and begin together. One and many take turns.
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from muladd.errors import MuladdError
from muladd.llm.options import share
from muladd.llm.serve.load import call
from muladd.options import command, positive

_WORD = "the sea was calm and the light of the old town lay on the water "


def main(arguments: Sequence[str]) -> int:
    """Measure and print; gives the exit code."""
    given = _parser().parse_args(arguments)
    with server(given.model, given.clients, given.threads) as (address, name):
        pace(address, name, given.clients, given.prompt, 4)  # what is compiled late is there then
        rates: dict[int, list[float]] = {1: [], given.clients: []}
        for _ in range(given.repeat):
            for clients, found in rates.items():
                found.append(pace(address, name, clients, given.prompt, given.decode))
    one, many = (statistics.median(rates[n]) for n in (1, given.clients))
    print(f"1 client    {one:.1f} tokens/s\n{given.clients} clients  {many:.1f} tokens/s: "
          f"{many / one:.2f} times", file=sys.stderr if given.json else sys.stdout)  # fmt: skip
    if given.json:
        print(json.dumps({"file": given.model, "threads": given.threads, "clients": given.clients,
                          "one_tok_s": one, "many_tok_s": many}))  # fmt: skip
    return 0


@contextmanager
def server(model: str, slots: int, threads: int | None) -> Iterator[tuple[str, str]]:
    """A server of its own for a while: gives its address, host:port, and its model's name."""
    asked = [sys.executable, "-m", "muladd", "serve", model, "--port", "0", "--json",
             "--slots", str(slots)]  # fmt: skip
    asked += ["--threads", str(threads)] if threads else []
    process = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            last = process.communicate()[1].strip().rpartition("\n")[2]
            raise MuladdError(f"bench serve: the server did not begin: {last}")
        said = json.loads(line)
        yield said["url"].removeprefix("http://"), said["model"]
    finally:
        process.terminate()
        process.communicate()


def pace(address: str, model: str, clients: int, prompt: int, decode: int) -> float:
    """Tokens of all answers together, by the seconds from the first question to the last answer."""
    texts = [f"{time.time_ns()} {i} {_WORD * prompt}"[: 4 * prompt] for i in range(clients)]
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        counts = list(pool.map(lambda text: _answer(address, model, text, decode), texts))
    return sum(counts) / (time.perf_counter() - start)


def _answer(address: str, model: str, text: str, decode: int) -> int:
    """Ask for a text to be continued; gives how many tokens came."""
    status, said = call(address, "POST", "/v1/completions", {
        "model": model, "prompt": text, "max_tokens": decode, "temperature": 0.8, "seed": 0,
    })  # fmt: skip
    if status != 200:
        raise MuladdError(f"bench serve: the server answered {status}: {said}")
    return int(said["usage"]["completion_tokens"])


def _parser() -> argparse.ArgumentParser:
    parser = command(
        "bench serve", "Tokens per second of a server, to one client and to many at a time.",
        "examples:\n  muladd bench serve model.gguf --clients 16 --threads 2",
    )  # fmt: skip
    share(parser, "model", "--threads")
    for name, value, what in (("clients", 16, "how many ask at a time"),
                              ("prompt", 32, "tokens of a question, about"),
                              ("decode", 96, "most tokens of an answer"),
                              ("repeat", 3, "turns, of which the median counts")):  # fmt: skip
        parser.add_argument(f"--{name}", type=positive, default=value,
                            help=f"{what} (default: %(default)s)")  # fmt: skip
    return parser
