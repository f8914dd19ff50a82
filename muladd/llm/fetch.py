"""Files over HTTP that arrive whole: resumed where a connection breaks, checked by their hash.

A file grows beside its place as NAME.part, also over several runs, and takes its name once its size
and hash are right: who finds it there may rely on it.
"""
from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from muladd.errors import MuladdError

TRIES = 5  # that bring nothing new, one after the other
SECONDS = 30.0  # without a byte, after which a connection counts as broken
_BLOCK = 1 << 20
_WAIT = 60.0  # the longest that a server's Retry-After is followed
_LOCAL = ("localhost", "127.0.0.1", "::1")


class DownloadError(MuladdError, OSError):
    """Something could not be downloaded: no connection, no such file, no access, wrong bytes."""


class Unreachable(DownloadError):
    """There is no connection to the server, or it breaks again and again."""


@dataclass(frozen=True)
class Wanted:
    """A file of a server: where it lies, and what is known of it. `hash` is hexadecimal: sha256, or
    git's sha1 of a blob; None where the server tells none."""

    url: str
    size: int | None = None
    hash: str | None = None


Report = Callable[[int, int], None]  # bytes there, bytes in all


@dataclass
class Client:
    """How servers are asked. `token` goes to the server of `home` only, and only encrypted or on
    this machine."""

    home: str
    token: str = ""
    seconds: float = SECONDS
    tries: int = TRIES
    sleep: Callable[[float], None] = time.sleep
    headers: dict[str, str] = field(default_factory=lambda: {"User-Agent": "muladd"})

    def open(self, url: str, start: int = 0) -> http.client.HTTPResponse:
        """The answer, from byte `start` on if the server can. Raises HTTPError, OSError or
        HTTPException."""
        request = urllib.request.Request(url, headers=self.headers)
        if start:
            request.add_header("Range", f"bytes={start}-")
        request.add_header("Accept-Encoding", "identity")
        if self.token and _origin(url) == _origin(self.home):
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        opener = urllib.request.build_opener(_Redirects())
        return opener.open(request, timeout=self.seconds)

    def text(self, url: str, what: str, most: int = 32 << 20) -> bytes:
        """A short answer as a whole. Raises DownloadError."""

        def read() -> bytes:
            with self.open(url) as answer:
                found = answer.read(most + 1)
                missing = answer.headers.get("Content-Length")
                if missing is not None and len(found) < min(int(missing), most):
                    raise http.client.IncompleteRead(found)
                return found

        found = self._tried(read, what)
        if len(found) > most:
            raise DownloadError(f"download: {what}: the answer has more than {most} bytes")
        return found

    def _tried(
        self, run: Callable[[], Any], what: str, there: Callable[[], int] = lambda: 0
    ) -> Any:
        """What `run` gives, tried again where the network or the server had a bad moment. A try
        after which there is more there begins the count anew."""
        left = self.tries
        while True:
            before = there()
            try:
                return run()
            except DownloadError:
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                left = (self.tries if there() > before else left) - 1
                self.sleep(self._pause(error, left, what))

    def _pause(self, error: Exception, left: int, what: str) -> float:
        """Seconds until the next try. Raises DownloadError where there is no use in one."""
        waits = min(2.0 ** (self.tries - 1 - left), 16.0)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            if error.code not in (408, 425, 429) and error.code < 500:
                raise DownloadError(f"download: {what}: {_refusal(error.code)}") from None
            asked = error.headers.get("Retry-After", "")
            waits = min(float(asked), _WAIT) if asked.isdecimal() else waits
        if not left:
            reason = getattr(error, "reason", None) or error
            raise Unreachable(f"download: {what}: gave up after {self.tries} tries: {reason}; what "
                              "arrived is kept, so run it again") from None  # fmt: skip
        return waits

    # --- files -----------------------------------------------------------------------------------

    def fetch(self, wanted: Wanted, path: Path, report: Report | None = None) -> Path:
        """The file, at its place. Raises DownloadError."""
        name = path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(name + ".part")
        if path.exists() and wanted.size in (None, path.stat().st_size):
            return path
        with _alone(part):
            have = part.stat().st_size
            free = shutil.disk_usage(path.parent).free
            if wanted.size is not None and wanted.size - have > free:
                raise DownloadError(f"download: {name} needs {wanted.size - have:,} bytes, and "
                                    f"{path.parent} has {free:,} left")  # fmt: skip
            self._complete(wanted, part, name, report)
            right = is_right(wanted, part)
            if have and not right:  # what was there may have been of another file
                os.truncate(part, 0)
                self._complete(wanted, part, name, report)
                right = is_right(wanted, part)
            if not right:
                os.truncate(part, 0)
                raise DownloadError(f"download: {name}: the bytes that came are not those that the "
                                    "server promised (their hash is another); try again, or "
                                    "another server (HF_ENDPOINT)")  # fmt: skip
            os.replace(part, path)
        return path

    def _complete(self, wanted: Wanted, part: Path, name: str, report: Report | None) -> None:
        """Let the part grow until it is whole."""


        def there() -> int:
            return part.stat().st_size

        def run() -> None:
            whole = wanted.size and there() == wanted.size
            if not whole and not self._more(wanted, part, name, report):
                raise http.client.HTTPException("the connection broke")

        self._tried(run, name, there)

    def _more(self, wanted: Wanted, part: Path, name: str, report: Report | None) -> bool:
        """One connection; whether the file is whole now."""
        have = part.stat().st_size
        try:
            answer = self.open(wanted.url, have)
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:  # it has not so many bytes: the part is another file's
                error.close()
                os.truncate(part, 0)
                return False
            raise
        with answer:
            start, total = _place(answer, have)
            if start != have:
                have = 0
            size = wanted.size if wanted.size is not None else total
            if wanted.size is not None and total is not None and total != wanted.size:
                raise DownloadError(f"download: {name}: the server sends {total:,} bytes; expected "
                                    f"{wanted.size:,}")  # fmt: skip
            with open(part, "r+b") as file:
                file.truncate(have)
                file.seek(have)
                have = _copied(answer, file, have, size, name, report)
        return size is None or have == size


def _copied(
    answer: IO[bytes], file: IO[bytes], have: int, size: int | None, name: str,
    report: Report | None,
) -> int:  # fmt: skip
    """Write all that comes; gives how long the file is then."""
    while block := answer.read(_BLOCK):
        have += len(block)
        if size is not None and have > size:
            file.truncate(0)
            raise DownloadError(f"download: {name}: the server sends more than the {size:,} bytes "
                                "that it promised")  # fmt: skip
        file.write(block)
        if report is not None:
            report(have, size or 0)
    return have


def _place(answer: http.client.HTTPResponse, asked: int) -> tuple[int, int | None]:
    """(where in the file the answer begins, how long the file is)."""
    length = answer.headers.get("Content-Length", "")
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if found and int(found[1]) == asked:
            return asked, None if found[2] == "*" else int(found[2])
        raise http.client.HTTPException("the server sent another part than it was asked for")
    return 0, int(length) if length.isdecimal() else None


def is_right(wanted: Wanted, path: Path) -> bool:
    """Whether size and hash are those that were promised."""
    if wanted.size is not None and path.stat().st_size != wanted.size:
        return False
    if wanted.hash is None:
        return True
    if len(wanted.hash) == 64:
        made = hashlib.sha256()
    else:  # git's name of a blob
        made = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            made.update(block)
    return made.hexdigest() == wanted.hash.lower()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to other servers, but not from an encrypted connection to one that is not."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DownloadError(f"download: {req.host} leads to {newurl:.80}, which is not "
                                "encrypted")  # fmt: skip
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """No two processes let one file grow. Raises DownloadError where another one does."""
    with open(part, "ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError:
            raise DownloadError(f"download: another process is downloading {part.stem}; wait for "
                                "it") from None  # fmt: skip
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: whom a token is for."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def safe_for_tokens(url: str) -> bool:
    """Whether what is sent there can be read by nobody else."""
    scheme, host, _ = _origin(url)
    return scheme == "https" or host in _LOCAL


def _refusal(code: int) -> str:
    if code in (401, 403):
        return (f"access is refused ({code}): if it is private or asks for its licence to be "
                "accepted, do so on its page, and set HF_TOKEN to your access token")  # fmt: skip
    if code == 404:
        return "there is none of that name (404); look at how it is written"
    return f"the server answers {code} {http.client.responses.get(code, '')}".rstrip()
