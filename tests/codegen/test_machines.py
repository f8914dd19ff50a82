"""Machines that are not at hand: schedules come from their description, and assemble to good code.

A kernel is scheduled, lowered and translated for each kind of machine, and what its innermost loops
do is counted: accumulators, vectors as wide as the machine's, nothing on the stack, no lane alone.
"""
from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from support.machine_code import Instruction, Loop, Translated, can_run, kernels, run, translated

from muladd import Tensor, config
from muladd.codegen import native
from muladd.compile import roofline
from muladd.device import Machine

KINDS = ["avx2", "avx512", "zen4", "sapphire rapids", "neon", "apple", "sve", "sve128"]
WIDE = {"avx2": "ymm", "avx512": "zmm", "zen4": "zmm", "sapphire rapids": "zmm", "sve": "z"}


def zeros(*shape: int, dtype: str = "float32") -> Tensor:
    return Tensor.zeros(*shape, dtype=dtype, device="NULL").realize()


def product(d: str, n: int = 512) -> Callable[[], Tensor]:
    return lambda: zeros(n, n, dtype=d) @ zeros(n, n, dtype=d)


def convolution(channels: int, out: int, size: int, k: int, stride: int) -> Callable[[], Tensor]:
    return lambda: zeros(1, channels, size, size).conv2d(
        zeros(out, channels, k, k), padding=k // 2, stride=stride
    )


def attention() -> Tensor:
    q, k, v = (zeros(1, 4, 512, 64) for _ in range(3))
    return q.scaled_dot_product_attention(k, v, is_causal=True)


PRODUCTS: dict[str, Callable[[], Tensor]] = {
    "float32": product("float32"),
    "float64": product("float64"),
    "float16": product("float16"),
    "bfloat16": product("bfloat16"),
    "odd sizes": lambda: zeros(333, 500) @ zeros(500, 777),
    "transposed": lambda: zeros(1024, 512).T @ zeros(1024, 512),
    "bias and gelu": lambda: (zeros(512, 512) @ zeros(512, 512) + zeros(512)).gelu(),
    "convolution 3x3": convolution(64, 64, 56, 3, 1),
    "convolution 3x3 of 14": convolution(128, 128, 14, 3, 1),
    "convolution 7x7 stride 2": convolution(3, 64, 112, 7, 2),
    "narrow images": lambda: zeros(32, 32, 24, 22).conv2d(zeros(32, 32, 5, 5)).relu(),
    "narrow images, padded": lambda: zeros(32, 16, 9, 9).conv2d(zeros(32, 16, 3, 3), padding=1),
    "attention": attention,
}
ROWS: dict[str, Callable[[], Tensor]] = {
    "softmax": lambda: zeros(1024, 1024).softmax(-1),
    "softmax of odd rows": lambda: zeros(1000, 1003).softmax(-1),
    "layer norm": lambda: zeros(1024, 1024).layernorm(axis=-1),
    "sum": lambda: zeros(1024, 1024).sum(),
    "sum of rows": lambda: zeros(1024, 1024).sum(1),
    "sum of columns": lambda: zeros(1024, 1024).sum(0),
    "maximum": lambda: zeros(1024, 1024).amax(1),
    "multiply and add": lambda: zeros(1 << 20) * zeros(1 << 20) + zeros(1 << 20),
    "gelu": lambda: zeros(1 << 20).gelu(),
    "row by matrix": lambda: zeros(1, 1024) @ zeros(1024, 1024),
    "float16": lambda: zeros(1 << 20, dtype="float16").exp(),
}


def whole(x: Instruction, machine: Machine, kind: str) -> bool:
    """Whether an instruction computes on a vector as wide as the machine's."""
    text = " ".join((x.name, *x.operands))
    if kind in WIDE:
        return bool(re.search(rf"\b{WIDE[kind]}\d", text)) or "%" + WIDE[kind] in text
    return bool(re.search(r"\bv\d+\.(4s|2d|8h|16b)|\.(4s|2d|8h|16b)\b|\bz\d", text))


def tiles(t: Translated) -> list[int]:
    """The results that each product or sum of products keeps in registers."""
    plan = t.plan
    return [prod(x.arg.extent for x in plan.nests[s.name] if plan.unrolls(s, x))
            for s in plan.kernel.stages if s.reduced and len(s.axes) > 1]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_tile_of_sums_is_multiply_adds_on_whole_vectors_in_registers(name, kind):
    machine = Machine.named(kind)
    with config.context(WINOGRAD=0):  # a convolution's own loops
        found = kernels(PRODUCTS[name])
    for kernel in found:
        t = translated(kernel, machine)
        most = max(tiles(t))
        assert 8 <= most < machine.vector_registers
        if t.plan.inline:  # one turn after the other: registers may take turns as results
            taps = prod(x.arg.extent for of, x in t.plan.inline if of)
            tiles_of_lines = [most * taps]
            if name.endswith("padded"):  # 3 taps of 9 places and one of padding on either side
                (rows,) = (x.arg.extent for x in t.plan.nests["s0"] if x.arg.name == "p3.2")
                tiles_of_lines = [
                    sum(0 < x + k < 10 for x in range(start, start + rows) for k in range(3))
                    * (most // rows) for start in range(0, 9, rows)
                ]  # fmt: skip
            written = [x for x in t.loops if sum(y.fused for y in x.body) in tiles_of_lines]
            assert len(written) >= len(tiles_of_lines)  # and more for last turns of a split
            for hot in written:
                assert not hot.spilled
                assert all(whole(x, machine, kind) for x in hot.body if x.fused)
            continue
        hot = [x for x in t.loops if sum(y.fused for y in x.body) >= 8 and x.accumulators]
        assert hot, t.assembly
        for loop in hot:
            sums = loop.accumulators
            # an epilogue's polynomials may have some numbers too many for the registers
            assert len(loop.spilled) <= 2 * (len(sums) < 2), loop
            assert all(whole(x, machine, kind) for x in loop.body if x.fused), loop
            assert len(sums) == sum(sums.values()) <= most  # a register of its own for each
        assert max(len(x.accumulators) for x in hot) == most


# of a lane alone: arithmetic on it, taking it out or putting it in
ALONE = (r"v?(add|sub|mul|div|min|max|sqrt)s[sd]|vfn?m(add|sub)\d+s[sd]|v?p?(extr|insr)[bwdq]"
         r"|v?(insert|extract)ps|umov|smov|ins")  # fmt: skip


def alone(loop: Loop) -> list[Instruction]:
    found = [x for x in loop.body if re.fullmatch(ALONE, x.name.split(".")[0])]
    return found + [x for x in loop.body if re.match(r"f(add|sub|mul|div|madd|max)", x.name)
                    and re.fullmatch(r"[sd]\d+", x.operands[0])]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROWS)
def test_rows_are_computed_by_whole_vectors(name, kind):
    machine = Machine.named(kind)
    for kernel in kernels(ROWS[name]):
        t = translated(kernel, machine)
        assert any(whole(x, machine, kind) for loop in t.loops for x in loop.body)
        for loop in t.loops:  # where a loop holds all of a row, its last two lanes are joined in it
            joins = [x for x in alone(loop) if x.name == "vmaxss"]
            assert alone(loop) == joins[:1], loop
            assert len(loop.stored) <= (2 if name == "gelu" else 0), loop  # it is float64 inside
        assert not calls(t)


def calls(t: Translated) -> list[Instruction]:
    return [x for x in t.instructions if isinstance(x, Instruction)
            and re.fullmatch("callq?|bl|blr", x.name)]  # fmt: skip


@pytest.mark.parametrize("kind", ["avx512", "sapphire rapids", "sve", "sve128", "avx2"])
def test_windows_are_loaded_by_masks_where_the_machine_has_them(kind):
    (kernel,) = kernels(lambda: zeros(1, 128, 56, 56).conv2d(zeros(128, 1, 3, 3), padding=1,
                                                              groups=128))  # fmt: skip
    loops = translated(kernel, Machine.named(kind)).loops
    assert any(x.fused for loop in loops for x in loop.body)
    for loop in loops:
        assert not alone(loop), loop


@pytest.mark.parametrize("kind", ["neon", "apple"])
def test_where_it_has_none_a_window_that_lies_inside_is_loaded_whole(kind):
    """LLVM loads lane by lane there, each after a branch of its own."""
    (kernel,) = kernels(lambda: zeros(1, 128, 56, 56).conv2d(zeros(128, 1, 3, 3), padding=1,
                                                              groups=128))  # fmt: skip
    t = translated(kernel, Machine.named(kind))
    code = [x for x in t.instructions if isinstance(x, Instruction)]
    whole_masks = [x for x in code if re.match("uminv", x.name)]
    plain = [x for x in code if re.match("ldu?r|ldp", x.name) and re.match("q", x.operands[0])]
    assert whole_masks and plain


@pytest.mark.parametrize("kind", ["neon", "apple", "sve", "sve128", "avx512"])
def test_int8_products_multiply_and_add_whole_vectors(kind):
    machine = Machine.named(kind)
    (kernel,) = kernels(lambda: zeros(512, 512, dtype="int8").int()
                        @ zeros(512, 512, dtype="int8").int())  # fmt: skip
    t = translated(kernel, machine)
    of_four = kind != "sve"  # SVE's product of four bytes is not used, nor NEON's in its width
    names = "sdot(.4s)?|vpdpbusd" if of_four else "mla"
    hot = max(t.loops, key=lambda x: x.count(names))
    assert hot.count(names) == max(tiles(t)) and not hot.spilled
    assert of_four or len(hot.accumulators) == max(tiles(t)) and not alone(hot)


@pytest.mark.parametrize("kind", ["sse", *KINDS])
def test_objects_are_of_the_machine(kind):
    machine = Machine.named(kind)
    (kernel,) = kernels(PRODUCTS["bias and gelu"])
    t = translated(kernel, machine)
    assert not calls(t)  # nothing that another library would have to give
    if kind == "apple":
        assert struct.unpack("<II", t.blob[:8]) == (0xFEEDFACF, 0x0100000C)  # Mach-O, arm64
    else:
        x86, arm = 62, 183  # ELF's numbers of machines
        assert t.blob[:4] == b"\x7fELF"
        expected = x86 if machine.triple.startswith("x86") else arm
        assert struct.unpack_from("<H", t.blob, 18) == (expected,)


def test_without_fused_multiply_adds_the_fast_profile_multiplies_and_adds():
    (kernel,) = kernels(PRODUCTS["float32"])
    t = translated(kernel, Machine.named("sse"))
    assert any(x.count("mulps") >= 8 <= x.count("addps") for x in t.loops) and not calls(t)


def test_the_roofline_is_measured_with_whole_vectors():
    for kind in ("avx512", "sve"):
        machine = Machine.named(kind)
        source = roofline._fma_source(machine.float_lanes, roofline._chains(machine))
        text = native.assembly(source, machine)
        assert len(re.findall(rf"fma\S*\s.*\b{WIDE[kind]}\d", text)) == 24


# --- what plans take from the description ---------------------------------------------------------


def plan_text(make: Callable[[], Tensor], machine: Machine) -> str:
    return "\n".join(translated(k, machine).plan.text() for k in kernels(make))


@pytest.mark.parametrize(
    "name, changes",
    [
        ("float32", {"vector_registers": 32}),
        ("float32", {"vector_bits": 128}),
        ("float32", {"l2": 128 << 10}),
        ("float32", {"cores": 16}),
        ("convolution 3x3 of 14", {"cores": 32}),
        ("attention", {"cores": 1}),
    ],
)
def test_a_product_is_planned_for_the_machine(name, changes):
    machine = Machine.named("avx2")
    make = PRODUCTS[name]
    assert plan_text(make, machine) != plan_text(make, replace(machine, **changes))
    assert plan_text(make, machine) == plan_text(make, replace(machine))


def test_more_multiplies_under_way_need_more_partial_sums():
    slow, fast = (replace(Machine.named("neon"), chains=n) for n in (8, 16))
    (kernel,) = kernels(lambda: zeros(4096, 4096).sum(0))
    for machine in (slow, fast):
        loops = translated(kernel, machine).loops
        assert max(x.count(r"fadd(\.4s)?") for x in loops) == machine.chains


def test_results_go_past_the_caches_only_when_they_would_fill_them():
    small, large = (replace(Machine.named("avx2"), l3=n << 20) for n in (16, 64))
    (kernel,) = kernels(lambda: zeros(1 << 20) + 1.0)  # 4 MiB
    streamed = [any(x.name == "vmovntps" for loop in translated(kernel, m).loops for x in loop.body)
                for m in (small, large)]  # fmt: skip
    assert streamed == [True, False]


def test_what_plans_depend_on_is_in_the_key():
    """Objects that were made while one core was allowed used to serve all of them later."""
    machine = Machine.named("avx2")
    for change in ({"cores": 1}, {"l1": 48 << 10}, {"l2": 1 << 20}, {"l3": 0}, {"chains": 16}):
        assert replace(machine, **change).key != machine.key


# --- and they compute the right thing -------------------------------------------------------------


@pytest.mark.skipif(not can_run(), reason="needs qemu-aarch64 and a linker for AArch64")
@pytest.mark.parametrize("kind", ["neon", "sve", "sve128"])
@pytest.mark.parametrize("name", ["product", "window", "softmax", "int8", "gelu", "bfloat16"])
def test_an_emulator_computes_the_same(name, kind):
    rng = np.random.default_rng(3)

    def floats(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    def bytes_(*shape: int) -> np.ndarray:
        return rng.integers(-100, 100, shape, dtype=np.int8)

    given, function = {
        "product": ((floats(70, 90), floats(90, 110)), lambda a, b: a @ b),
        "window": ((floats(1, 8, 14, 14), floats(8, 1, 3, 3)),
                   lambda x, w: x.conv2d(w, padding=1, groups=8)),
        "softmax": ((floats(13, 203),), lambda x: x.softmax(-1)),
        "int8": ((bytes_(40, 64), bytes_(64, 48)), lambda a, b: a.int() @ b.int()),
        "gelu": ((floats(1003),), lambda x: x.gelu()),
        "bfloat16": ((floats(40, 64), floats(64, 50)),
                     lambda a, b: (a.bfloat16() @ b.bfloat16()).float()),
    }[name]  # fmt: skip
    expected = function(*(Tensor(x, device="CPU") for x in given)).numpy()
    found = run(function, given, Machine.named(kind))
    assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max() + 1e-9


@pytest.mark.skipif(not can_run(), reason="needs qemu-aarch64 and a linker for AArch64")
@pytest.mark.parametrize("kind", ["neon", "sve"])
def test_in_the_exact_profile_an_emulator_computes_the_same_bits(kind):
    rng = np.random.default_rng(4)
    given = [rng.standard_normal(s, dtype=np.float32) for s in ((37, 75), (75, 41))]

    def function(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b).softmax(-1).sin() * (a.exp() + 1).log2().sum()

    with config.context(PROFILE="exact"):
        expected = function(*(Tensor(x, device="CPU") for x in given)).numpy()
        found = run(function, given, Machine.named(kind))
    assert found.tobytes() == expected.tobytes()
