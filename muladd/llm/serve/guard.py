"""Who is not answered: pages of other sites, and those who begin a request and never end it.

A browser sends what any page asks it to, also to servers on its own machine. So a page of another
origin is refused, and, where a server without a key listens to its own machine only, so is whoever
calls it by another name: a page's own name may be made to lead here (DNS rebinding).
"""
from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from uvicorn.protocols.http.h11_impl import H11Protocol

from muladd.llm.serve.api import ApiError

LOCAL = ("localhost", "127.0.0.1", "::1")
_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def check_origin(headers: Headers, local: bool) -> None:
    """Raises ApiError (403). local: only names of this machine are its own."""
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        name = urlsplit(f"//{host}").hostname
        other = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
    except ValueError:
        name, other = None, True
    if other:
        raise ApiError(f"pages of {(origin or host)[:60]} may not use this server; open its own "
                       "page, or put both behind one address", status=403,
                       kind="permission_error")  # fmt: skip
    if local and name not in LOCAL:
        raise ApiError(f"this server answers localhost only, and was called {host[:60]!r}; give it "
                       "a key (--api-key-file) to answer other names", status=403,
                       kind="permission_error")  # fmt: skip


def patient(seconds: float) -> type[H11Protocol]:
    """HTTP whose connections end if a request's header has not come in so many seconds."""

    class Patient(H11Protocol):
        late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self.stop()
            super().connection_lost(exc)

        def wait(self) -> None:
            """Between requests, time runs from the first byte of a header on."""
            if self.cycle is not None and not self.cycle.response_complete:
                self.stop()
            elif self.late is None:
                self.late = self.loop.call_later(seconds, self.give_up)

        def stop(self) -> None:
            if self.late is not None:
                self.late.cancel()
                self.late = None

        def give_up(self) -> None:
            self.late = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_LATE)
                self.transport.close()

    return Patient


__all__ = ["LOCAL", "check_origin", "patient"]
