"""The near end of a worker process: ask, wait, give up in time, and start another if it is gone."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muladd import config
from muladd.compile import tuned
from muladd.device import Device
from muladd.errors import DeviceError

WORKER = (sys.executable, "-m", "muladd.compile.search.worker")
BEGIN = 60.0  # seconds in which a kernel's baseline must have been compiled and run


class Worker:
    """Times candidates in a process of its own, which is started when it is first needed.

    `lost` counts those that crashed it or took too long: it is then killed, and begun anew.
    """

    def __init__(self, device: Device, command: Sequence[str] = WORKER) -> None:
        self.device, self.command = device, command
        self.lost = 0
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._first: dict[str, Any] = {}

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def begin(self, kernel: dict[str, Any], baseline: Sequence[str]) -> float | None:
        """Seconds of the heuristic's plan; None if it cannot be measured."""
        self._first = {"kernel": kernel, "device": self.device.name, "baseline": list(baseline)}
        found = self._ask(self._first, BEGIN)
        return found.get("seconds") if found else None

    def pairs(self, lines: Sequence[str], turns: int, limit: float) -> list[list[float]]:
        """Seconds of a candidate and of the baseline, in turns; empty if it was refused or lost."""
        if self._process is None and self._ask(self._first, BEGIN) is None:
            return []
        found = self._ask({"try": list(lines), "turns": turns}, limit)
        if found is None:
            self.lost += 1
            return []
        return found.get("pairs", [])

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what it did not read is left there
                        pipe.close()
            self._process.wait()
        self._process = None

    def _ask(self, request: dict[str, Any], limit: float) -> dict[str, Any] | None:
        """The answer; None if the process died or took longer, and is gone now."""
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({**request, "limit": limit}) + "\n")
            process.stdin.flush()
            line = self._answers.get(timeout=limit)
            if line:
                found = json.loads(line)
                return found if isinstance(found, dict) else None
        except (OSError, ValueError, queue.Empty):
            pass
        except BaseException:
            self.stop()
            raise
        self.stop()
        return None

    def _start(self) -> subprocess.Popen[str]:
        here = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(p for p in (here, os.environ.get("PYTHONPATH")) if p)
        settings = {
            "THREADS": tuned.threads_of(self.device), "CACHE_DIR": config.cache_folder(),
            "NOCACHE": int(config.get("NOCACHE")), "MEMORY": config.get("MEMORY"),
            "DEBUG": 0, "CHECK": 0, "GRAPH": 0, "BEAM": 0,
        }  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": path,
                       **{f"MULADD_{name}": str(value) for name, value in settings.items()}}
        try:
            self._process = subprocess.Popen(
                self.command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        except OSError as error:
            raise DeviceError(f"search: no process to measure in: {error}") from None
        self._answers = queue.Queue()
        reader = threading.Thread(target=_read, args=(self._process.stdout, self._answers))
        reader.daemon = True
        reader.start()
        return self._process


def _read(pipe: Any, into: queue.Queue[str | None]) -> None:
    """Lines as they come, and None at the end."""
    try:
        for line in pipe:
            into.put(line)
    except (OSError, ValueError):
        pass
    into.put(None)
