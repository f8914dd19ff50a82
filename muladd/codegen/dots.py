"""Products of bytes, neighbours added: DOT as the instructions that a machine has for it.

x86 before VNNI multiplies bytes without a sign by bytes with one and adds two neighbours into 16
bits (vpmaddubsw). As long as the bytes' bounds say that nothing overflows, results of several such
instructions are added in 16 bits too, and widened once (vpmaddwd by ones). Other bytes are widened
first, unless one side is made of 16 bits already.
"""
from __future__ import annotations

from muladd.codegen.llvm_ops import Emitter, Typed
from muladd.ir import Node
from muladd.loop.values import whole_numbers

_MOST = (1 << 15) - 1  # in 16 bits


def emit_dot(n: Node, a: list[Typed], e: Emitter, machine: str) -> str:
    """Instructions for a DOT over operands; gives the result's operand."""
    dot = _Dot(e, a[0].lanes, a[1].lanes // a[0].lanes, machine)
    narrow: list[tuple[str, str, int]] = []  # without a sign, with one, how much it may come to
    total, rest = a[0].name, []
    for i in range(1, len(a), 2):
        pair = dot.fitting((n.srcs[i], a[i].name), (n.srcs[i + 1], a[i + 1].name))
        if pair is None:
            rest.append((a[i], a[i + 1]))
        else:
            narrow.append(pair)
    if narrow:
        total = dot.narrow(total, narrow)
    return dot.wide(total, rest) if rest else total


def _bounds(n: Node) -> tuple[int, int]:
    found = whole_numbers(n)
    assert found is not None, "bytes are whole numbers"
    return found


class _Dot:
    def __init__(self, e: Emitter, lanes: int, group: int, machine: str) -> None:
        self.e, self.lanes, self.group = e, lanes, group
        self.machine = machine if group == 4 else ""
        self.bits = 32 * lanes
        self.result, self.words = f"<{lanes} x i32>", f"<{2 * lanes} x i16>"
        self.bytes = f"<{lanes * group} x i8>"
        known = {"ssse3": 128, "avx2": 256, "avx512": 512, "sdot": 128}
        vnni = machine == "vnni" and self.bits in (128, 256, 512)
        if known.get(machine) != self.bits and not vnni:
            self.machine = ""

    def fitting(self, x: tuple[Node, str], y: tuple[Node, str]) -> tuple[str, str, int] | None:
        """The operands in the order that the machine wants, if it has an instruction for them."""
        if not self.machine or x[0].dtype.bits + y[0].dtype.bits > 16:
            return None
        for (p, u), (q, s) in ((x, y), (y, x)):
            (low, high), (least, most) = _bounds(p), _bounds(q)
            if self.machine == "sdot":
                if high <= 127 and most <= 127:
                    return u, s, 0
            elif low >= 0 and most <= 127:
                much = 2 * high * max(-least, most)
                if self.machine == "vnni" or much <= _MOST:
                    return u, s, much
        return None

    def narrow(self, total: str, pairs: list[tuple[str, str, int]]) -> str:
        if self.machine in ("vnni", "sdot"):
            name = {"vnni": f"llvm.x86.avx512.vpdpbusd.{self.bits}",
                    "sdot": "llvm.aarch64.neon.sdot.v4i32.v16i8"}[self.machine]  # fmt: skip
            for u, s, _ in pairs:
                total = self.e.call(name, self.result, [(self.result, total), (self.bytes, u),
                                                        (self.bytes, s)])  # fmt: skip
            return total
        while pairs:
            sums, much = "", 0
            while pairs and much + pairs[0][2] <= _MOST:
                u, s, more = pairs.pop(0)
                much += more
                found = self.e.call(_PAIRS[self.machine], self.words,
                                    [(self.bytes, u), (self.bytes, s)])  # fmt: skip
                sums = self.e.put(f"add {self.words} {sums}, {found}") if sums else found
            ones = f"<{', '.join(['i16 1'] * (2 * self.lanes))}>"
            total = self.e.put(f"add {self.result} {total}, {self.widened(sums, ones)}")
        return total

    def widened(self, x: str, y: str) -> str:
        """Products of 16 bits, two neighbours added into 32."""
        return self.e.call(_WORDS[self.bits], self.result, [(self.words, x), (self.words, y)])

    def wide(self, total: str, pairs: list[tuple[Typed, Typed]]) -> str:
        """Each byte widened before it is multiplied."""
        if self.machine not in ("", "sdot"):
            return self.halves(total, pairs)
        for x, y in pairs:
            for i in range(self.group):
                places = range(i, self.lanes * self.group, self.group)
                p, q = (self.taken(t, places, self.result) for t in (x, y))
                product = self.e.put(f"mul {self.result} {p}, {q}")
                total = self.e.put(f"add {self.result} {total}, {product}")
        return total

    def taken(self, t: Typed, places: range, kind: str) -> str:
        """What stands at these places, widened to vectors of a kind."""
        n, bits = len(places), t.dtype.bits
        some = self.e.put(f"shufflevector {t.type()} {t.name}, {t.type()} poison, "
                          f"<{n} x i32> <{', '.join(f'i32 {k}' for k in places)}>")  # fmt: skip
        if kind == f"<{n} x i{bits}>":
            return some
        word = "sext" if t.dtype.kind == "i" else "zext"
        return self.e.put(f"{word} <{n} x i{bits}> {some} to {kind}")

    def halves(self, total: str, pairs: list[tuple[Typed, Typed]]) -> str:
        """Half of the bytes at a time as 16 bits; of a lane's two sums one is added at the end."""
        sums = ["", ""]
        for x, y in pairs:
            for h in (0, 1):
                places = range(h * 2 * self.lanes, (h + 1) * 2 * self.lanes)
                p, q = (self.taken(t, places, self.words) for t in (x, y))
                found = self.widened(p, q)
                before = sums[h]
                sums[h] = self.e.put(f"add {self.result} {before}, {found}") if before else found
        for first in (0, 1):
            picked = ", ".join(f"i32 {first + 2 * k}" for k in range(self.lanes))
            part = self.e.put(f"shufflevector {self.result} {sums[0]}, {self.result} {sums[1]}, "
                              f"<{self.lanes} x i32> <{picked}>")  # fmt: skip
            total = self.e.put(f"add {self.result} {total}, {part}")
        return total


_PAIRS = {"ssse3": "llvm.x86.ssse3.pmadd.ub.sw.128", "avx2": "llvm.x86.avx2.pmadd.ub.sw",
          "avx512": "llvm.x86.avx512.pmaddubs.w.512"}  # fmt: skip
_WORDS = {128: "llvm.x86.sse2.pmadd.wd", 256: "llvm.x86.avx2.pmadd.wd",
          512: "llvm.x86.avx512.pmaddw.d.512"}  # fmt: skip
