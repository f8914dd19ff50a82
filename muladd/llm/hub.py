"""Models from a hub: `muladd download OWNER/NAME`, and "hub:OWNER/NAME/FILE" in place of a path.

The hub's interface is Hugging Face's, which others have too (HF_ENDPOINT names one). Files lie in
the cache folder under the commit that they are of; without a connection the last ones are used.
"""
from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from muladd import config
from muladd.errors import ArgumentError
from muladd.llm.fetch import (
    Client,
    DownloadError,
    Unreachable,
    Wanted,
    is_right,
    safe_for_tokens,
)
from muladd.options import command
from muladd.progress import Bar

PREFIX = "hub:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
           "chat_template.jinja", "special_tokens_map.json", "model.safetensors",
           "model.safetensors.index.json", "model-*-of-*.safetensors",
           "modules.json", "sentence_bert_config.json", "*_Pooling/config.json")  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A repository of a hub, at a revision, and perhaps a file in it."""

    owner: str
    name: str
    revision: str = "main"
    file: str = ""

    @classmethod
    def parse(cls, text: str) -> Place:
        """OWNER/NAME, OWNER/NAME@REVISION or either with /FILE. Raises ArgumentError."""
        given = text.removeprefix(PREFIX)
        owner, _, rest = given.partition("/")
        name, _, file = rest.partition("/")
        name, _, revision = name.partition("@")
        found = cls(owner, name, revision or "main", file)
        good = all(_NAME.fullmatch(x) and ".." not in x for x in (owner, name))
        if not good or not _REVISION.fullmatch(found.revision) or ".." in found.revision:
            raise ArgumentError(f"hub: {text!r:.80} names no model; expected OWNER/NAME, "
                                "OWNER/NAME/FILE or OWNER/NAME@REVISION")  # fmt: skip
        return found

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"{self.owner}/{self.name}{at}"


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit: (size, hash) by name, either None if not told."""

    commit: str
    files: dict[str, tuple[int | None, str | None]]

    def named(self, patterns: Sequence[str], where: Place) -> list[str]:
        """The files that fit the patterns (`*Q4_K_M*`); without any, those of the model. Raises
        ArgumentError naming what there is, where nothing fits or it is not clear."""
        models = [n for n in self.files if n.endswith(".gguf")]
        there = "it has " + ", ".join(sorted(self.files)[:40] or ["no files"])
        if patterns:
            found = [n for n in self.files if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
            for p in patterns:
                if not any(fnmatch.fnmatchcase(n, p) for n in found):
                    raise ArgumentError(f"hub: {where} has no file {p!r:.80}; {there}")
            return found
        if "config.json" in self.files and any(n.endswith(".safetensors") for n in self.files):
            return [n for n in self.files if any(fnmatch.fnmatchcase(n, p) for p in _BESIDE)]
        if len(models) == 1 or models and all(re.search(r"-\d{5}-of-\d{5}\.gguf$", n)
                                              for n in models):  # fmt: skip
            return models
        raise ArgumentError(f"hub: {where}: say which file you want; {there}")


def download(
    what: str, files: Sequence[str] = (), *, folder: str | os.PathLike[str] | None = None,
    report: Callable[[str, int, int], None] | None = None, client: Client | None = None,
) -> Path:  # fmt: skip
    """Bring files of a hub to this machine: those that fit the patterns, else the model's. Gives
    the file's path (of the first of a split model), or the folder's if there are several.

    What is there already and whole is not downloaded again. `folder`: where to, in place of the
    cache. `report` gets (name, bytes there, bytes in all). Raises ArgumentError for names that are
    none, DownloadError for what does not come.
    """
    place = Place.parse(what)
    client = client or _client()
    home = config.cache_folder() / "hub" / f"{place.owner}--{place.name}"
    listing = _listing(client, place, home)
    patterns = [*([place.file] if place.file else []), *files]
    names = listing.named(patterns, place)
    to = home / listing.commit if folder is None else Path(folder)
    base = f"{client.home}/{place.owner}/{place.name}/resolve/{listing.commit}/"
    for name in names:
        size, hash_ = listing.files[name]
        path = to / name
        if folder is not None and path.exists() and size not in (None, path.stat().st_size):
            raise DownloadError(f"download: {path} is there, and is another file; move it away, or "
                                "choose another folder")  # fmt: skip
        wanted = Wanted(base + quote(name), size, hash_)
        if folder is None and not path.exists():
            _linked(wanted, path, [commit / name for commit in home.iterdir()])
        client.fetch(wanted, path, None if report is None else partial(report, name))
    one = len(names) == 1 or all(n.endswith(".gguf") for n in names)
    return to / sorted(names)[0] if one else to


def _linked(wanted: Wanted, path: Path, others: Sequence[Path]) -> None:
    """Take a file of another commit, if one is the same."""
    for other in others if wanted.hash else ():
        if other.is_file() and is_right(wanted, other):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(other, path)
            except OSError:  # a file system without links
                continue
            return


def located(path: str | os.PathLike[str]) -> Path:
    """A path as it is; of "hub:OWNER/NAME/FILE" the file, which is downloaded if it is not there.
    Raises as `download`."""
    given = os.fspath(path)
    if not given.startswith(PREFIX):
        return Path(given)
    return download(given, report=_each(sys.stderr) if sys.stderr.isatty() else None)


def _client() -> Client:
    home = str(config.get("HF_ENDPOINT")).rstrip("/")
    if not re.match(r"https?://[^/\s]", home):
        raise ArgumentError(f"hub: HF_ENDPOINT is {home!r:.80}; expected https://...")
    token = config.get("HF_TOKEN").value
    if token and not safe_for_tokens(home):
        raise ArgumentError(f"hub: HF_TOKEN is not sent to {home:.80}, which is not encrypted; use "
                            "https, or unset it")  # fmt: skip
    if not (token.isascii() and token.isprintable()):
        raise ArgumentError("hub: HF_TOKEN has characters that no token has")
    return Client(home, token)


def _listing(client: Client, place: Place, home: Path) -> Listing:
    """What the hub has; without a connection what it had."""
    kept = home / "refs" / (quote(place.revision, safe="") + ".json")
    url = (f"{client.home}/api/models/{place.owner}/{place.name}/revision/"
           f"{quote(place.revision, safe='')}?blobs=true")  # fmt: skip
    try:
        raw = client.text(url, str(place))
    except Unreachable:
        if not kept.exists():
            raise
        return _read_listing(kept.read_bytes(), place)
    found = _read_listing(raw, place)
    kept.parent.mkdir(parents=True, exist_ok=True)
    new = kept.with_suffix(f".{os.getpid()}")
    new.write_bytes(raw)
    os.replace(new, kept)
    return found


def _read_listing(raw: bytes, place: Place) -> Listing:
    """Raises DownloadError for what is no answer of a hub, and for names that lead elsewhere."""
    try:
        found: Any = json.loads(raw)
        commit, lines = found["sha"], found["siblings"]
        files = {line["rfilename"]: _facts(line) for line in lines}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DownloadError(f"download: {place}: the answer is no list of files; is HF_ENDPOINT a "
                            "hub?") from None  # fmt: skip
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise DownloadError(f"download: {place}: {commit!r:.60} is no commit; is HF_ENDPOINT a "
                            "hub?")  # fmt: skip
    for name in files:
        parts = name.split("/")
        if any(p in ("", ".", "..") or not re.fullmatch(r"[^\\:\0-\x1f]{1,200}", p)
               or p.endswith((".part", ".lock")) for p in parts) or len(parts) > 20:  # fmt: skip
            raise DownloadError(f"download: {place}: {name!r:.80} is no name of a file in a folder")
    return Listing(commit, files)


def _facts(line: dict[str, Any]) -> tuple[int | None, str | None]:
    """(size, hash) of a file."""
    large = line.get("lfs") or {}
    size, hash_ = large.get("size", line.get("size")), large.get("sha256", line.get("blobId"))
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        size = None
    if not isinstance(hash_, str) or not _HASH.fullmatch(hash_):
        hash_ = None
    return size, hash_


# --- the command ---------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """The command; gives the exit code."""
    given = _parser().parse_args(arguments)
    path = download(given.what, given.files, folder=given.to, report=_each(sys.stderr))
    print(json.dumps({"path": str(path)}) if given.json else path)
    return 0


def _each(out: TextIO) -> Callable[[str, int, int], None]:
    """A bar for each file."""
    bars: defaultdict[str, Bar] = defaultdict(partial(Bar, out))

    def show(name: str, done: int, total: int) -> None:
        bars[name](done, total, f"{name:.40} {done / 1e6:,.1f}/{total / 1e6:,.1f} MB")

    return show


def _parser() -> argparse.ArgumentParser:
    parser = command(
        "download",
        "Bring a model of a hub to this machine. A download that broke off goes on "
        "where it did; every file is checked by its hash.",
        "examples:\n  muladd download HuggingFaceTB/SmolLM2-135M-Instruct\n"
        "  muladd download OWNER/NAME model.Q4_K_M.gguf\n"
        "  muladd download OWNER/NAME '*Q4_K_M*' --to models\n"
        "  muladd chat hub:OWNER/NAME/model.gguf     (downloads it the first time)\n\n"
        "HF_TOKEN is the access token for what is not public, HF_ENDPOINT another hub.",
    )  # fmt: skip
    parser.add_argument("what", metavar="OWNER/NAME", help="the model; @REVISION may follow")
    parser.add_argument("files", nargs="*", metavar="FILE",
                        help="files, or patterns of them (default: the model's)")  # fmt: skip
    parser.add_argument("--to", default=None, metavar="FOLDER",
                        help="where to (default: the cache folder)")  # fmt: skip
    return parser
