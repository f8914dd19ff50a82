"""Graphs whose program exists already, found again in one walk.

Code without jit writes the same graph anew in every step, over other arrays. Comparing it with what
was compiled needs no new graph: a walk from the roots gives a sequence of operations, arguments and
numbers of places seen before, which tells the graph's structure from any other, and the arrays it
reads in the order of that walk. The sequence is the key to the program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from muladd import config
from muladd import device as devices
from muladd.ir import Node, Storage, ops, substitute
from muladd.ir.node import const_bits, stored

_INPUT, _EXPAND, _CONST = ops.INPUT, ops.EXPAND, ops.CONST
_ARRAY = "array"  # stands in a key for an array, before its shape and dtype
_LABELLED = frozenset((ops.PAD, ops.CAST, ops.BITCAST))  # arg alone does not say what they do
_VARIADIC = frozenset((ops.CALL, ops.SCAN))

# key -> (program, the place of each of its inputs among the arrays of the walk, further inputs)
_programs: dict[tuple, tuple[Any, tuple[int, ...], list[Any]]] = {}
_MOST_PROGRAMS = 1024
_LONGEST = 20_000  # the key of a larger graph costs memory, and looking costs little beside its run


class Reading:
    """What one walk over a graph found out."""

    __slots__ = ("key", "arrays", "at_hand")

    def __init__(
        self, key: list[Any], arrays: list[Storage], at_hand: dict[Node, Storage]
    ) -> None:
        self.key, self.arrays = key, arrays
        self.at_hand = at_hand  # nodes whose values were known: the walk ended there


def read(
    roots: Sequence[Node], value_of: Callable[[Node, str], Storage | None], device: str
) -> Reading | None:
    """The structure of graphs. None if an array is not there yet, or lives on another device.

    `value_of` gives the value of a node which was computed before; the walk ends there.
    """
    key: list[Any] = []
    arrays: list[Storage] = []
    number: dict[Any, int] = {}  # nodes and arrays
    at_hand: dict[Node, Storage] = {}
    add, seen, stack = key.append, number.get, list(roots)
    pop, extend = stack.pop, stack.extend
    while stack:
        x = pop()
        known = seen(x)
        if known is not None:
            add(known)
            continue
        number[x] = len(number)
        op, srcs = x.op, x.srcs
        if srcs:
            if x.memo is not None and (array := value_of(x, device)) is not None:
                at_hand[x] = array
            else:
                if op is _EXPAND and srcs[0].op is _CONST:
                    add(x)
                    continue
                add(op)
                add(_label(x) if op in _LABELLED else x.arg)
                if op in _VARIADIC:
                    add(len(srcs))
                extend(srcs)
                continue
        elif op is _INPUT and type(x.arg) is Storage:
            array = x.arg
        else:
            add(x)
            continue
        known = seen(array)
        if known is not None:
            add(known)
            continue
        if array.buffer is None or array.device != device:
            return None
        number[array] = len(number)
        arrays.append(array)
        add(_ARRAY)
        add(array.shape)
        add(array.dtype)
    return Reading(key, arrays, at_hand)


def _label(x: Node) -> Any:
    """What a node's operation and sources leave open, where `arg` would not tell all of it."""
    if x.op is ops.PAD:
        return x.arg[0], const_bits(x.arg[1], x.dtype)  # 0.0 is not -0.0
    return x.dtype


def run(roots: Sequence[Node], reading: Reading, device: str) -> list[Storage]:
    """The values of graphs that were read, none of them an input."""
    import muladd.compile as compiler  # a `from` would look for a file in every call

    short = len(reading.key) <= _LONGEST
    arrays = reading.arrays
    key = (device, *config.of_programs(), len(roots), *reading.key) if short else ()
    found = _programs.get(key) if short else None
    if found is None:
        # what the walk saw, not what is at hand by now: other threads compute meanwhile
        given = {x: stored(array) for x, array in reading.at_hand.items()}
        graph, storages = compiler.parameters(substitute(tuple(roots), given))
        program, numbers = compiler.program_of(graph, len(storages), device)
        place = {s: i for i, s in enumerate(arrays)}
        found = program, tuple([place[s] for s in storages]), numbers
        if short:
            while len(_programs) >= _MOST_PROGRAMS:
                _programs.pop(next(iter(_programs)), None)
            _programs[key] = found
    program, order, numbers = found
    buffers = program.run([arrays[i].buffer for i in order] + numbers)
    name = devices.get(device).name
    return [Storage(r.shape, r.dtype, name, b) for r, b in zip(roots, buffers)]


__all__ = ["Reading", "read", "run"]
