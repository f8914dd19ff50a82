"""Downloads from a hub which breaks off, lies, and refuses; what arrives is right or not there."""
from __future__ import annotations

import hashlib
import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from support.small_llama import write_speaking

from muladd import cli, config, llm
from muladd.errors import ArgumentError, FormatError
from muladd.formats import safetensors
from muladd.llm import embeddings, hub
from muladd.llm.fetch import Client, DownloadError, Unreachable, Wanted

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATA = bytes(i * i % 251 for i in range(300_000))


class Hub:
    """A hub in this process. `manner` is how it treats files; `seen` are (path, headers)."""

    def __init__(self, files):
        self.files, self.manner, self.seen, self.lies = dict(files), "good", [], {}
        self.count, self.commit = 0, COMMIT
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def listing(self):
        lines = []
        for name, data in self.files.items():
            line = {"rfilename": name, "size": len(data),
                    "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
            if name.endswith((".gguf", ".safetensors")):
                line["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            lines.append({**line, **self.lies})
        return json.dumps({"sha": self.commit, "siblings": lines}).encode()

    def answer(self, request):
        self.seen.append((request.path, dict(request.headers)))
        path, manner = request.path, self.manner
        if path.startswith("/api/models/o/m/revision/main"):
            return self.send(request, 200, self.listing())
        found = re.match(rf"/(?:o/m/resolve/{self.commit}|moved)/(.*)", path)
        if not found or found[1] not in self.files:
            return self.send(request, 404, b"no")
        self.count += 1
        data = self.files[found[1]]
        if manner == "moved" and not path.startswith("/moved"):
            there = self.address.replace("127.0.0.1", "localhost") + f"/moved/{found[1]}"
            return self.send(request, 302, b"", {"Location": there})
        if manner == "busy" and self.count < 4:
            return self.send(request, 503, b"", {"Retry-After": "7"})
        if manner in ("401", "403", "404", "500"):
            return self.send(request, int(manner), b"")
        start = re.match(r"bytes=(\d+)-", request.headers.get("Range", ""))
        first, code, more = int(start[1]) if start else 0, 200, {}
        if start and manner not in ("no ranges", "breaks, no ranges"):
            if first >= len(data):
                return self.send(request, 416, b"")
            told = first + 5 if manner == "other range" else first
            code = 206
            more = {"Content-Range": f"bytes {told}-{len(data) - 1}/{len(data)}"}
        body = data[first:] if code == 206 else data
        if manner == "wrong bytes":
            body = bytes([body[0] ^ 1]) + body[1:]
        if manner == "wrong once" and self.count == 1:
            body = b"x" * len(body)
        if manner == "long":
            body += b"more"
        if manner == "endless":
            return self.send(request, code, body + b"more", more, length=None)
        if manner == "no length":
            return self.send(request, code, body, more, length=None)
        if manner == "short":
            body = body[:-10]
        if manner.startswith("breaks") and len(body) > 90_000:
            return self.send(request, code, body[:90_000], more, length=len(body))
        if manner == "always breaks":
            return self.send(request, code, b"", more, length=len(body))
        return self.send(request, code, body, more)

    def send(self, request, code, body, more=None, length=-1):
        request.send_response(code)
        length = len(body) if length == -1 else length
        for name, value in {**(more or {}), "Content-Length": length}.items():
            if value is not None:
                request.send_header(name, str(value))
        request.end_headers()
        request.wfile.write(body)
        request.close_connection = True


@pytest.fixture
def there(tmp_path):
    """The hub, in place of the real one."""
    found = Hub({"m.gguf": DATA, "notes.txt": b"hello"})
    with config.context(HF_ENDPOINT=found.address, CACHE_DIR=tmp_path / "cache"):
        yield found
    found.server.shutdown()
    found.server.server_close()


def get(there, name="m.gguf", slept=None, **more):
    sleep = (lambda s: None) if slept is None else slept.append
    client = Client(there.address, sleep=sleep, seconds=5)
    return hub.download("o/m", [name], client=client, **more)


@pytest.mark.parametrize("manner", [
    "good", "no ranges", "breaks", "no length", "moved", "busy", "wrong once",
])  # fmt: skip
def test_a_file_arrives(there, manner, tmp_path):
    there.manner, slept = manner, []
    if manner == "wrong once":  # what an earlier run left is of another file
        part = tmp_path / "cache" / "hub" / "o--m" / COMMIT / "m.gguf.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"?" * 1000)
        there.manner = "good"
    path = get(there, slept=slept)
    assert path.read_bytes() == DATA and path.name == "m.gguf"
    assert [p.name for p in path.parent.iterdir()] == ["m.gguf"]
    ranges = [int(h["Range"][6:-1]) for _, h in there.seen if "Range" in h]
    if manner == "breaks":
        assert ranges == [90_000, 180_000, 270_000]  # goes on where it was
    if manner == "busy":
        assert slept == [7.0] * 3
    count = there.count
    assert get(there) == path and there.count == count  # not twice


def test_an_interrupted_download_goes_on_in_the_next_run(there, tmp_path):
    there.manner = "breaks"
    with pytest.raises(KeyboardInterrupt):
        def stop(name, done, total):
            assert total == len(DATA)
            if done >= 90_000:
                raise KeyboardInterrupt

        get(there, report=stop)
    there.manner, there.seen = "good", []
    assert get(there).read_bytes() == DATA
    assert there.seen[-1][1]["Range"] == "bytes=90000-"


WRONG = [
    ("wrong bytes", "not those that the server promised"),
    ("long", "sends 300,004 bytes; expected 300,000"),
    ("endless", "sends more than the 300,000 bytes"),
    ("short", "sends 299,990 bytes; expected 300,000"),
    ("always breaks", "gave up after 5 tries"),
    ("breaks, no ranges", "gave up after 5 tries"),
    ("500", "gave up after 5 tries"),
    ("401", r"access is refused \(401\): if it is private .* HF_TOKEN"),
    ("403", "access is refused"),
    ("404", "none of that name"),
]  # fmt: skip


@pytest.mark.parametrize("manner, words", WRONG)
def test_what_is_wrong_never_takes_the_files_name(there, manner, words, tmp_path):
    there.manner = manner
    with pytest.raises(DownloadError, match=words):
        get(there)
    assert not list((tmp_path / "cache").rglob("m.gguf"))
    there.manner = "good"
    assert get(there).read_bytes() == DATA


def test_another_range_than_was_asked_for(there):
    there.manner = "breaks"
    with pytest.raises(ZeroDivisionError):
        get(there, report=lambda *now: 1 / 0)
    there.manner = "other range"
    with pytest.raises(Unreachable, match="another part"):
        get(there)


def test_small_files_are_checked_by_gits_hash(there):
    assert get(there, "notes.txt").read_bytes() == b"hello"
    there.files["other.txt"] = b"hello"
    there.lies = {"blobId": "0" * 40}
    with pytest.raises(DownloadError, match="not those"):
        get(there, "other.txt")


def test_the_token_goes_to_the_hub_only(there):
    there.manner = "moved"
    client = Client(there.address, "secret", sleep=lambda s: None)
    assert hub.download("o/m", client=client).read_bytes() == DATA
    sent = {path: headers.get("Authorization") for path, headers in there.seen}
    assert sent.pop("/moved/m.gguf") is None and set(sent.values()) == {"Bearer secret"}
    with config.context(HF_TOKEN="hf_abc"):
        assert hub._client().token == "hf_abc" and "hf_abc" not in config.table()
        with config.context(HF_ENDPOINT="http://example.org"):
            with pytest.raises(ArgumentError, match="not encrypted"):
                hub.download("o/m")
    with config.context(HF_TOKEN="a\nb"), pytest.raises(ArgumentError, match="no token has"):
        hub.download("o/m")
    with config.context(HF_ENDPOINT="none"), pytest.raises(ArgumentError, match="expected https"):
        hub.download("o/m")


def test_without_a_connection_the_last_files_are_used(there, tmp_path):
    path = get(there)
    there.server.shutdown()
    there.server.server_close()
    assert get(there) == path
    with pytest.raises(Unreachable, match="gave up after 5 tries"):
        get(there, "notes.txt")
    with pytest.raises(Unreachable):
        hub.download("o/other", client=Client(there.address, sleep=lambda s: None))


def test_another_commit_takes_what_is_the_same(there):
    first = get(there)
    there.commit, there.count = "f" * 40, 0
    there.files["notes.txt"] = b"changed"
    second = get(there)
    assert second != first and second.samefile(first) and there.count == 0
    assert get(there, "notes.txt").read_bytes() == b"changed" and there.count == 1


def test_no_way_from_encrypted_to_not():
    import urllib.request

    from muladd.llm.fetch import _Redirects

    asked = urllib.request.Request("https://hub.example/x")
    for there in ("http://other.example/x", "ftp://other.example/x"):
        with pytest.raises(DownloadError, match="not encrypted"):
            _Redirects().redirect_request(asked, None, 302, "", {}, there)
    assert _Redirects().redirect_request(asked, None, 302, "", {}, "https://other.example/x")


def test_which_files(there, tmp_path):
    names = ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "README.md",
             "model-00002-of-00002.safetensors", "model.safetensors.index.json", "x.gguf",
             "modules.json", "1_Pooling/config.json"]  # fmt: skip
    listing = hub.Listing(COMMIT, dict.fromkeys(names, (1, None)))
    place = hub.Place("o", "m")
    assert set(listing.named([], place)) == set(names) - {"README.md", "x.gguf"}
    assert listing.named(["*.gguf", "READ*"], place) == ["README.md", "x.gguf"]
    with pytest.raises(ArgumentError, match="no file 'y'; it has 1_Pooling/config.json, README.md"):
        listing.named(["x.gguf", "y"], place)
    several = hub.Listing(COMMIT, {"a.gguf": (1, None), "b.gguf": (1, None)})
    with pytest.raises(ArgumentError, match="say which file you want; it has a.gguf, b.gguf"):
        several.named([], place)
    there.files = {"config.json": b"{}", "model.safetensors": b"abc"}
    folder = hub.download("o/m", client=Client(there.address))
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    (tmp_path / "config.json").write_bytes(b"mine")
    with pytest.raises(DownloadError, match="is there, and is another file"):
        hub.download("o/m", folder=tmp_path)
    assert (tmp_path / "config.json").read_bytes() == b"mine"
    there.lies = {"size": None}  # then what is there counts as it
    assert hub.download("o/m", ["config.json"], folder=tmp_path) == tmp_path / "config.json"


@pytest.mark.parametrize("text", ["", "o", "o/", "/m", "o/m@", "../m", "o/..", "o/m@a..b", "o m/x",
                                  "hub:o"])  # fmt: skip
def test_names_of_models(text):
    if text == "o/m@":
        assert hub.Place.parse(text).revision == "main"
        return
    with pytest.raises(ArgumentError, match="names no model"):
        hub.Place.parse(text)


def test_parsed_names():
    assert hub.Place.parse("hub:o/m@v1.0/a/b.gguf") == hub.Place("o", "m", "v1.0", "a/b.gguf")


@pytest.mark.parametrize("answer, words", [
    (b"<html>", "no list of files"), (b"[]", "no list of files"), (b'{"sha": 1}', "no list"),
    (b'{"sha": "x", "siblings": []}', "is no commit"),
    *((json.dumps({"sha": COMMIT, "siblings": [{"rfilename": name}]}).encode(), "no name of a file")
      for name in ("../x", "/etc/x", "a\\b", "c:x", "a//b", "x.part", "a\nb")),
])  # fmt: skip
def test_listings_that_are_none(there, answer, words):
    there.listing = lambda: answer
    with pytest.raises(DownloadError, match=words):
        get(there)


def test_two_processes_do_not_write_one_file(there, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    part = tmp_path / "x.part"
    with open(part, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process"):
            Client(there.address).fetch(Wanted(there.address), tmp_path / "x")


def test_a_model_of_the_hub_is_loaded_by_name(there, tmp_path, capsys):
    there.files["speaks.gguf"] = write_speaking(tmp_path / "m.gguf").read_bytes()
    model = llm.load("hub:o/m/speaks.gguf", context=32)
    assert len(list(model.generate("hi", max_tokens=2))) == 2
    assert cli.main(["download", "o/m", "speaks*", "--to", str(tmp_path / "to"), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"path": str(tmp_path / "to" / "speaks.gguf")}
    assert "speaks.gguf" in told.err and "100%" in told.err
    assert cli.main(["download", "o/m", "none.gguf"]) == 2
    assert "has no file 'none.gguf'; it has m.gguf" in capsys.readouterr().err
    with pytest.raises(ArgumentError, match="names no model"):
        llm.load("hub:what")
    (tmp_path / "d.jsonl").write_text('{"text": "hello"}\n' * 4)
    assert cli.main(["finetune", "hub:o/m/speaks.gguf", str(tmp_path / "d.jsonl"), "--lora", "1",
                     "--steps", "1", "--length", "8", "--output", str(tmp_path / "a")]) == 0
    assert "--adapter" in capsys.readouterr().out
    assert cli.main(["merge", "hub:o/m/speaks.gguf", str(tmp_path / "a"),
                     str(tmp_path / "merged.gguf")]) == 0
    assert (tmp_path / "merged.gguf").exists()


def test_embeddings_of_the_hub_are_found_by_name(there, tmp_path):
    safetensors.save({"a": np.zeros(1, np.float32)}, tmp_path / "m.safetensors")
    there.files = {"config.json": b'{"model_type": "t5"}',
                   "model.safetensors": (tmp_path / "m.safetensors").read_bytes()}  # fmt: skip
    with pytest.raises(FormatError, match="'t5' is no encoder that is known"):
        embeddings.load("hub:o/m")


def test_a_place_without_room(there, tmp_path, monkeypatch):
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DownloadError, match="needs 300,000 bytes, and .* has 1,000 left"):
        get(there)


def test_bars_are_one_line(there):
    out = io.StringIO()
    show = hub._each(out)
    for done in range(0, 101, 5):
        show("a.gguf", done * 10**6, 10**8)
    assert out.getvalue().count("\n") == 10 and "a.gguf 100.0/100.0 MB" in out.getvalue()
