"""A load test of a server: many clients of many kinds, some of whom go in the middle.

    python -m muladd.llm.serve.load http://127.0.0.1:8080 --seconds 600 --clients 16

Well-formed requests must be answered, malformed ones refused, whoever leaves must be forgotten, and
the server's memory must not grow. The exit code says whether that was so.
"""
from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from muladd.options import positive, seconds

_WORDS = "the a one sea light king river said went old small and of to in with under".split()


class Load:
    """Clients against the server at an address (host:port), each a thread until `stop` is set."""

    def __init__(self, address: str, seed: int = 0, longest: int = 300) -> None:
        self.address, self.seed, self.longest = address, seed, longest
        self.stop = threading.Event()
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.model = self._call("GET", "/v1/models")[1]["data"][0]["id"]

    def run(self, clients: int, duration: float) -> None:
        """All clients, for so many seconds; then those on their way finish."""
        threads = [threading.Thread(target=self._client, args=(i,)) for i in range(clients)]
        for thread in threads:
            thread.start()
        self.stop.wait(duration)
        self.stop.set()
        for thread in threads:
            thread.join()

    def _client(self, number: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        kinds: list[Callable[[random.Random], None]] = [
            self._whole, self._whole, self._stream, self._stream, self._stream, self._leaves,
            self._leaves, self._embeds, self._is_wrong,
        ]  # fmt: skip
        while not self.stop.is_set():
            kind = chance.choice(kinds)
            try:
                kind(chance)
                self.counts[kind.__name__.strip("_")] += 1
            except Exception as error:
                self.failures.append(f"{kind.__name__.strip('_')}: {error!r}"[:300])
                time.sleep(0.1)

    # --- kinds of clients ---------------------------------------------------------------------

    def _whole(self, chance: random.Random) -> None:
        status, said = self._call("POST", "/v1/chat/completions", self._chat(chance))
        assert status == 200 and said["usage"]["completion_tokens"] > 0, (status, said)

    def _stream(self, chance: random.Random) -> None:
        parts = self._parts({**self._chat(chance), "stream": True})
        assert parts[-1] == "[DONE]", parts[-1]
        assert json.loads(parts[-2])["choices"][0]["finish_reason"], parts[-2]

    def _leaves(self, chance: random.Random) -> None:
        body = {**self._chat(chance), "stream": chance.random() < 0.7, "max_tokens": 200}
        talk = http.client.HTTPConnection(self.address, timeout=300)
        talk.request("POST", "/v1/chat/completions", json.dumps(body))
        time.sleep(chance.random() ** 2)
        talk.close()

    def _embeds(self, chance: random.Random) -> None:
        texts = [self._text(chance, 40) for _ in range(chance.randint(1, 3))]
        status, said = self._call("POST", "/v1/embeddings", {"model": self.model, "input": texts})
        assert status == 200 and len(said["data"]) == len(texts), (status, said)

    def _is_wrong(self, chance: random.Random) -> None:
        long = [{"role": "user", "content": "x y " * 200_000}]
        changes: list[dict[str, Any]] = [{"messages": []}, {"messages": long}, {"n": 0},
                                         {"stop": [1]}, {"model": "none"}]  # fmt: skip
        body = chance.choice([b"{", b"\xff", *({**self._chat(chance), **c} for c in changes)])
        status, said = self._call("POST", "/v1/chat/completions", body)
        assert 400 <= status < 500 and said["error"]["message"], (status, said)

    # --- inside ---------------------------------------------------------------------------------

    def _text(self, chance: random.Random, most: int) -> str:
        return " ".join(chance.choices(_WORDS, k=chance.randint(1, most)))

    def _chat(self, chance: random.Random) -> dict[str, Any]:
        system = {"role": "system", "content": "You are terse. " * chance.choice([1, 20])}
        words = chance.choice([5, 30, self.longest // 3])
        asked = {"role": "user", "content": self._text(chance, words)}
        return {"model": self.model, "messages": [system, asked],
                "max_tokens": chance.randint(1, 40), "temperature": chance.choice([0, 0.8]),
                "top_p": chance.choice([1, 0.9]), "seed": chance.randint(0, 9),
                "stop": chance.choice([None, ["\n\n"]]), "logprobs": chance.random() < 0.2}

    def _call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return call(self.address, method, path, body)

    def _parts(self, body: Any) -> list[str]:
        talk = http.client.HTTPConnection(self.address, timeout=300)
        try:
            talk.request("POST", "/v1/chat/completions", json.dumps(body))
            answer = talk.getresponse()
            assert answer.status == 200, (answer.status, answer.read())
            return [line[6:].decode().strip() for line in answer if line.startswith(b"data: ")]
        finally:
            talk.close()


def call(address: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """(status, what the answer's JSON holds) of one request, whose body is JSON or bytes."""
    talk = http.client.HTTPConnection(address, timeout=300)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        talk.request(method, path, data)
        answer = talk.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        talk.close()


def resident(process: int) -> int:
    """Bytes of memory that a process holds (Linux)."""
    text = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines()
                           if line.startswith("VmRSS")))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("url", help="where the server is: http://host:port")
    parser.add_argument("--seconds", type=seconds, default=600.0, help="default: %(default)s")
    parser.add_argument("--clients", type=positive, default=16, help="default: %(default)s")
    parser.add_argument("--process", type=positive, default=None,
                        help="the server's process, whose memory is watched")  # fmt: skip
    parser.add_argument("--most-growth", type=float, default=0.05,
                        help="by which share of itself memory may grow after the first third "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    load = Load(given.url.removeprefix("http://").rstrip("/"), given.seed)
    sizes: list[int] = []

    def watch() -> None:
        while not load.stop.wait(given.seconds / 60):
            sizes.append(resident(given.process))

    if given.process is not None:
        threading.Thread(target=watch, daemon=True).start()
    load.run(given.clients, given.seconds)
    grown = 0.0
    if len(sizes) > 10:
        early, late = max(sizes[: len(sizes) // 3]), max(sizes[-len(sizes) // 3 :])
        grown = late / early - 1
    print(json.dumps({"answered": dict(load.counts), "failures": load.failures[:20],
                      "failed": len(load.failures), "growth": round(grown, 4),
                      "bytes": sizes[-1:]}))  # fmt: skip
    return int(bool(load.failures) or grown > given.most_growth)


if __name__ == "__main__":
    sys.exit(main())
