"""Whole programs kept on disk: a graph compiled before needs neither fusing nor scheduling.

A record holds what `Program` holds, as JSON text: arrays, actions, which outputs may be written
over which inputs, in which order memory is given out, and of each kernel its key, by which its
object is kept too (kernels.py). The algorithm of such a kernel is found again, from the graph, when
somebody asks for it.

Records lie under the hash of the graph (symbolic sizes with their names and bounds among it), the
machine and the compiler's own text. A size that is no number is a place in the record's list of
sizes, which is written as a graph's canonical bytes. Small programs are not kept: they are compiled
as quickly as they are read. Whatever is amiss in a record, the program is compiled as if there were
none.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from muladd import cache, config
from muladd.compile.donate import donatable
from muladd.compile.kernels import CompiledKernel, compiler_version, load_kernels
from muladd.compile.program import Action, Array, Loop, Move, Program, Run, Use
from muladd.device import Device
from muladd.errors import FormatError, GraphError
from muladd.ir import Dim, Node, codec, sym
from muladd.ir.dtype import dtype
from muladd.ir.node import variables
from muladd.loop.kernel import Kernel

_ODD = (KeyError, IndexError, TypeError, ValueError, RecursionError, FormatError, struct.error)
_LEAST = 1024  # bytes of a graph worth a record: some two hundred nodes


def key_of(
    outputs: tuple[Node, ...], device: Device, exact: bool, fixed: frozenset[int] = frozenset()
) -> bytes | None:
    """What a graph's program is kept under; None if it is not to be kept."""
    if config.get("CHECK"):
        return None
    try:
        graph = codec.encode(outputs)
    except GraphError:  # a graph over ops of kernels, which have no canonical bytes
        return None
    if len(graph) < _LEAST:
        return None
    how = f"{exact}|{config.of_programs()}|{sorted(fixed)}"
    text = f"{compiler_version()}|{device.name}|{device.machine.key}|{how}|"
    return hashlib.blake2b(text.encode() + graph, digest_size=20).digest()


def keep(key: bytes, program: Program) -> None:
    """Write a program down, unless it has sizes that cannot be written."""
    with contextlib.suppress(GraphError):
        record = _Writer(program).record
        cache.cache().put("programs", key, json.dumps(record).encode())


def find(
    key: bytes, outputs: tuple[Node, ...], device: Device, again: Callable[[], Program]
) -> Program | None:
    """The program kept under a key; `again` compiles it anew if its algorithms are asked for."""
    blob = cache.cache().get("programs", key)
    if blob is None:
        return None
    try:
        program = _Reader(json.loads(blob), outputs, device, again).program()
    except _ODD:
        return None
    fits = [(a.dtype, a.size) for a in program.outputs]
    return program if fits == [(n.dtype, sym.product(n.shape)) for n in outputs] else None


class _Writer:
    """A program as lists, numbers and texts; arrays, kernels and symbolic sizes are numbered by
    first use."""

    def __init__(self, program: Program) -> None:
        self.arrays: dict[Array, int] = {}
        self.kernels: dict[CompiledKernel, int] = {}
        self.sizes: dict[Node, int] = {}
        self.record: dict[str, Any] = {
            "given": [self.array(a) for a in program.given],
            "inputs": [self.array(a) for a in program.inputs],
            "outputs": [self.array(a) for a in program.outputs],
            "actions": self.actions(program.actions),
            "donated": sorted(donatable(program)),
            "order": [self.array(a) for a in program.arrangement()],
            "kernels": [[k.key, k.name, list(k.writes)] for k in self.kernels],
            "arrays": [[a.dtype.name, self.size(a.size), a.kind, a.number] for a in self.arrays],
        }
        self.record["held"] = None if program.held is None else _Writer(program.held).record
        self.record["sizes"] = codec.encode(tuple(self.sizes)).hex()  # last: all have been met

    def size(self, n: Dim) -> Any:
        return n if isinstance(n, int) else [self.sizes.setdefault(n, len(self.sizes))]

    def array(self, a: Array) -> int:
        return self.arrays.setdefault(a.root(), len(self.arrays))

    def use(self, use: Use) -> list:
        steps = [[depth, self.size(step)] for depth, step in use.steps]
        return [self.array(use.array), steps]

    def actions(self, actions: Sequence[Action]) -> list:
        out: list[list] = []
        for a in actions:
            if isinstance(a, Run):
                kernel = self.kernels.setdefault(a.kernel, len(self.kernels))
                out.append(["run", kernel, [self.use(u) for u in a.uses]])
            elif isinstance(a, Move):
                size = self.size(a.size)
                out.append(["move", self.use(a.to), self.use(a.source), size, a.itemsize])
            else:
                out.append(["loop", self.size(a.count), self.actions(a.body), a.reverse])
        return out


class _Reader:
    """The way back. Raises one of _ODD where a record is odd."""

    def __init__(
        self, record: Any, outputs: tuple[Node, ...], device: Device, again: Callable[[], Program]
    ) -> None:
        self.record, self.device, self.again = record, device, again
        known = variables(outputs)
        self.names = tuple(sorted(v.arg.name for v in known))
        self.sizes = codec.decode(bytes.fromhex(record["sizes"]))
        if not set(variables(self.sizes)) <= set(known) or any(n.shape for n in self.sizes):
            raise ValueError("sizes over what the graph has not")
        self.arrays = [self.array(*a) for a in record["arrays"]]
        named = {str(key): (str(name), _flags(writes)) for key, name, writes in record["kernels"]}
        made = load_kernels(named, device, self.names, functools.partial(_algorithm, again))
        self.kernels = [made[key] for key, _, _ in record["kernels"]]

    def program(self) -> Program:
        record = self.record
        inputs = [_at(self.arrays, i) for i in record["inputs"]]
        outputs = [_at(self.arrays, i) for i in record["outputs"]]
        actions = self.actions(record["actions"])
        given = [_at(self.arrays, i) for i in record["given"]]
        program = Program(self.device, actions, inputs, outputs, self.names, given)
        if record["held"] is not None:
            again = functools.partial(_held, self.again)
            program.held = _Reader(record["held"], (), self.device, again).program()
            if len(program.held.outputs) != len(given):
                raise ValueError("another number of arrays is held than is given")
        pairs = [(_number(o, len(outputs)), _number(i, len(inputs))) for o, i in record["donated"]]
        program.donatable = set(pairs)
        program.order = [_at(self.arrays, i) for i in record["order"]]
        return program

    def array(self, name: Any, size: Any, kind: Any, number: Any) -> Array:
        if kind not in ("input", "output", "held", "temporary"):
            raise ValueError(f"a kind of array: {kind!r}")
        return Array(dtype(str(name)), self.size(size), kind, _number(number))

    def size(self, given: Any) -> Dim:
        if not isinstance(given, list):
            return _number(given)
        (number,) = given
        return _at(self.sizes, number)

    def use(self, given: Any) -> Use:
        array, steps = given
        pairs = tuple((_number(depth), self.size(step)) for depth, step in steps)
        return Use(_at(self.arrays, array), pairs)

    def actions(self, given: Any) -> list[Action]:
        out: list[Action] = []
        for kind, *rest in given:
            if kind == "run":
                number, uses = rest
                kernel = _at(self.kernels, number)
                if len(uses) != len(kernel.writes):
                    raise ValueError(f"{len(uses)} arguments of {kernel.name}")
                out.append(Run(kernel, tuple(map(self.use, uses))))
            elif kind == "move":
                to, source, given_size, itemsize = rest
                size = self.size(given_size)
                out.append(Move(self.use(to), self.use(source), size, _number(itemsize)))
            elif kind == "loop":
                count, body, reverse = rest
                out.append(Loop(self.size(count), self.actions(body), reverse is True))
            else:
                raise ValueError(f"a kind of action: {kind!r}")
        return out


def _held(again: Callable[[], Program]) -> Program:
    program = again().held
    assert program is not None
    return program


def _algorithm(again: Callable[[], Program], key: str) -> Kernel:
    """What a kernel computes. Compiling again tells it to all kernels of the program."""
    return next(k.kernel for k in again().kernels() if k.key == key)


def _number(given: Any, below: int = 1 << 63) -> int:
    if type(given) is not int or not 0 <= given < below:
        raise ValueError(f"a number below {below}: {given!r}")
    return given


def _at(items: Sequence, number: Any) -> Any:
    return items[_number(number, len(items))]


def _flags(given: Any) -> tuple[bool, ...]:
    return tuple([x is True for x in given])
