"""Kernels for machines that are not at hand: their machine code, and what its inner loops do.

    translated(kernel, Machine.named("sve")).loops       the innermost loops, as instructions

Where qemu and a linker for AArch64 are installed, `run` also runs them.
"""
from __future__ import annotations

import functools
import itertools
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muladd import Tensor, config
from muladd.codegen import llvm, native
from muladd.compile import compile_graph, parameters
from muladd.device import Machine
from muladd.loop.kernel import Kernel
from muladd.loop.lower import lower
from muladd.loop.plan import Plan
from muladd.schedule import heuristic


def kernels(make: Callable[[], Tensor]) -> list[Kernel]:
    """The kernels of a tensor's graph, before anything is decided that depends on a machine."""
    with config.context(DEVICE="NULL", CHECK=0):
        graph, _ = parameters((make().node,))
        return [k.kernel for k in compile_graph(graph, "NULL").kernels()]


@dataclass(frozen=True)
class Instruction:
    """A line of assembly: its name and its operands, the one that is written first."""

    name: str
    operands: tuple[str, ...]

    @property
    def on_stack(self) -> bool:
        frame = r"\(%rsp|-\d+\(%rbp|\[sp\b|\[x29, #-"
        return any(re.search(frame, x) for x in self.operands)

    @property
    def vector(self) -> bool:
        """Whether a vector register takes part."""
        text = " ".join((self.name, *self.operands))
        return bool(re.search(r"%[xyz]mm\d|\b[vz]\d+\b|\bq\d+\b", text))

    @property
    def fused(self) -> bool:
        """A multiply-add."""
        return bool(re.match(r"vfn?madd|fn?(ml[as]|mad|msb)\b|mla\b", self.name))


@dataclass(frozen=True)
class Loop:
    """The instructions of an innermost loop, in order."""

    body: tuple[Instruction, ...]

    def count(self, pattern: str) -> int:
        return sum(bool(re.fullmatch(pattern, x.name)) for x in self.body)

    @property
    def spilled(self) -> list[Instruction]:
        """Vectors that go to the stack or come from it."""
        return [x for x in self.body if x.on_stack and x.vector]

    @property
    def stored(self) -> list[Instruction]:
        """Those that go there: what comes from there may be constants."""
        return [x for x in self.spilled if x.name.startswith("st") or "(%r" in x.operands[0]]

    @property
    def accumulators(self) -> Counter[str]:
        """Registers that the loop only adds to, or multiplies and adds, and how often."""
        sums: Counter[str] = Counter()
        others = set()
        for x in self.body:
            target, *sources = map(register, x.operands or ("",))
            adds = re.match(r"v?p?addd|v?addp[sd]|fadd|add", x.name) and target in sources
            if adds or re.match(r"vfn?madd231|fml[as]|mla", x.name):
                sums[target] += 1
            else:
                others.add(target)
        vectors = (r for r in sums if re.match(r"[xyz]mm|[vz]\d", r) and r not in others)
        return Counter({r: sums[r] for r in vectors})


def register(operand: str) -> str:
    """%ymm3 -> ymm3, v3.4s -> v3, { z3.s } -> z3."""
    found = re.search(r"%?\b([xyz]mm\d+|[vzqds]\d+)\b", operand)
    return found.group(1) if found else operand


@dataclass(frozen=True)
class Translated:
    """A kernel for a machine: the plan, the machine code as text and as an object file."""

    machine: Machine
    plan: Plan
    assembly: str
    blob: bytes
    scratch: int

    @functools.cached_property
    def instructions(self) -> list[str | Instruction]:
        """Labels and instructions. AT&T's order of operands is turned round."""
        intel = self.machine.triple.startswith("x86")
        comment = "#" if intel else ";" if "macos" in self.machine.triple else "//"
        found: list[str | Instruction] = []
        for line in self.assembly.splitlines():
            text = line.split(comment)[0].strip()
            if re.fullmatch(r"\S+:", text):
                found.append(text[:-1])
            elif text and not text.startswith("."):
                name, _, rest = text.partition("\t")
                parts = [p.strip() for p in re.split(r",(?![^(\[{]*[)\]}])", rest)] if rest else []
                found.append(Instruction(name, tuple(reversed(parts) if intel else parts)))
        return found

    @functools.cached_property
    def loops(self) -> list[Loop]:
        """Innermost loops: from a branch back to its label, with no such loop inside."""
        code = self.instructions
        at = {x: i for i, x in enumerate(code) if isinstance(x, str)}
        spans = {
            (at[target], i) for i, x in enumerate(code)
            if isinstance(x, Instruction) and re.match(r"j|b\b|b\.|cbn?z|tbn?z", x.name)
            for target in x.operands if at.get(target, i) < i
        }  # fmt: skip
        inner = [(a, b) for a, b in spans
                 if not any((c, d) != (a, b) and a <= c and d <= b for c, d in spans)]  # fmt: skip
        return [Loop(tuple(x for x in code[a:b] if isinstance(x, Instruction)))
                for a, b in sorted(inner)]  # fmt: skip


def translated(kernel: Kernel, machine: Machine, name: str = "kernel") -> Translated:
    """The kernel as the compiler would make it on that machine."""
    plan = heuristic.schedule(kernel, machine)
    rendered = llvm.render(lower(plan), {}, name, machine.masked, machine.dot)
    text = native.assembly(rendered.source, machine)
    blob = native.compile_object(rendered.source, machine)
    return Translated(machine, plan, text, blob, rendered.scratch)


# --- running it -----------------------------------------------------------------------------------

_LINKER, _EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"

# Reads the arguments' sizes and bytes, runs each kernel over its grid, writes all arguments back.
_MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef void kernel_t(void **, long *, long, long, char *);
extern kernel_t KERNELS;
int main(int count, char **given) {
  static void *buffers[64];
  static long sizes[64];
  long n = 0, grids[] = { GRIDS }, uses[][16] = { USES };
  kernel_t *kernels[] = { KERNELS };
  FILE *file = fopen(given[1], "rb");
  for (; fread(&sizes[n], 8, 1, file) == 1; n++) {
    buffers[n] = aligned_alloc(64, (sizes[n] + 127) & -64L);
    if (fread(buffers[n], 1, sizes[n], file) != (size_t)sizes[n]) return 2;
  }
  fclose(file);
  for (int k = 0; k < (int)(sizeof grids / sizeof *grids); k++) {
    void *args[16];
    for (int i = 0; i < 16; i++) args[i] = buffers[uses[k][i]];
    kernels[k](args, 0, 0, grids[k], aligned_alloc(64, SCRATCH));
  }
  file = fopen(given[1], "wb");
  for (long i = 0; i < n; i++) fwrite(buffers[i], 1, sizes[i], file);
  return fclose(file);
}
"""


def can_run() -> bool:
    return bool(shutil.which(_LINKER) and shutil.which(_EMULATOR))


def run(
    function: Callable[..., Tensor], given: Sequence[np.ndarray], machine: Machine
) -> np.ndarray:
    """A function of tensors, computed by an emulated machine."""
    with config.context(DEVICE="NULL", CHECK=0):
        out = function(*(Tensor.zeros(*x.shape, dtype=x.dtype.name).realize() for x in given))
        graph, _ = parameters((out.node,))
        runs = [(a.kernel.kernel, a.uses) for a in compile_graph(graph, "NULL").actions]
    blocks = {i: x.tobytes() for i, x in enumerate(given)}
    numbers: dict[int, int] = {}  # of the arrays that are no input, by identity
    uses, last = [], 0
    for _, places in runs:
        uses.append([])
        for array in (place.array.root() for place in places):
            number = array.number
            if array.kind != "input":
                number = numbers.setdefault(id(array), len(given) + len(numbers))
                blocks[number] = bytes(array.size * array.dtype.itemsize)
                last = number if array.kind == "output" else last
            uses[-1].append(number)
    made = [translated(kernel, machine, f"kernel{i}") for i, (kernel, _) in enumerate(runs)]
    results = _emulated(made, uses, [blocks[i] for i in range(len(blocks))])
    return np.frombuffer(results[last], out.dtype.numpy).reshape(tuple(out.shape))


def _emulated(
    made: list[Translated], uses: list[list[int]], blocks: list[bytes]
) -> list[bytes]:
    """What lies in these blocks of memory after the kernels ran in turn over those they use."""
    filled = {
        "KERNELS": ", ".join(f"kernel{i}" for i in range(len(made))),
        "GRIDS": ", ".join(str(lower(t.plan).grid) for t in made),
        "USES": ", ".join("{" + ",".join(map(str, u)) + "}" for u in uses),
        "SCRATCH": str(max(t.scratch for t in made) + 4096 & -64),
    }
    text = re.sub("|".join(filled), lambda m: filled[m.group()], _MAIN)
    bits = machine.scale * 128 if (machine := made[0].machine).scale else 128
    cpu = f"max,sve{bits}=on,sve-default-vector-length={bits // 8}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "main.c").write_text(text)
        for i, t in enumerate(made):
            (folder / f"{i}.o").write_bytes(t.blob)
        subprocess.run(
            [_LINKER, "-static", "-O1", "-o", folder / "a.out", folder / "main.c",
             *(folder / f"{i}.o" for i in range(len(made)))], check=True,
        )  # fmt: skip
        file = folder / "data"
        file.write_bytes(b"".join(len(b).to_bytes(8, "little") + b for b in blocks))
        subprocess.run([_EMULATOR, "-cpu", cpu, folder / "a.out", file], check=True)
        data = file.read_bytes()
    ends = list(itertools.accumulate(map(len, blocks), initial=0))
    return [data[a:b] for a, b in zip(ends, ends[1:])]
