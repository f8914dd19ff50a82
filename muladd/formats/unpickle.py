"""A machine for pickle bytes that can build plain values and nothing else.

Python's own pickle runs whatever a file names. This one knows no import: a name in the file is
looked up in a table handed in by the caller, and a name that is not there is refused. It is written
from the documentation of the format in Python's `pickletools`.
"""
from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from muladd.errors import FormatError

_MARK = object()
MOST_BYTES_OF_NUMBER = 1 << 10


class Refused(FormatError):
    """The bytes ask for something that is not in the table of what may be built."""


class Machine:
    """Reads one pickle after another from `data`.

    allowed maps 'module.name' to a function (called for REDUCE) or to a plain marker value.
    persistent gives the value of a persistent id (torch: a storage).
    """

    def __init__(
        self,
        data: bytes | memoryview,
        allowed: Mapping[str, Any],
        persistent: Callable[[Any], Any] | None = None,
        where: str = "bytes",
    ) -> None:
        self.data, self.at = memoryview(data), 0
        self.allowed, self.persistent, self.where = allowed, persistent, where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The next value. Raises FormatError for damaged bytes, Refused for forbidden ones."""
        self.stack, self.memo = [], {}
        try:
            while True:
                code = self.take(1)[0]
                if code == 0x2E:  # STOP
                    return self.pop()
                step = _STEPS.get(code)
                if step is None:
                    raise Refused(
                        f"torch file: {self.where}: pickle instruction {code:#04x} is not one that "
                        "plain values need; save a state_dict() instead of objects"
                    )
                step(self)
        except FormatError:
            raise
        except (IndexError, KeyError, TypeError, ValueError, struct.error, AttributeError) as error:
            raise self.damaged(f"{type(error).__name__}: {error}") from None

    def damaged(self, what: str) -> FormatError:
        return FormatError(
            f"torch file: {self.where}: the pickle is damaged at byte {self.at} ({what})"
        )

    # --- the bytes -----------------------------------------------------------------------------

    def take(self, n: int) -> bytes:
        if n < 0 or self.at + n > len(self.data):
            raise self.damaged("it ends early")
        self.at += n
        return bytes(self.data[self.at - n : self.at])

    def number(self, kind: str) -> int:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def line(self) -> str:
        out = bytearray()
        while (byte := self.take(1)) != b"\n":
            out += byte
        return out.decode("utf-8")

    # --- the stack -----------------------------------------------------------------------------

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise self.damaged("a mark stands where a value should")
        return value

    def pop_to_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise self.damaged("no mark")

    def name(self, module: Any, name: Any) -> Any:
        full = f"{module}.{name}"
        if full not in self.allowed:
            raise Refused(
                f"torch file: {self.where}: asks for {full!r}, which is neither a tensor nor a "
                "plain container, and was not run; save a state_dict() of tensors instead"
            )
        return self.allowed[full]

    def call(self, function: Any, args: Any) -> Any:
        if not callable(function) or not isinstance(args, tuple):
            raise self.damaged("it calls something that is not a function")
        return function(*args)


# --- the instructions: one line each -----------------------------------------------------------


def _push(read: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        m.stack.append(read(m))

    return step


def _text(m: Machine, kind: str) -> str:
    return m.take(m.number(kind)).decode("utf-8", "surrogatepass")


def _long(m: Machine, n: int) -> int:
    if n > MOST_BYTES_OF_NUMBER:
        raise m.damaged(f"a number of {n} bytes")
    return int.from_bytes(m.take(n), "little", signed=True)


def _tuple_of(n: int) -> Callable[[Machine], Any]:
    def read(m: Machine) -> tuple:
        return tuple(reversed([m.pop() for _ in range(n)]))

    return read


def _int_line(m: Machine) -> int | bool:
    text = m.line()
    return {"00": False, "01": True}[text] if text in ("00", "01") else _checked_int(m, text)


def _checked_int(m: Machine, text: str) -> int:
    if len(text) > MOST_BYTES_OF_NUMBER:
        raise m.damaged("a very long number")
    return int(text.removesuffix("L"))


def _target(m: Machine, kinds: type | tuple[type, ...]) -> Any:
    target = m.stack[-1]
    if not isinstance(target, kinds):
        raise m.damaged(f"it fills a {type(target).__name__} as if it were another container")
    return target


def _append(m: Machine) -> None:
    value = m.pop()
    _target(m, list).append(value)


def _appends(m: Machine) -> None:
    items = m.pop_to_mark()
    _target(m, list).extend(items)


def _set_item(m: Machine) -> None:
    value, key = m.pop(), m.pop()
    _target(m, dict)[key] = value


def _set_items(m: Machine) -> None:
    items = m.pop_to_mark()
    _target(m, dict).update(_pairs(m, items))


def _pairs(m: Machine, items: list[Any]) -> dict:
    if len(items) % 2:
        raise m.damaged("a key without a value")
    return dict(zip(items[::2], items[1::2]))


def _add_items(m: Machine) -> None:
    items = m.pop_to_mark()
    _target(m, set).update(items)


def _reduce(m: Machine) -> None:
    args, function = m.pop(), m.pop()
    m.stack.append(m.call(function, args))


def _build(m: Machine) -> None:
    """Attributes of an OrderedDict (torch keeps `_metadata` there) carry no weights: dropped."""
    m.pop()
    _target(m, OrderedDict)


def _stack_global(m: Machine) -> None:
    name, module = m.pop(), m.pop()
    m.stack.append(m.name(module, name))


def _global(m: Machine) -> None:
    module = m.line()
    m.stack.append(m.name(module, m.line()))


def _persistent(m: Machine) -> None:
    if m.persistent is None:
        raise m.damaged("a reference to outside where there is no outside")
    m.stack.append(m.persistent(m.pop()))


def _remember(index: Callable[[Machine], int]) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        m.memo[index(m)] = m.stack[-1]

    return step


def _recall(index: Callable[[Machine], int]) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        m.stack.append(m.memo[index(m)])

    return step


def _pop_mark(m: Machine) -> None:
    m.pop_to_mark()


# fmt: off
_STEPS: dict[int, Callable[[Machine], None]] = {
    0x80: lambda m: (m.take(1), None)[1],                        # PROTO
    0x95: lambda m: (m.take(8), None)[1],                        # FRAME
    ord("("): _push(lambda m: _MARK),
    ord("0"): lambda m: (m.stack.pop(), None)[1],                # POP
    ord("1"): _pop_mark,
    ord("2"): _push(lambda m: m.stack[-1]),                      # DUP
    ord("N"): _push(lambda m: None),
    0x88: _push(lambda m: True),
    0x89: _push(lambda m: False),
    ord("I"): _push(_int_line),
    ord("L"): _push(lambda m: _checked_int(m, m.line())),
    ord("F"): _push(lambda m: float(m.line())),
    ord("J"): _push(lambda m: m.number("<i")),
    ord("K"): _push(lambda m: m.number("<B")),
    ord("M"): _push(lambda m: m.number("<H")),
    0x8A: _push(lambda m: _long(m, m.number("<B"))),
    0x8B: _push(lambda m: _long(m, m.number("<i"))),
    ord("G"): _push(lambda m: m.number(">d")),
    ord("V"): _push(lambda m: m.line().encode().decode("raw-unicode-escape")),
    ord("X"): _push(lambda m: _text(m, "<I")),
    0x8C: _push(lambda m: _text(m, "<B")),
    0x8D: _push(lambda m: _text(m, "<Q")),
    ord("T"): _push(lambda m: m.take(m.number("<i")).decode("latin-1")),
    ord("U"): _push(lambda m: m.take(m.number("<B")).decode("latin-1")),
    ord("B"): _push(lambda m: m.take(m.number("<I"))),
    ord("C"): _push(lambda m: m.take(m.number("<B"))),
    0x8E: _push(lambda m: m.take(m.number("<Q"))),
    0x96: _push(lambda m: bytearray(m.take(m.number("<Q")))),
    ord(")"): _push(lambda m: ()),
    0x85: _push(_tuple_of(1)),
    0x86: _push(_tuple_of(2)),
    0x87: _push(_tuple_of(3)),
    ord("t"): _push(lambda m: tuple(m.pop_to_mark())),
    ord("]"): _push(lambda m: []),
    ord("l"): _push(lambda m: m.pop_to_mark()),
    ord("a"): _append,
    ord("e"): _appends,
    ord("}"): _push(lambda m: {}),
    ord("d"): _push(lambda m: _pairs(m, m.pop_to_mark())),
    ord("s"): _set_item,
    ord("u"): _set_items,
    0x8F: _push(lambda m: set()),
    0x90: _add_items,
    0x91: _push(lambda m: frozenset(m.pop_to_mark())),
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): _reduce,
    0x81: _reduce,                                               # NEWOBJ: the same two operands
    ord("b"): _build,
    ord("Q"): _persistent,
    ord("p"): _remember(lambda m: int(m.line())),
    ord("q"): _remember(lambda m: m.number("<B")),
    ord("r"): _remember(lambda m: m.number("<I")),
    0x94: _remember(lambda m: len(m.memo)),
    ord("g"): _recall(lambda m: int(m.line())),
    ord("h"): _recall(lambda m: m.number("<B")),
    ord("j"): _recall(lambda m: m.number("<I")),
}
# fmt: on
