"""`muladd serve MODEL`: a model for clients of OpenAI's API, and a page to talk to it."""
from __future__ import annotations

import argparse
import json
import signal
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from muladd import config
from muladd.errors import ArgumentError, MuladdError
from muladd.llm.embeddings import EmbeddingModel
from muladd.llm.embeddings import load as load_embeddings
from muladd.llm.extras import wanted
from muladd.llm.generate import load
from muladd.llm.options import share
from muladd.llm.serve.engine import SIZES, Engine
from muladd.options import command, number, positive, seconds


def main(arguments: Sequence[str]) -> int:
    """The command; gives the exit code."""
    given = _parser().parse_args(arguments)
    key = _key(given)
    for package in ("uvicorn", "starlette", "prometheus_client"):
        wanted(package, "serve")
    with config.threads(given.threads):
        return _serve(given, key)


def _serve(given: argparse.Namespace, key: str | None) -> int:
    import uvicorn

    from muladd.llm.serve.app import App
    from muladd.llm.serve.guard import LOCAL, patient
    from muladd.llm.serve.service import Service

    listener = _listener(given.host, given.port)  # a port that is taken is known at once
    if given.name == "":
        raise ArgumentError("serve: --name is empty; expected a name, or leave it out")
    name = given.name or Path(given.model).name.removesuffix(".gguf")
    say, began = partial(print, file=sys.stderr, flush=True), time.perf_counter()
    embedders = _embedders(given, name)
    model = load(given.model, context=given.context, adapter=given.adapter,
                 arithmetic=given.arithmetic)  # fmt: skip
    engine = Engine(model, slots=given.slots, queue=given.queue, tokens=given.tokens,
                    cache=given.cache)  # fmt: skip
    service = Service(engine, name, given.timeout, embedders)
    app = App(service, key=key, most=given.max_body, slowest=given.body_timeout,
              local=key is None and given.host in LOCAL)  # fmt: skip
    say(f"muladd: {model} is being compiled for {given.slots} at a time")
    engine.start(lambda done, of: say(f"muladd: {done} of {of} programs are there after "
                                      f"{time.perf_counter() - began:.0f} s"))  # fmt: skip
    listener.listen(1024)  # from now on who connects is answered
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    say(f"muladd: serves {name} at {url}/v1 after {time.perf_counter() - began:.1f} s; a page to "
        f"talk to it is {url}")  # fmt: skip
    if given.json:
        print(json.dumps({"url": url, "model": name, "context": model.context}), flush=True)

    class Server(uvicorn.Server):
        """Tells the engine when it has to stop; to be stopped is no failure. A second Ctrl-C waits
        for nobody."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            engine.drain(given.grace)
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    settings: Any = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", server_header=False,
        http=patient(given.body_timeout),
        timeout_graceful_shutdown=int(given.grace) + 5, timeout_keep_alive=30,
    )  # fmt: skip
    server = Server(settings)
    try:
        server.run(sockets=[listener])
    finally:
        engine.close()
        listener.close()
    return 0


def _embedders(given: argparse.Namespace, name: str) -> dict[str, EmbeddingModel]:
    """The model of sentence embeddings, if one is asked for, by its name."""
    if given.embeddings is None:
        return {}
    called = given.embeddings_name or Path(given.embeddings).absolute().name
    if called == name:
        raise ArgumentError(f"serve: both models would be called {name!r}; give one of them "
                            "another name (--name, --embeddings-name)")  # fmt: skip
    found = load_embeddings(given.embeddings)
    found.warm()
    return {called: found}


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise MuladdError(f"serve: cannot listen at {host}:{port}: {error}; choose another with "
                          "--host and --port") from None  # fmt: skip
    return listener


def _key(given: argparse.Namespace) -> str | None:
    if given.api_key is not None and given.api_key_file is not None:
        raise ArgumentError("serve: --api-key and --api-key-file are both given; give one of them")
    if given.api_key_file is None:
        key: str | None = given.api_key
    else:
        try:
            key = Path(given.api_key_file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"serve: --api-key-file: {error}") from None
    if key == "":
        raise ArgumentError("serve: the API key is empty")
    return key


def _parser() -> argparse.ArgumentParser:
    parser = command(
        "serve", "Serve a language model to clients of OpenAI's API, many at a time.",
        """\
examples:
  muladd serve model.gguf
  muladd serve model.gguf --host 0.0.0.0 --api-key-file key.txt --slots 32
  curl localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{"model": "model", "messages": [{"role": "user", "content": "Hello"}]}'

in Python:
  client = openai.OpenAI(base_url="http://localhost:8080/v1", api_key="none")

a page to talk to the model is at /, numbers for Prometheus at /metrics, its state at /health.
SIGTERM and Ctrl-C stop it: no more requests are taken, those on their way may finish.""",
        "when it is ready, one JSON object with its url",
    )  # fmt: skip
    add = parser.add_argument
    share(parser, "model", "--adapter", "--context", "--arithmetic", "--threads")
    share(parser, "--cache", default="float16")
    add("--embeddings", default=None, metavar="FOLDER", help="the folder of a sentence-embedding "
        "model, which /v1/embeddings gives too")  # fmt: skip
    add("--embeddings-name", default=None, help="its name for clients (default: the folder's)")
    add("--host", default="127.0.0.1", help="where to listen (default: %(default)s: this machine "
        "only; 0.0.0.0: every network, then set a key)")  # fmt: skip
    add("--port", type=number(int, lambda n: 0 <= n < 1 << 16, "0 to 65535"),
        default=8080, help="default: %(default)s; 0: any that is free")
    add("--name", default=None, help="the model's name for clients (default: the file's)")
    add("--api-key", default=None, help="what clients must send (others on this machine can see "
        "it here; better use a file)")  # fmt: skip
    add("--api-key-file", default=None, metavar="FILE", help="a file with the API key")
    add("--slots", type=number(int, lambda n: 0 < n <= SIZES[-1], f"1 to {SIZES[-1]}"), default=16,
        help=f"requests answered at a time, 1 to {SIZES[-1]} "
        "(default: %(default)s)")  # fmt: skip
    add("--queue", type=positive, default=256, help="requests that may wait; more are told to "
        "come again (default: %(default)s)")  # fmt: skip
    add("--tokens", type=positive, default=16384, help="room for keys and values, in tokens of all "
        "conversations together, and of those whose beginnings are remembered "
        "(default: %(default)s)")  # fmt: skip
    add("--timeout", type=seconds, default=600.0, help="seconds a request may take, waiting "
        "included (default: %(default)s)")  # fmt: skip
    add("--max-body", type=positive, default=8 << 20, help="bytes of a request "
        "(default: %(default)s)")  # fmt: skip
    add("--body-timeout", type=seconds, default=20.0, help="seconds in which a request's header "
        "has to arrive, and again its body (default: %(default)s)")  # fmt: skip
    add("--grace", type=seconds, default=30.0, help="seconds that requests on their way have to "
        "finish when the server is stopped (default: %(default)s)")  # fmt: skip
    return parser
