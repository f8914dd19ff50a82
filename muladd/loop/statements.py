"""The loop language: seven kinds of statement over scalar and vector expressions.

    statement ::= Grid(loops, body)              the chunks of the launch, spread over threads
                | For(loop, start, stop, body)
                | Threads(loop, 0, count, body)  the turns at once, one on each thread of a group
                | If(condition, body, orelse)
                | Store(place, index, value, guard)
                | Prefetch(place, index)         a hint: it will be loaded soon
                | Barrier()                      threads of a group meet (GPUs)
    place     ::= argument number | name of a scratch or register array

Expressions are the language's own nodes of shape () or (lanes,), with RANGE for loop variables and
LOAD for memory: LOAD(arg=place, srcs=(index,) or (index, guard)). A vector index base + IOTA is
a contiguous access.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from muladd.ir import Dim, DType, Node
from muladd.loop.kernel import Kernel, show

Place = int | str


@dataclass(slots=True)
class Grid:
    loops: tuple[Node, ...]
    body: list[Statement]


@dataclass(slots=True)
class For:
    loop: Node
    start: Dim
    stop: Dim
    body: list[Statement]


@dataclass(slots=True)
class Threads(For):
    """A loop whose turns run at once, on the threads of the group that has the chunk."""


@dataclass(slots=True)
class If:
    condition: Node
    body: list[Statement]
    orelse: list[Statement] = field(default_factory=list)


@dataclass(slots=True)
class Store:
    place: Place
    index: Node
    value: Node
    guard: Node | None = None
    nontemporal: bool = False


@dataclass(slots=True)
class Prefetch:
    place: Place
    index: Node  # may lie outside, for nothing is read
    near: bool = True  # into the first cache
    write: bool = False  # to be stored to


@dataclass(slots=True)
class Barrier:
    pass


Statement = Grid | For | If | Store | Prefetch | Barrier


@dataclass(slots=True)
class Array:
    """Memory of the kernel's own: scratch (per thread) or registers (constant indices only)."""

    name: str
    dtype: DType
    count: int  # elements, or registers of `lanes` elements
    lanes: int = 0  # > 0: a register array of vectors (1: of scalars)
    group: bool = False  # shared by the threads of a group


@dataclass(slots=True)
class Lowered:
    """A kernel as loops: what a renderer gets."""

    kernel: Kernel
    body: list[Statement]
    grid: Dim
    arrays: dict[str, Array]

    def text(self) -> str:
        lines: list[str] = []
        _print(self.body, 0, lines)
        return "\n".join(lines)


def _print(body: list[Statement], depth: int, lines: list[str]) -> None:
    pad = "  " * depth
    for s in body:
        if isinstance(s, Grid):
            lines.append(
                f"{pad}grid {' '.join(f'{x.arg.name}<{show(x.arg.extent)}' for x in s.loops)}"
            )
            _print(s.body, depth + 1, lines)
        elif isinstance(s, For):
            word = "threads" if isinstance(s, Threads) else "for"
            lines.append(f"{pad}{word} {s.loop.arg.name} in {show(s.start)}..{show(s.stop)}")
            _print(s.body, depth + 1, lines)
        elif isinstance(s, If):
            lines.append(f"{pad}if {show(s.condition)}")
            _print(s.body, depth + 1, lines)
            if s.orelse:
                lines.append(f"{pad}else")
                _print(s.orelse, depth + 1, lines)
        elif isinstance(s, Store):
            guard = f" if {show(s.guard)}" if s.guard is not None else ""
            lines.append(f"{pad}{s.place}[{show(s.index)}] = {show(s.value)}{guard}")
        elif isinstance(s, Prefetch):
            lines.append(f"{pad}prefetch {s.place}[{show(s.index)}]")
        else:
            lines.append(f"{pad}barrier")
