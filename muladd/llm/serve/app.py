"""The server's routes: HTTP around a Service."""
from __future__ import annotations

import asyncio
import hmac
import html
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from muladd.llm.serve import answers, api
from muladd.llm.serve.api import ApiError
from muladd.llm.serve.guard import check_origin
from muladd.llm.serve.metrics import Metrics
from muladd.llm.serve.service import Service

_GONE = 499  # the status under which clients that went are counted
_HEADERS = {408: {"Connection": "close"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}
_READ_ON = 16  # how many times the largest body is read to its end, so that its sender hears why

Handler = Callable[[Request], Awaitable[Response]]


class App:
    """The ASGI application. Clients must send `key` as a bearer token, if there is one; bodies have
    at most `most` bytes, and come within `slowest` seconds. local: see `check_origin`."""

    def __init__(
        self, service: Service, *, key: str | None = None, most: int = 8 << 20,
        slowest: float = 20.0, local: bool = False,
        log: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self.service, self.key, self.most, self.log, self.clock = service, key, most, log, clock
        self.slowest, self.local = slowest, local
        self.metrics = Metrics(service.engine)
        self.since = int(time.time())
        page = resources.files("muladd.llm.serve").joinpath("page.html").read_text("utf-8")
        self._page = page.replace("{{model}}", html.escape(service.name))
        posts: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "/v1/chat/completions": self._chat, "/v1/completions": self._completion,
            "/v1/embeddings": self._embedding,
        }  # fmt: skip
        self.asgi = Starlette(
            routes=[
                Route("/", self._root), Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route("/v1/models", self._guarded(self._models)),
                Route("/v1/models/{name:path}", self._guarded(self._one_model)),
                *(Route(path, self._guarded(self._post(run)), methods=["POST"])
                  for path, run in posts.items()),
            ],
            exception_handlers={HTTPException: self._http_error, Exception: self._failure},
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http":
                check_origin(Headers(scope=scope), self.local)
        except ApiError as error:
            # of any path, so it is not counted by it: clients must not make labels
            self.log(f"{scope['path']} {error.status} {error}"[:300])
            await failed(error)(scope, receive, send)
        else:
            await self.asgi(scope, receive, send)

    # --- what each route does ---------------------------------------------------------------------

    async def _root(self, request: Request) -> Response:
        safe = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; " \
               "connect-src 'self'; base-uri 'none'; form-action 'none'"  # fmt: skip
        return HTMLResponse(self._page, headers={"Content-Security-Policy": safe})

    async def _health(self, request: Request) -> Response:
        engine = self.service.engine
        return JSONResponse({"status": "ok", "model": self.service.name,
                             "running": engine.running, "waiting": engine.waiting})  # fmt: skip

    async def _metrics(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request) -> Response:
        names = (self.service.name, *self.service.embedders)
        return JSONResponse({"object": "list", "data": [self._model(name) for name in names]})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.service.embedders:
            self.service.check_model(name)
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        embedder = self.service.embedders.get(name)
        context = self.service.context if embedder is None else embedder.length
        return {"id": name, "object": "model", "created": self.since,
                "owned_by": "muladd", "context_length": context}  # fmt: skip

    async def _chat(self, body: Any) -> Any:
        asked = api.chat(body)
        return asked.stream, await self.service.chat(asked)

    async def _completion(self, body: Any) -> Any:
        asked = api.completion(body)
        return asked.stream, await self.service.completion(asked)

    async def _embedding(self, body: Any) -> Any:
        async def one() -> AsyncIterator[Any]:
            yield await self.service.embedding(asked)

        asked = api.embedding(body)
        return False, one()

    def _post(self, run: Callable[[Any], Awaitable[Any]]) -> Handler:
        async def handler(request: Request) -> Response:
            began = self.clock()
            try:
                body = api.parsed(await asyncio.wait_for(self._read(request), self.slowest))
            except TimeoutError:
                raise ApiError(f"the body did not come in {self.slowest:g} seconds; send it again",
                               status=408, code="request_timeout") from None  # fmt: skip
            streams, bodies = await run(body)
            return Answer(self, bodies, streams, request.url.path, began)

        return handler

    async def _read(self, request: Request) -> bytes:
        """The body. One that is too large is read to its end and forgotten, if that comes soon:
        its sender would else see a broken connection, and no reason."""
        size, parts = 0, []
        said = request.headers.get("content-length", "")
        if said.isdecimal() and int(said[:20]) > _READ_ON * self.most:
            raise self._too_large()
        async for part in request.stream():
            size += len(part)
            if size > _READ_ON * self.most:
                break
            if size <= self.most:
                parts.append(part)
        if size > self.most:
            raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(f"the body has more than {self.most} bytes", status=413,
                        code="request_too_large")  # fmt: skip

    # --- what all routes have in common -----------------------------------------------------------

    def _guarded(self, handler: Handler) -> Handler:
        """With the key checked, and errors in the API's form."""

        async def guarded(request: Request) -> Response:
            began = self.clock()
            try:
                self._check_key(request)
                return await handler(request)
            except ApiError as error:
                self.done(request.url.path, error.status, began, str(error))
                return failed(error)
            except ClientDisconnect:
                self.done(request.url.path, _GONE, began, "the client has gone")
                return Response(status_code=_GONE)

        return guarded

    def _check_key(self, request: Request) -> None:
        if self.key is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.key.encode())
        if kind.lower() != "bearer" or not same:
            raise ApiError(
                "the API key is missing or wrong; send Authorization: Bearer KEY", status=401,
                kind="authentication_error", code="invalid_api_key",
            )  # fmt: skip

    def done(self, path: str, status: int, began: float, note: str = "") -> None:
        """Count and log a request that has ended."""
        seconds = self.clock() - began
        one = path.startswith("/v1/models/")  # of any name: clients must not make labels
        self.metrics.done("/v1/models/{id}" if one else path, status, seconds)
        self.log(f"{path} {status} {seconds:.2f} s {note}".rstrip()[:300])

    async def _http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = {404: f"there is no {request.url.path}; see /v1/models, /v1/chat/completions, "
                "/v1/completions, /v1/embeddings",
                405: f"{request.url.path} does not take {request.method}"}  # fmt: skip
        text = what.get(error.status_code, error.detail)
        return failed(ApiError(text, status=error.status_code))

    async def _failure(self, request: Request, error: Exception) -> Response:
        self.log("".join(traceback.format_exception(error)))
        return failed(ApiError("the server failed", status=500, kind="server_error"))


def failed(error: ApiError) -> Response:
    """The answer to a request that failed."""
    return JSONResponse(error.body(), error.status, headers=_HEADERS.get(error.status))


class Answer(Response):
    """One body, or a stream of events, as they come; whatever makes them is closed when the client
    goes."""

    def __init__(
        self, app: App, bodies: AsyncIterator[Any], streams: bool, path: str, began: float
    ) -> None:
        self.app, self.bodies, self.streams = app, bodies, streams
        self.path, self.began = path, began
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._work(scope, receive, send))
        gone = asyncio.ensure_future(_gone(receive))
        status, note = _GONE, "the client has gone"
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                status, note = work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            await self.bodies.aclose()  # type: ignore[attr-defined]
            self.app.done(self.path, status, self.began, note)

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> tuple[int, str]:
        began = False
        try:
            async for body in self.bodies:
                if not self.streams:
                    await JSONResponse(body)(scope, receive, send)
                    return 200, ""
                if not began:
                    self.app.metrics.first(self.app.clock() - self.began)
                    await send({"type": "http.response.start", "status": 200, "headers": [
                        (b"content-type", b"text/event-stream; charset=utf-8"),
                        (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"),
                    ]})  # fmt: skip
                    began = True
                await _send(send, answers.event(body))
        except ApiError as error:
            if not began:
                await failed(error)(scope, receive, send)
            else:
                await _send(send, answers.event(error.body()), last=True)
            return error.status, str(error)
        await _send(send, b"data: [DONE]\n\n", last=True)
        return 200, ""


async def _send(send: Send, data: bytes, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": not last})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
