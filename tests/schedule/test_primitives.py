"""Each directive does what its docstring shows, and plans print as the golden texts say.

The first indented line of a directive's docstring is a call followed by `before -> after`. Here it
is applied to a small kernel and both sides are drawn from the plans. The whole printed plans are
in golden/; MULADD_UPDATE_GOLDEN=1 pytest tests/schedule writes them anew.
"""
from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from muladd import device as devices
from muladd.codegen import llvm, native
from muladd.device import Arg, Launch
from muladd.errors import ScheduleError
from muladd.ir import Node, const, dtype, make, ops, sym
from muladd.loop.bounds import prove
from muladd.loop.kernel import Argument, Kernel, Stage, show
from muladd.loop.lower import lower
from muladd.loop.plan import Plan, plain
from muladd.loop.statements import For, Grid, If, Prefetch, Statement
from muladd.schedule import legal, primitives
from muladd.schedule.primitives import NAMES, apply, loop_named, step

GOLDEN = Path(__file__).parent / "golden"
FLOAT = dtype.float32


def load(argument: int, index: object) -> Node:
    return make(ops.LOAD, (sym.as_node(index),), argument, FLOAT)  # type: ignore[arg-type]


def product(rows: int = 512, columns: int = 48, depth: int = 20) -> Kernel:
    """out[i, j] = sum over k of a[i, k] * b[k, j]."""
    i, j, k = sym.axis("p0", rows), sym.axis("p1", columns), sym.axis("r0", depth)
    at = sym.add(sym.mul(i, columns), j)
    value = make(ops.MUL, (load(0, sym.add(sym.mul(i, depth), k)),
                           load(1, sym.add(sym.mul(k, columns), j))))  # fmt: skip
    stage = Stage("s0", (i, j), value, ops.SUM, (k,), 2, at)
    arguments = (Argument(0, FLOAT, rows * depth), Argument(1, FLOAT, depth * columns),
                 Argument(2, FLOAT, rows * columns, True))  # fmt: skip
    return Kernel((stage,), (i, j), arguments)


def doubled(rows: int = 40, columns: int = 50) -> Kernel:
    """out[i, j] = a[i, j] + a[i, j]."""
    i, j = sym.axis("p0", rows), sym.axis("p1", columns)
    at = sym.add(sym.mul(i, columns), j)
    x = load(0, at)
    stage = Stage("s3", (i, j), make(ops.ADD, (x, x)), argument=1, position=at)
    return Kernel((stage,), (i, j), (Argument(0, FLOAT, rows * columns),
                                     Argument(1, FLOAT, rows * columns, True)))  # fmt: skip


def weighted(rows: int = 13, columns: int = 8, depth: int = 100) -> Kernel:
    """out[i, j] = sum over k of exp(2 a[i, k] - the greatest of them) * b[k, j]."""
    i, j, f, g = (sym.axis(*x) for x in (("p0", rows), ("f3", columns), ("f0", depth),
                                         ("f2", depth)))  # fmt: skip
    h, r, q = sym.axis("f4", columns), sym.axis("r1", depth), sym.axis("r3", depth)

    def read(stage: str, *at: Node) -> Node:
        return make(ops.READ, at, (stage, len(at)), FLOAT)

    scores = make(ops.MUL, (load(0, sym.add(sym.mul(i, depth), f)), const(2.0, FLOAT)))
    less = make(ops.MUL, (read("s1", i), const(-1.0, FLOAT)))
    weight = make(ops.EXP, (make(ops.ADD, (read("s0", i, g), less)),))
    value = make(ops.MUL, (read("s2", i, q), load(1, sym.add(sym.mul(q, columns), j))))
    stages = (
        Stage("s0", (i, f), scores), Stage("s1", (i,), read("s0", i, r), ops.AMAX, (r,)),
        Stage("s2", (i, g), weight), Stage("s3", (i, j), value, ops.SUM, (q,)),
        Stage("s4", (i, h), read("s3", i, h), argument=2, position=sym.add(sym.mul(i, columns), h)),
    )  # fmt: skip
    arguments = (Argument(0, FLOAT, rows * depth), Argument(1, FLOAT, depth * columns),
                 Argument(2, FLOAT, rows * columns, True))  # fmt: skip
    return Kernel(stages, (i,), arguments)


def cut_out(rows: int = 40, columns: int = 50, width: int = 58) -> Kernel:
    """out[i, j] = a[i, j] of an array with longer rows."""
    i, j = sym.axis("p0", rows), sym.axis("p1", columns)
    x = load(0, sym.add(sym.mul(i, width), j))
    stage = Stage("s3", (i, j), x, argument=1, position=sym.add(sym.mul(i, columns), j))
    return Kernel((stage,), (i, j), (Argument(0, FLOAT, rows * width),
                                     Argument(1, FLOAT, rows * columns, True)))  # fmt: skip


def copied(columns: int = 32, depth: int = 20) -> Kernel:
    """c0[j, f] = b[f, j], which s0 then sums along f with the rows of a."""
    i, j = sym.axis("p0", 12), sym.axis("p1", columns)
    f, k = sym.axis("f0", depth), sym.axis("r0", depth)
    copy = Stage("c0", (j, f), load(1, sym.add(sym.mul(f, columns), j)))
    read = make(ops.READ, (j, k), ("c0", 2), FLOAT)
    value = make(ops.MUL, (load(0, sym.add(sym.mul(i, depth), k)), read))
    total = Stage("s0", (i, j), value, ops.SUM, (k,), 2, sym.add(sym.mul(i, columns), j))
    arguments = (Argument(0, FLOAT, 12 * depth), Argument(1, FLOAT, depth * columns),
                 Argument(2, FLOAT, 12 * columns, True))  # fmt: skip
    return Kernel((copy, total), (i, j), arguments)


def filtered(rows: int = 6, columns: int = 40, taps: int = 5, apart: int = 1) -> Kernel:
    """out[i, j] = sum over k of a[i, k] * b[apart j + k]."""
    i, j, k = sym.axis("p0", rows), sym.axis("p1", columns), sym.axis("r0", taps)
    value = make(ops.MUL, (load(0, sym.add(sym.mul(i, taps), k)),
                           load(1, sym.add(sym.mul(j, apart), k))))  # fmt: skip
    stage = Stage("s0", (i, j), value, ops.SUM, (k,), 2, sym.add(sym.mul(i, columns), j))
    arguments = (Argument(0, FLOAT, rows * taps),
                 Argument(1, FLOAT, apart * (columns - 1) + taps),
                 Argument(2, FLOAT, rows * columns, True))  # fmt: skip
    return Kernel((stage,), (i, j), arguments)


def of_bytes(rows: int = 3, columns: int = 16) -> Kernel:
    """out[i, j] = sum over k of int32(a[i, k]) * int32(b[j, k]), bytes."""
    i, j, k = sym.axis("p0", rows), sym.axis("p1", columns), sym.axis("r0", 4)
    def wide(argument: int, axis: Node) -> Node:
        x = make(ops.LOAD, (sym.as_node(sym.add(sym.mul(axis, 4), k)),), argument, dtype.int8)
        return make(ops.CAST, (x,), None, dtype.int32)

    at, value = sym.add(sym.mul(i, columns), j), make(ops.MUL, (wide(0, i), wide(1, j)))
    stage = Stage("s0", (i, j), value, ops.SUM, (k,), 2, at)
    return Kernel((stage,), (i, j), (Argument(0, dtype.int8, rows * 4),
                                     Argument(1, dtype.int8, columns * 4),
                                     Argument(2, dtype.int32, rows * columns, True)))  # fmt: skip


# --- drawing plans as the docstrings do ----------------------------------------------------------


def names(loops: tuple[Node, ...]) -> str:
    return " ".join(x.arg.name for x in loops)


def leaves_of_p0(plan: Plan) -> str:
    axis = next(a for a in plan.leaves if a.arg.name == "p0")
    return "  ".join(f"{x.loop.arg.name}<{x.extent}" for x in plan.leaves[axis])


def nest_of_s0(plan: Plan) -> str:
    return f"s0: {names(plan.nests['s0'])}"


def outer_and_nest(plan: Plan) -> str:
    return f"{names(plan.outer)} {{ {nest_of_s0(plan)} }}" if plan.outer else nest_of_s0(plan)


def grid(plan: Plan) -> str:
    inside = "{ ... }"
    if plan.outer[plan.parallel :]:
        inside = f"{names(plan.outer[plan.parallel :])} {inside}"
    if plan.parallel:
        braces = inside if inside.startswith("{") else f"{{ {inside} }}"
        inside = f"grid {names(plan.outer[: plan.parallel])} {braces}"
    return inside


def stages_in_loops(plan: Plan) -> str:
    inside = ""
    for depth in reversed(range(len(plan.outer) + 1)):
        here = [s.name for s in plan.kernel.stages if plan.levels[s.name] == depth]
        inside = "; ".join([*here, *([inside] if inside else [])])
        if depth:
            inside = f"{plan.outer[depth - 1].arg.name} {{ {inside} }}"
    return inside


def buffer_of_c0(plan: Plan) -> str:
    order = (plan.layouts or {}).get("c0")
    if order is None:
        axes = plan.kernel.stage("c0").axes
        order = tuple(x.loop for a in axes for x in plan.leaves[a]
                      if x.loop in plan.nests["c0"])  # fmt: skip
    return "c0[" + ", ".join(x.arg.name for x in order) + "]"


def collapsed(plan: Plan) -> str:
    stage = plan.kernel.stages[0]
    index = stage.loads()[0].srcs[0]
    axes = ", ".join(a.arg.name for a in stage.axes)
    extents = ", ".join(f"{a.arg.name}<{a.arg.extent}" for a in stage.axes)
    return f"out[{axes}] = b0[{show(index)}] ({extents})"


def loop_of(name: str) -> Callable[[Plan], str]:
    return lambda plan: next(part for line in plan.text().splitlines() for part in line.split()
                             if re.match(rf"{re.escape(name)}<", part))  # fmt: skip


def stage_texts(plan: Plan) -> str:
    return " | ".join(line.split(" over")[0].split(" ->")[0]
                      for line in plan.kernel.text().splitlines() if re.match(r"[cdsz]\d\[", line))


@dataclass(frozen=True)
class Example:
    """A kernel, the directives before the one shown, and how a plan is drawn.

    before and after are given where the docstring shows loops and not plans.
    """

    kernel: Callable[[], Kernel]
    setup: tuple[str, ...]
    draw: Callable[[Plan], str]
    before: str | None = None
    after: str | None = None


_TILES = ("split p0 6", "split p1 2 8")
EXAMPLES = {
    "split": Example(product, (), leaves_of_p0),
    "outer": Example(product, ("split p0 6", "split p1 8", "outer"), outer_and_nest),
    "nest": Example(product, (*_TILES, "outer p0.0 p1.0", "unroll s0 p0.1 p1.1", "vector p1.2",
                              "nest s0 p0.1 p1.1 p1.2 r0"), nest_of_s0),
    "parallel": Example(product, ("split p0 6", "split p1 8", "outer p0.0 p1.0", "parallel 0"),
                        grid),
    "at": Example(copied, ("split p0 6", "split p1 8", "outer p1.0 p0.0"), stages_in_loops),
    "layout": Example(copied, ("split p1 2 8", "outer p1.0 p0", "parallel 1", "at c0 1",
                               "nest c0 p1.1 p1.2 f0"), buffer_of_c0),
    "collapse": Example(doubled, (), collapsed,
                        "out[p0, p1] = b0[((p0 * 50) + p1)] (p0<40, p1<50)",
                        "out[p0] = b0[p0] (p0<2000)"),
    "merge": Example(cut_out, (), collapsed,
                     "out[p0, p1] = b0[((p0 * 58) + p1)] (p0<40, p1<50)",
                     "out[p0] = b0[(((p0 / 50) * 58) + (p0 % 50))] (p0<2000)"),
    "vector": Example(doubled, ("split p1 2 8", "outer p0 p1.0"), loop_of("p1.2"), "p1.2<8",
                      "p1.2<8*v"),
    "unroll": Example(doubled, ("split p0 2", "outer p0.0"), loop_of("p0.1"), "p0.1<2",
                      "p0.1<2*u"),
    "dot": Example(of_bytes, ("split p1 8", "outer p0 p1.0", "vector p1.1"), loop_of("r0"), "r0<4",
                   "r0<4*d"),
    "bind": Example(doubled, ("split p1 8", "outer p0 p1.0"), loop_of("p1.1"), "p1.1<8",
                    "p1.1<8*t"),
    "nontemporal": Example(doubled, (), lambda plan: plan.text().splitlines()[-1], "s3 at 2:",
                           "s3 at 2:  nontemporal"),
    "ahead": Example(doubled, (), lambda plan: plan.text().splitlines()[-1], "s3 at 2:",
                     "s3 at 2:  ahead p0+8"),
    "prefetch": Example(copied, ("split p1 8", "outer p1.0 p0", "parallel 1", "at c0 1"),
                        lambda plan: plan.text().splitlines()[-1], "s0 at 2: p1.1<8 r0<20",
                        "s0 at 2: p1.1<8 r0<20 prefetch c0 p1.0"),
    "claim": Example(product, (), lambda plan: plan.text().splitlines()[-1], "s0 at 2: r0<20",
                     "s0 at 2: r0<20 claim s0"),
    "abreast": Example(
        weighted,
        ("split f0 4 8", "split r1 32", "split f2 4 8", "split r3 32", "nest s3 r3.0 f3 r3.1"),
        lambda plan: " ".join(line.split(" at ")[0] + ":" + line.split(": ")[1]
                              for line in plan.text().splitlines() if line[0] == "s"),
        "s0:f0.0<4 f0.1<4 f0.2<8 s1:r1.0<4 r1.1<32 s2:f2.0<4 f2.1<4 f2.2<8 "
        "s3:r3.0<4 f3<8 r3.1<32 s4:f4<8",
        "s0:f0.1<4 f0.2<8 s1:r1.1<32 s2:f2.1<4 f2.2<8 s3:r3.0<4 f3<8 r3.1<32 s4:f4<8",
    ),
    "keep": Example(
        product, (), stage_texts,
        "s0[p0<512, p1<48] float32 += (b0:float32[((p0 * 20) + r0)] * "
        "b1:float32[(p1 + (r0 * 48))])",
        "s0[p0<512, p1<48] float32 += (b0:float32[((p0 * 20) + r0)] * "
        "b1:float32[(p1 + (r0 * 48))]) | d0[p0<512, p1<48] float32 = s0[p0, p1]",
    ),
    "unsigned": Example(
        of_bytes, (), stage_texts,
        "s0[p0<3, p1<16] int32 += (cast.int32(b0:int8[((p0 * 4) + r0)]) * "
        "cast.int32(b1:int8[((p1 * 4) + r0)]))",
        "z0[p0<3] int32 += cast.int32(b0:int8[((p0 * 4) + z0.r0)]) | "
        "s0[p0<3, p1<16] int32 += (cast.int32(b0:int8[((p0 * 4) + r0)]) * "
        "cast.int32((bitcast.uint8(b1:int8[((p1 * 4) + r0)]) ^ 128:uint8))) | "
        "d0[p0<3, p1<16] int32 = (s0[p0, p1] + (z0[p0] * -128:int32))",
    ),
    "inline": Example(of_bytes, ("split p1 8", "outer p0 p1.0", "vector p1.1"), loop_of("r0"),
                      "r0<4", "r0<4*i"),
    "slide": Example(
        filtered, ("copy s0 right c0",), stage_texts,
        "c0[p1<40, c0.r0<5] float32 = b1:float32[(c0.r0 + p1)] | "
        "s0[p0<6, p1<40] float32 += (b0:float32[((p0 * 5) + r0)] * c0[p1, r0])",
        "c0[c0.p1<44] float32 = b1:float32[c0.p1] | "
        "s0[p0<6, p1<40] float32 += (b0:float32[((p0 * 5) + r0)] * c0[(p1 + r0)])",
    ),
    "copy": Example(
        product, (), stage_texts,
        "s0[p0<512, p1<48] float32 += (b0:float32[((p0 * 20) + r0)] * "
        "b1:float32[(p1 + (r0 * 48))])",
        "c0[p1<48, c0.r0<20] float32 = b1:float32[((c0.r0 * 48) + p1)] | "
        "s0[p0<512, p1<48] float32 += (b0:float32[((p0 * 20) + r0)] * c0[p1, r0])",
    ),
}  # fmt: skip


def shown(name: str) -> tuple[str, str, str]:
    """(directive, before, after) of the docstring's first example."""
    doc = primitives.directive(name).__doc__
    block = re.search(r"^ {4}(\S.*(?:\n {5,}\S.*)*)", doc, re.M)
    assert block, f"{name}.py shows no example"
    text = block.group(1)
    words = re.match(rf"({name}(?: \S+)+?)\s{{2,}}", text)
    assert words, f"the example of {name} is a call, two spaces, before -> after"
    before, arrow, after = text[words.end() :].partition("->")
    assert arrow, f"the example of {name} has no ->"
    return words.group(1), " ".join(before.split()), " ".join(after.split())


def check(name: str, text: str) -> None:
    """A text against its golden file; MULADD_UPDATE_GOLDEN=1 writes the file."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("MULADD_UPDATE_GOLDEN"):
        path.write_text(text + "\n")
    assert path.exists(), f"no {path.name}; MULADD_UPDATE_GOLDEN=1 writes it"
    assert text + "\n" == path.read_text(), "MULADD_UPDATE_GOLDEN=1 takes the new text over"


def plans(name: str) -> tuple[Plan, Plan]:
    example = EXAMPLES[name]
    before = apply(example.kernel(), example.setup)
    return before, step(before, shown(name)[0])


def test_every_directive_has_an_example():
    assert set(EXAMPLES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_directive_does_what_its_docstring_shows(name):
    example = EXAMPLES[name]
    before, after = plans(name)
    _, told_before, told_after = shown(name)
    squeeze = lambda text: " ".join(text.split())  # noqa: E731
    assert squeeze(example.draw(before)) == squeeze(example.before or told_before)
    assert squeeze(example.draw(after)) == squeeze(example.after or told_after)


@pytest.mark.parametrize("name", NAMES)
def test_plans_print_as_before(name):
    before, after = plans(name)
    told = [*EXAMPLES[name].setup, f"-- {shown(name)[0]}"]
    check(name, "\n".join([*told, "", before.text(), "->", after.text()]))


@pytest.mark.parametrize("name", NAMES)
def test_a_directive_changes_no_result(name):
    """What a kernel computes is the same under the plans before and after."""
    rng = np.random.default_rng(0)
    before, after = plans(name)
    kernel = EXAMPLES[name].kernel()
    inputs = [rng.standard_normal(a.size).astype(np.float32) for a in kernel.arguments]
    np.testing.assert_allclose(run(before, inputs), run(after, inputs), rtol=1e-5, atol=1e-5)


def run(plan: Plan, inputs: list[np.ndarray]) -> np.ndarray:
    """The written argument of a kernel computed under a plan."""
    place = devices.get("CPU")
    lowered = lower(plan)
    rendered = llvm.render(lowered, {})
    handle = place.load(native.compile_object(rendered.source, place.machine), rendered.name)
    buffers = [place.allocate(a.nbytes) for a in inputs]
    for buffer, array in zip(buffers, inputs):
        place.copy_in(buffer, array)
    launch = Launch(handle, tuple(map(Arg, range(len(inputs)))), lowered.grid, "kernel")
    place.program((launch,), len(inputs), rendered.scratch).run(buffers)
    out = np.empty_like(inputs[-1])
    place.copy_out(buffers[-1], out)
    return out


@pytest.mark.parametrize("apart", [1, 2, 3])
@pytest.mark.parametrize("taps", [4, 5, 7])
@pytest.mark.parametrize("columns", [1, 40, 53])
def test_windows_slide_over_what_a_block_of_them_needs(columns, taps, apart):
    """Windows any number of places apart, their copy made whole, or for each block of them anew,
    and with places in lanes; the last block overhangs."""
    kernel = filtered(6, columns, taps, apart)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(a.size).astype(np.float32) for a in kernel.arguments]
    right = run(plain(kernel), inputs)
    slid = ("copy s0 right c0", "slide c0 p1 c0.r0", "split p1 2 8", "split c0.p1 8")
    nest = "nest s0 p1.1 r0 p1.2"
    own = "c0.p1.phase c0.p1.0 c0.p1.1" if apart > 1 else "c0.p1.0 c0.p1.1"
    for around in (("outer p0 p1.0", "parallel 1", "at c0 1"), ("outer p1.0 p0", "parallel 1"),
                   ("outer p1.0 p0", "parallel 1", "at c0 1")):  # fmt: skip
        plan = apply(kernel, (*slid, *around, nest, "vector s0 p1.2", f"nest c0 {own}",
                              f"layout c0 {own}", "vector c0 c0.p1.1"))  # fmt: skip
        prove(lower(plan))
        np.testing.assert_allclose(run(plan, inputs), right, rtol=1e-5, atol=1e-5)
    assert plan.text().count("c0 at 1")


def test_what_does_not_overlap_does_not_slide():
    plan = apply(filtered(6, 40, 3, 3), ("copy s0 right c0",))
    with pytest.raises(ScheduleError, match="do not overlap"):
        step(plan, "slide c0 p1 c0.r0")


_BLOCKS = ("copy s0 right c0", "copy s0 left c1", "keep s0 d0", "split p0 5 6", "split p1 2 3 8",
           "split r0 7", "split c0.r0 7", "split c1.r0 7", "outer p1.0 p0.0",
           "nest s0 r0.0 p1.1 p0.1 r0.1 p0.2 p1.2 p1.3", "unroll s0 p0.2 p1.2",
           "layout s0 p1.1 p0.1 p0.2 p1.2 p1.3", "at c0 r0.0", "nest c0 c0.r0.1 p1.1 p1.2 p1.3",
           "at c1 r0.0", "vector s0 p1.3", "vector c0 p1.3",
           "ahead c0 c0.r0.1 3", "ahead c1 c1.r0.1 8")  # fmt: skip


def prefetches(body: list[Statement]) -> list[Prefetch]:
    within = {Grid: ("body",), For: ("body",), If: ("body", "orelse")}
    inner = [p for s in body for x in within.get(type(s), ()) for p in prefetches(getattr(s, x))]
    return inner + [s for s in body if isinstance(s, Prefetch)]


def turned(rows: int, columns: int, depth: int) -> Kernel:
    """out[i, j] = sum over k of a[i, k] * b[j, k]."""
    kernel = product(rows, columns, depth)
    (s,), (_, j), (k,) = kernel.stages, kernel.shared, kernel.stages[0].reduced
    value = make(ops.MUL, (s.value.srcs[0], load(1, sym.add(sym.mul(j, depth), k))))
    return replace(kernel, stages=(replace(s, value=value),))


@pytest.mark.parametrize("shape", [(12, 48, 32), (13, 45, 33), (2, 64, 5)])
def test_a_sum_asks_for_the_panel_after_its_own(shape):
    """All of it, in order, and little besides; what is computed stays the same."""
    kernel = turned(*shape)
    rows, columns, depth = shape
    text = ("copy s0 right c0", "split p1 8", "outer p1.0 p0", "parallel 1", "at c0 1",
            "nest s0 r0 p1.1", "vector s0 p1.1")  # fmt: skip
    plan = apply(kernel, (*text, "prefetch s0 c0 p1.0"))
    legal.check(plan, plan.kernel)
    asked = prefetches(lower(plan).body)
    assert asked and all(s.place == 1 and not s.near for s in asked)
    panel, row, term = (loop_named(plan, x) for x in ("p1.0", "p0", "r0"))
    each = -(-8 // rows)  # elements for each of the terms of all rows
    for s in asked:  # of whole panels, and of the last one where it is less
        found = [sym.replace(sym.as_dim(s.index), {panel: 3, row: i, term: k})
                 for i in range(rows) for k in range(depth)]  # fmt: skip
        assert found == [4 * 8 * depth + each * n for n in range(rows * depth)]
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(a.size).astype(np.float32) for a in kernel.arguments]
    assert (run(plan, inputs) == run(apply(kernel, text), inputs)).all()


@pytest.mark.parametrize("shape", [(32, 48, 20), (33, 45, 21), (24, 640, 5), (10, 8, 64)])
def test_a_sum_asks_for_the_rows_after_its_own(shape):
    """All of the next tile, in order, and at most as much again; the sum stays the same."""
    kernel = product(*shape)
    rows, columns, depth = shape
    text = ("copy s0 right c0", "split p0 4", f"split p1 {-(-columns // 8)} 8", "outer p1.0 p0.0",
            "parallel 1", "at c0 1", "nest s0 p1.1 r0 p0.1 p1.2", "unroll s0 p0.1",
            "vector s0 p1.2")  # fmt: skip
    plan = apply(kernel, (*text, "prefetch s0 s0 p0.0"))
    legal.check(plan, plan.kernel)
    asked = prefetches(lower(plan).body)
    assert asked and all(s.place == 0 and not s.near and not s.write for s in asked)
    tile, panel, term = (loop_named(plan, x) for x in ("p0.0", "p1.1", "r0"))
    panels = -(-columns // 8)
    found = [sym.replace(sym.as_dim(asked[0].index), {tile: 1, panel: j, term: k})
             for j in range(panels) for k in range(depth)]  # fmt: skip
    assert found == sorted(found) and found[0] == 2 * 4 * depth
    apart = {b - a for a, b in zip(found, found[1:])}
    assert max(apart) <= 4 and max(found) + max(apart) >= 3 * 4 * depth > max(found) - 4 * depth
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(a.size).astype(np.float32) for a in kernel.arguments]
    assert (run(plan, inputs) == run(apply(kernel, text), inputs)).all()


@pytest.mark.parametrize(("lanes", "apart"), [(4, 16), (8, 16), (16, 16), (32, 32)])
def test_lines_of_results_are_asked_for_once(lanes, apart):
    """Before the sum starts, every line of the tile, whatever the width of a vector."""
    lines = ("split p0 2", f"split p1 {64 // lanes} {lanes}", "outer p1.0 p0.0",
             "nest s0 r0 p0.1 p1.1 p1.2", "unroll s0 p0.1 p1.1", "vector s0 p1.2")  # fmt: skip
    kernel = product(40, 128)
    plan = apply(kernel, (*lines, "claim s0 s0"))
    asked = prefetches(lower(plan).body)
    assert all(s.place == 2 and s.write for s in asked)
    at = {loop_named(plan, "p1.0"): 1, loop_named(plan, "p0.0"): 3}
    found = [sym.replace(sym.as_dim(s.index), at) for s in asked]
    assert found == [row * 128 + 64 + k for row in (6, 7) for k in range(0, 64, apart)]
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(a.size).astype(np.float32) for a in kernel.arguments]
    assert (run(plan, inputs) == run(apply(kernel, lines), inputs)).all()


def test_lines_of_several_results_of_a_sum_are_asked_for():
    kernel = product(40, 128)
    (s,), (i, j) = kernel.stages, kernel.shared
    twice = make(ops.READ, (i, j), ("s0", 2), FLOAT)
    other = Stage("s1", (i, j), make(ops.ADD, (twice, twice)), argument=3, position=s.position)
    both = replace(kernel, stages=(s, other), _memo={},
                   arguments=(*kernel.arguments, Argument(3, FLOAT, 40 * 128, True)))  # fmt: skip
    plan = apply(both, ("split p1 16", "outer p1.0 p0", "nest s0 r0 p1.1", "vector s0 p1.1",
                        "vector s1 p1.1", "claim s0 s0", "claim s0 s1"))  # fmt: skip
    assert [x.place for x in prefetches(lower(plan).body)] == [2, 3]


def test_panels_in_pieces_are_not_asked_for():
    lines = (*EXAMPLES["prefetch"].setup, "prefetch s0 c0 p1.0")
    plan = apply(copied(), lines)
    assert not prefetches(lower(plan).body)
    with pytest.raises(ScheduleError, match="c0 must be a sum"):
        apply(copied(), (*EXAMPLES["prefetch"].setup, "prefetch c0 s0 p1.0"))


@pytest.mark.parametrize("shape", [(512, 48, 20), (61, 97, 21), (5, 7, 3), (30, 48, 7)])
def test_a_sum_in_blocks_is_the_sum(shape):
    """Partial results wait in the kernel, copies are made for each block, and nothing is whole:
    the terms are added in the same order, so not a bit differs."""
    kernel = product(*shape)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(a.size).astype(np.float32) for a in kernel.arguments]
    plain = apply(kernel, ())
    assert (run(plain, inputs) == run(apply(kernel, _BLOCKS), inputs)).all()


def test_what_is_asked_for_past_the_end_of_a_panel_is_what_follows_it():
    """It used to wrap to the panel's begin, with a remainder to calculate in the innermost loop."""
    plan = apply(product(64, 48, 40), (*_BLOCKS, "ahead s0 r0.1 5"))
    asked = [x for x in prefetches(lower(plan).body) if x.place == "c0"]
    assert asked
    block, panel, term = (loop_named(plan, x) for x in ("r0.0", "p1.1", "r0.1"))
    for x in asked[:3]:
        found = [sym.replace(sym.as_dim(x.index), {block: 2, panel: 0, term: k}) for k in range(7)]
        (apart,) = {b - a for a, b in zip(found, found[1:])}
        assert apart > 0 and found[0] % apart == 0 and found[0] >= 5 * apart


def test_partial_results_need_a_place():
    plan = apply(product(), ("split r0 4", "outer", "nest s0 r0.0 p0 p1 r0.1"))
    with pytest.raises(ScheduleError, match="`keep` the stage first"):
        lower(plan)


# --- misuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize("line, told", [
    ("fuse p0 p1", "no directive 'fuse'"),
    ("split p9 4", "no loop 'p9'"),
    ("split p0 x", "cannot be applied"),
    ("split", "expected split LOOP FACTOR"),
    ("", "no directive ''"),
    ("claim s0", "expected claim STAGE WRITER"),
    ("prefetch s0 s0 p0 4", "expected prefetch STAGE READER LOOP"),
    ("ahead s0 p0 0", "given 0 turns, expected 1 or more"),
    ("copy s0 right s0", "there is a stage s0 already"),
    ("keep s0 s0", "there is a stage s0 already"),
    ("outer r0", "no loop of a shared axis"),
    ("parallel 3", "of 2 outer loops"),
    ("at s9 1", "no stage 's9'"),
    ("at s0 7", "level 7"),
    ("nest s0 p0", "has the loops"),
    ("vector r0", "power of two"),
    ("unroll p0", "512 turns"),
    ("inline", "expected inline [STAGE] LOOP..."),
    ("inline p0", "inline: p0 is no serial loop around, for it is in the grid or a stage's own"),
    ("inline s0 p0", "inline: p0 is no serial loop of s0"),
    ("inline s9 p0", "inline: no stage or loop 's9'; there are s0, p0"),
    ("copy s0 middle c0", "side"),
    ("collapse p0 p1", "not one axis"),
    ("merge p0 r0", "not one axis"),
    ("nontemporal s9", "no stage 's9'"),
    ("ahead s0 p9 4", "no loop 'p9'"),
    ("ahead s0 p0 x", "cannot be applied"),
    ("prefetch s0 s0 p9", "no loop 'p9'"),
    ("prefetch s0 s9 p0", "no stage 's9'"),
    ("claim s0 s9", "no stage 's9'"),
    ("abreast s0 p0 s0", "not the outermost loop of a sum"),
    ("layout s9 p0", "no stage 's9'"),
])  # fmt: skip
def test_a_directive_that_does_not_fit_says_why(line, told):
    with pytest.raises(ScheduleError, match=re.escape(told)):
        apply(product(), (line,))


@pytest.mark.parametrize("first, then", [
    ("r0 3", "r0.1 2"), ("p0 8", "p0.1 3"), ("p1 4 6", "p1.2 4"),
])  # fmt: skip
def test_an_inner_loop_is_split_by_what_divides_it(first, then):
    """Lowering bounds an axis by its outermost loop: an overhang further in would run past it."""
    with pytest.raises(ScheduleError, match="expected factors whose product divides"):
        apply(product(), (f"split {first}", f"split {then}"))


def test_tiles_of_a_line_can_be_written_out_around_all_stages():
    lines = ("split p1 16", "outer p0 p1.0", "parallel 1", "vector p1.1")
    before, after = (apply(product(), x) for x in (lines, (*lines, "inline p1.0")))
    assert "loop p1.0<3*i" in after.text()
    inputs = [np.random.default_rng(0).standard_normal(a.size).astype(np.float32)
              for a in product().arguments]  # fmt: skip
    np.testing.assert_array_equal(run(before, inputs), run(after, inputs))


@pytest.mark.parametrize("lines, told", [
    (("split p0 4", "unroll p0.1"), "unroll: p0.1 is no loop of s0, but around"),
    (("copy s0 right c0", "prefetch s0 c0 p0"), "what c0 loads is the same in all turns of p0"),
])  # fmt: skip
def test_a_directive_that_would_do_nothing_says_so(lines, told):
    with pytest.raises(ScheduleError, match=re.escape(told)):
        apply(product(), lines)


def test_a_copy_made_in_its_readers_turns_may_be_asked_for():
    """Its loads move with an axis of its own, not with the reader's."""
    plan = apply(turned(512, 48, 20), (
        "copy s0 right c0", "keep s0 d0", "split r0 5", "split c0.r0 5", "split p1 8",
        "outer p1.0 p0", "at s0 2", "at c0 2", "at d0 2", "nest s0 r0.0 p1.1 r0.1",
        "abreast s0 r0.0 c0", "prefetch s0 c0 r0.0",
    ))  # fmt: skip
    assert prefetches(lower(plan).body)


def test_axes_are_one_though_numbers_are_divided():
    """A quotient of what is loaded takes no axis apart, one of the axis does."""
    kernel = doubled()
    (s,), (i, j) = kernel.stages, kernel.shared
    divided = make(ops.DIV, s.value.srcs)
    plan = apply(replace(kernel, stages=(replace(s, value=divided),)), ("collapse p0 p1",))
    assert [a.arg.extent for a in plan.kernel.shared] == [2000]
    row = load(0, sym.add(sym.mul(i, 64), j))
    with pytest.raises(ScheduleError, match="not one axis"):
        apply(replace(kernel, stages=(replace(s, value=row),)), ("collapse p0 p1",))


def test_loops_are_found_by_name():
    plan = apply(product(), ("split p0 6",))
    assert loop_named(plan, "p0.1").arg.extent == 6
