"""`muladd serve` in a process of its own, as users run it."""
from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Running:
    """A server that is up."""

    process: subprocess.Popen
    url: str
    name: str

    @property
    def address(self):
        return self.url.removeprefix("http://")

    def client(self, key="none", **more):
        """OpenAI's own client of it; it tries once."""
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **more)

    def ask(self, path, data=None, method=None, **headers) -> tuple[int, Any]:
        """(status, what was said) to raw bytes; JSON is read."""
        talk = http.client.HTTPConnection(self.address, timeout=120)
        try:
            kind = {"Content-Type": "application/json", **headers}
            talk.request(method or ("GET" if data is None else "POST"), path, data, kind)
            answer = talk.getresponse()
            text = answer.read().decode()
            return answer.status, json.loads(text) if text[:1] in "{[" else text
        finally:
            talk.close()

    def metric(self, name):
        """A number of /metrics."""
        text = self.ask("/metrics")[1]
        return float(re.search(rf"(?m)^muladd_{name}(?:_total)? (\S+)", text)[1])

    def becomes(self, seconds=20, **wanted):
        """Whether metrics reach these values soon."""
        end = time.monotonic() + seconds
        while any(self.metric(name) != value for name, value in wanted.items()):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


@contextmanager
def serving(model, *arguments):
    """`with serving("model.gguf", "--slots", "4") as server:` until the end of the block."""
    command = [sys.executable, "-m", "muladd", "serve", str(model), "--port", "0", "--json"]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    lines: list[str] = []
    try:
        ready = process.stdout.readline()
        if not ready:
            raise AssertionError(process.stderr.read())
        told = json.loads(ready)
        import threading

        threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True).start()
        yield Running(process, told["url"], told["model"])
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        process.stdout.close()
    assert process.returncode == 0, "".join(lines)[-3000:]
    assert not any("Traceback" in line for line in lines), "".join(lines)[-3000:]
