"""Which tokens may come next if the text is to be JSON, or what a JSON schema asks for.

A constraint reads bytes; tokens are strings of bytes. All tokens of a vocabulary lie in one tree,
and the tree is walked once for each state of the text that occurs, a level at a time: what comes
out, a bit for each token, is kept. States are expressions (`expressions.py`), numbered as they are
met, with a row of 256 next states each.
"""
from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from muladd.errors import ArgumentError
from muladd.llm import schema as schemas
from muladd.llm.expressions import Expression, Expressions
from muladd.llm.json_text import ANY, Ranges, joined
from muladd.llm.tokenizer import Tokenizer

_MASK_BYTES = 1 << 25  # of the masks that a constraint keeps
_CONSTRAINTS = 64  # that are kept for a tokenizer
_NEEDED_BYTES = frozenset({9, 10, *range(0x20, 0x80), *range(0x80, 0xC0), *range(0xC2, 0xF5)})


class TokenTree:
    """Tokens by their bytes: each node's children lie side by side.

    pieces[i] are the bytes of token i; None and b"" are no text.
    """

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        self.size, self.pieces = len(pieces), pieces
        lengths = np.array([len(p or b"") for p in pieces])
        data = np.frombuffer(b"".join(p or b"" for p in pieces), np.uint8)
        starts = np.cumsum(lengths) - lengths
        self.node = np.full(self.size, -1)  # where each token ends
        here = np.zeros(self.size, np.int64)
        left = np.flatnonzero(lengths)
        byte, first, count = [np.zeros(1, np.uint8)], [], []
        nodes, last = 1, np.zeros(1, np.int64)  # made so far; those of the last level
        self.longest = int(lengths.max(initial=0))
        for level in range(self.longest):
            key = here[left] << 8 | data[starts[left] + level]
            found, place = np.unique(key, return_inverse=True)
            parents = found >> 8
            count.append(np.bincount(parents - last[0], minlength=len(last)))
            first.append(nodes + np.cumsum(count[-1]) - count[-1])
            byte.append((found & 255).astype(np.uint8))
            here[left] = nodes + place
            last = np.arange(nodes, nodes + len(found))
            nodes += len(found)
            ends = lengths[left] == level + 1
            self.node[left[ends]] = here[left[ends]]
            left = left[~ends]
        self.byte = np.concatenate(byte)
        self.first = np.concatenate([*first, np.zeros(len(last), np.int64)])
        self.count = np.concatenate([*count, np.zeros(len(last), np.int64)])


class State:
    """How far a text is. It never changes: `advance` gives another."""

    __slots__ = ("constraint", "number")

    def __init__(self, constraint: Constraint, number: int) -> None:
        self.constraint, self.number = constraint, number

    def allowed(self) -> np.ndarray:
        """Which tokens may come next: bool (vocabulary,), read-only. A token that ends texts is
        among them if the text is complete."""
        return self.constraint.mask(self.number)

    def advance(self, token: int) -> State:
        """The state after a token. Raises ArgumentError for one that is not allowed."""
        return State(self.constraint, self.constraint.after(self.number, token))

    @property
    def complete(self) -> bool:
        """Whether the text satisfies the constraint as it stands."""
        return self.constraint.complete(self.number)

    @property
    def finished(self) -> bool:
        """Whether nothing can be added: the text is complete, or was ended."""
        return self.constraint.finished(self.number)


class Constraint:
    """Texts of an expression, in tokens of a vocabulary. Any number of texts may use one at a time,
    in any threads.

    `stops` are the tokens that end a text.
    """

    def __init__(
        self, start: Expression, make: Expressions, tree: TokenTree, stops: Iterable[int] = ()
    ) -> None:
        self._make, self._tree, self._stops = make, tree, np.array(sorted(stops), np.int64)
        self._states: list[Expression] = [make.never]
        self._numbers = {make.never: 0}
        self._table = np.zeros((64, 256), np.int32)  # [state, byte] is the next state, or 0
        self._known = np.ones(64, bool)  # states whose row is there, or that are not there
        self._masks: OrderedDict[int, np.ndarray] = OrderedDict()
        self._alike: dict[int, int] = {}  # states for which the same tokens are allowed
        self._most = max(64, _MASK_BYTES * 8 // max(1, tree.size))
        self._lock = threading.RLock()
        self._start = self._number(start)

    def start(self) -> State:
        """Before the first token."""
        return State(self, self._start)

    @property
    def size(self) -> int:
        """Tokens of the vocabulary."""
        return self._tree.size

    # --- what a State asks -----------------------------------------------------------------------

    def complete(self, state: int) -> bool:
        """See State."""
        return self._states[state].nullable

    def finished(self, state: int) -> bool:
        """See State."""
        with self._lock:
            return not state or not self._row(state).any()

    def after(self, state: int, token: int) -> int:
        """The number of the state after a token; 0 is that of a text that was ended."""
        if not 0 <= token < self.size:
            raise ArgumentError(f"constraint: {token} is no id; expected 0 to {self.size - 1}")
        if token in self._stops and self.complete(state):
            return 0
        piece = self._tree.pieces[token]
        here = state if piece else 0
        with self._lock:
            for byte in piece or b"":
                here = int(self._row(here)[byte])
        if not here:
            raise ArgumentError(f"constraint: token {token} is not allowed here; `allowed()` tells "
                                "which are")  # fmt: skip
        return here

    def mask(self, state: int) -> np.ndarray:
        """See State.allowed."""
        with self._lock:
            alike = self._alike.get(state)
            if alike is None:  # a count that no token reaches the end of makes no difference
                less = self._make.outlasting(self._states[state], self._tree.longest)
                alike = self._alike[state] = self._number(less)
            state = alike
            bits = self._masks.get(state)
            if bits is None:
                bits = self._masks[state] = np.packbits(self._walk(state))
                if len(self._masks) > self._most:
                    self._masks.popitem(last=False)
            else:
                self._masks.move_to_end(state)
        found = np.unpackbits(bits, count=self.size).view(bool)
        found.flags.writeable = False
        return found

    # --- the automaton ---------------------------------------------------------------------------

    def _number(self, a: Expression) -> int:
        found = self._numbers.get(a)
        if found is None:
            found = self._numbers[a] = len(self._states)
            self._states.append(a)
            if found == len(self._table):
                self._table = np.concatenate([self._table, np.zeros_like(self._table)])
                self._known = np.concatenate([self._known, np.ones(found, bool)])
            self._known[found] = False
        return found

    def _row(self, state: int) -> np.ndarray:
        if not self._known[state]:
            for mask, x in self._make.moves(self._states[state]):
                if self._make.alive(x):
                    number = self._number(x)
                    self._table[state, _members(mask)] = number
            self._known[state] = True
        return self._table[state]

    def _walk(self, state: int) -> np.ndarray:
        """Which tokens lead somewhere from a state: bool (vocabulary,)."""
        tree = self._tree
        reached = np.zeros(len(tree.byte) + 1, bool)  # the last stands for tokens that are no text
        nodes, states = np.zeros(1, np.int64), np.array([state], np.int32)
        while len(nodes):
            counts = tree.count[nodes]
            inner = np.flatnonzero(counts)
            nodes, states, counts = nodes[inner], states[inner], counts[inner]
            for new in np.unique(states[~self._known[states]]):
                self._row(int(new))
            first = tree.first[nodes] - (np.cumsum(counts) - counts)
            children = np.repeat(first, counts) + np.arange(int(counts.sum()))
            states = self._table[np.repeat(states, counts), tree.byte[children]]
            alive = np.flatnonzero(states)
            nodes, states = children[alive], states[alive]
            reached[nodes] = True
        found = reached[tree.node]
        if self.complete(state):
            found[self._stops] = True
        return found


@lru_cache(1 << 12)
def _members(mask: int) -> np.ndarray:
    """The bytes of a set of 256 bits."""
    bits = np.frombuffer(mask.to_bytes(32, "little"), np.uint8)
    return np.flatnonzero(np.unpackbits(bits, bitorder="little"))


# --- for a tokenizer -----------------------------------------------------------------------------


class _Kept:
    """What constraints for one tokenizer share."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        silent = tokenizer.control | tokenizer.stops
        pieces = [None if i in silent else p for i, p in enumerate(tokenizer.pieces)]
        self.tree = TokenTree(pieces)
        self.alphabet = _alphabet(pieces)
        self.constraints: OrderedDict[str, Constraint] = OrderedDict()


_kept: WeakKeyDictionary[Tokenizer, _Kept] = WeakKeyDictionary()
_kept_lock = threading.Lock()


def json_constraint(tokenizer: Tokenizer, schema: Any = None) -> Constraint:
    """The constraint to texts that satisfy a JSON schema (as `json.loads` gives it); without one,
    to any JSON object.

    What was made for a tokenizer and schema is kept, so asking again costs little. Raises
    ArgumentError for schemas that are none, or ask for what is not supported; see `schema.py`.
    """
    try:
        name = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"json_schema: is no JSON: {error}") from None
    with _kept_lock:
        kept = _kept.get(tokenizer)
        if kept is None:
            kept = _kept[tokenizer] = _Kept(tokenizer)
        found = kept.constraints.get(name)
    if found is None:  # made without the lock: an intricate schema keeps nobody else waiting
        found = _made(schema, tokenizer, kept)
    with _kept_lock:
        found = kept.constraints.setdefault(name, found)
        kept.constraints.move_to_end(name)
        if len(kept.constraints) > _CONSTRAINTS:
            kept.constraints.popitem(last=False)
    return found


def _made(schema: Any, tokenizer: Tokenizer, kept: _Kept) -> Constraint:
    make = Expressions()
    text = schemas.any_object(make, kept.alphabet) if schema is None else \
        schemas.expression(schema, make, kept.alphabet)  # fmt: skip
    if tokenizer.space_prefix:  # which is dropped when tokens become text
        text = make.sequence(make.maybe(make.literal(" ")), text)
    return Constraint(text, make, kept.tree, tokenizer.stops)


def _alphabet(pieces: Sequence[bytes | None]) -> Ranges:
    """The characters that can be written whatever stands before: all, if there is a token for each
    byte; otherwise those that are a token."""
    single = {p[0] for p in pieces if p is not None and len(p) == 1}
    if single >= _NEEDED_BYTES:
        return ANY
    found = []
    for piece in pieces:
        if piece and len(piece) <= 4:
            try:
                text = piece.decode()
            except UnicodeDecodeError:
                continue
            if len(text) == 1:
                found.append((ord(text), ord(text)))
    return joined(found)
