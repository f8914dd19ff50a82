"""Benchmarks that need a fresh process: importing, and compiling from cold and from a warm cache.

    python -m muladd.bench.processes gpt 6 384 6     what a fresh process runs: layers, width, heads
    python -m muladd.bench.processes jax 6 384 6     the same step at a peer: torch.compile or jax

Each prints one JSON object.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from muladd.bench.case import US, BenchmarkError, Case, Contest, Target
from muladd.bench.peers import Peers

_LONGEST = 300  # seconds
Sizes = tuple[int, int, int]  # layers, width, heads
_SIZES = (6, 384, 6)


def cases() -> Iterator[Case]:
    yield Case("import muladd", "foundation", importing, Target(seconds=0.35))
    yield Case("gpt 6x384 step: compile, cold", "compile", compiling_cold, Target(seconds=4.0),
               {"torch.compile": Target(7), "jax": Target(2)}, quick=False)  # fmt: skip
    yield Case("gpt 6x384 step: compile, warm cache", "compile", compiling_again,
               Target(seconds=0.8), quick=False)  # fmt: skip


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


def compiling_cold(peers: Peers, sizes: Sizes = _SIZES) -> Contest:
    """Seconds until the step is ready, with empty caches on all sides."""
    contest = Contest({}, seconds={US: _compiled(peers, "gpt", sizes, 1)})
    for name in ("torch.compile", "jax"):
        if name in peers.names:
            contest.seconds[name] = _compiled(peers, name, sizes, 1)
    return contest


def compiling_again(peers: Peers, sizes: Sizes = _SIZES) -> Contest:
    """Seconds until the step is ready in a process that finds its kernels on disk."""
    return Contest({}, seconds={US: _compiled(peers, "gpt", sizes, 2)})


def _compiled(peers: Peers, whose: str, sizes: Sizes, times: int) -> float:
    """Seconds of compiling in the last of so many fresh processes that share a new cache."""
    with tempfile.TemporaryDirectory(prefix="muladd-bench-") as folder:
        settings = {
            "MULADD_CACHE_DIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder,
            "THREADS": str(peers.threads),
        }  # fmt: skip
        for _ in range(times):
            found = json.loads(_python(["-m", __name__, whose, *map(str, sizes)], settings))
    return float(found["compile"])


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


def _gpt(sizes: Sizes) -> dict[str, float]:
    """Seconds until a training step is ready beyond what its kernels took in that time.

    The first call runs as it stands and the second is traced: each makes a program of its own, and
    from the third on nothing is made. Kernels are timed in these very runs, because the first to
    touch memory takes far longer than a later one.
    """
    from muladd import Tensor
    from muladd.bench import networks
    from muladd.compile import profile

    model, step = networks.gpt_step(*sizes)
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


def _peer(name: str, sizes: Sizes) -> dict[str, float]:
    """Seconds that the first call of a peer's step takes beyond a later one."""
    from muladd import config
    from muladd.bench import jax_networks, networks
    from muladd.bench.peers import installed

    peers = installed([name], config.get("THREADS"))
    model, _ = networks.gpt_step(*sizes)
    text = networks.text_batch()
    step = (
        jax_networks.gpt_step(peers.jax, model, text) if name == "jax"
        else networks.torch_gpt_step(peers.torch_compile, model, text, compiled=True)
    )  # fmt: skip
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return {"call": min(taken), "compile": taken[0] - min(taken)}


def main(whose: str, layers: str, width: str, heads: str) -> None:
    sizes = int(layers), int(width), int(heads)
    print(json.dumps(_gpt(sizes) if whose == "gpt" else _peer(whose, sizes)))


if __name__ == "__main__":
    main(*sys.argv[1:])
