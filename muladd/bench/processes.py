"""Benchmarks that need a fresh process: importing, and compiling from cold and from a warm cache.

    python -m muladd.bench.processes gpt       what a fresh process runs; prints one JSON object
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from muladd.bench.case import US, BenchmarkError, Case, Contest, Target
from muladd.bench.peers import Peers

_LONGEST = 300  # seconds


def cases() -> Iterator[Case]:
    yield Case("import muladd", "foundation", importing, Target(seconds=0.35))
    yield Case("gpt 6x384 step: compile, cold", "foundation", _compiling(False),
               Target(seconds=8.0), quick=False)  # fmt: skip
    yield Case("gpt 6x384 step: compile, warm cache", "foundation", _compiling(True),
               Target(seconds=1.5), quick=False)  # fmt: skip


def importing(peers: Peers, repeat: int = 3) -> Contest:
    """The front door with Tensor, jit and nn, which pulls in all that tracing needs.

    Modules are compiled to bytecode before, as pip leaves them.
    """
    with tempfile.TemporaryDirectory(prefix="muladd-bench-") as folder:
        kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}
        ours = "from muladd import Tensor, jit, nn"
        seconds = [_import_time(ours, kept) for _ in range(1 + repeat)]
    contest = Contest({}, seconds={US: min(seconds[1:])})
    if peers.torch is not None:
        contest.seconds["torch"] = _import_time("import torch", {})
    return contest


def _import_time(statement: str, settings: dict[str, str]) -> float:
    program = (f"import time; start = time.perf_counter(); {statement}; "
               "print(time.perf_counter() - start)")  # fmt: skip
    return float(_python(["-c", program], settings))


def _compiling(warm: bool) -> Callable[[Peers], Contest]:
    def prepare(peers: Peers) -> Contest:
        with tempfile.TemporaryDirectory(prefix="muladd-bench-") as folder:
            for _ in range(1 + warm):
                found = json.loads(_python(["-m", __name__, "gpt"], {"MULADD_CACHE_DIR": folder}))
        return Contest({}, seconds={US: found["compile"]})

    return prepare


def _python(arguments: list[str], settings: dict[str, str]) -> str:
    """The last line that a fresh Python prints, with this muladd in its path."""
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (here, os.environ.get("PYTHONPATH")) if p)
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **settings, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=_LONGEST, check=False,
    )  # fmt: skip
    lines = (done.stdout or done.stderr).strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise BenchmarkError(f"bench: a fresh process failed, saying: {said[0]}")
    return lines[-1]


def _gpt() -> dict[str, float]:
    """Seconds until a training step is ready beyond what its kernels took in that time.

    The first call runs as it stands and the second is traced: each makes a program of its own, and
    from the third on nothing is made. Kernels are timed in these very runs, because the first to
    touch memory takes far longer than a later one.
    """
    from muladd import Tensor
    from muladd.bench import networks
    from muladd.compile import profile

    model, step = networks.gpt_step()
    for parameter in model.parameters():
        parameter.realize()
    text = Tensor(networks.text_batch()).realize()
    taken = []
    with profile() as kernels:
        for _ in range(2):
            start = time.perf_counter()
            step(text).item()
            taken.append(time.perf_counter() - start)
    ran = sum(row.seconds for row in kernels.sorted())
    return {"calls": sum(taken), "kernels": ran, "compile": sum(taken) - ran}


if __name__ == "__main__":
    print(json.dumps({"gpt": _gpt}[sys.argv[1]]()))
