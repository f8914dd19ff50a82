"""Keys and values of many conversations, in pages of one pool; and the step that reads them.

A conversation holds a list of pages anywhere in the pool, each of PAGE positions. A step takes the
next tokens of one conversation or of several, and a list of all pages that any of them looks at:
every page is attended to for itself, by the queries of who listed it, and the parts are joined by
their maxima (Milakov and Gimelshein, 2018; Kwon et al., 2023). So a step costs what the
conversations hold together, however different they are in length; and as the number of pages is a
symbolic size, one program serves them all.

A step only reads the pool. The new keys and values are results, which are put into their places
afterwards: so nothing passes over all the room there is.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muladd import device as devices
from muladd.ir import Storage, make, ops
from muladd.ir import dtype as dt
from muladd.llm.memory import memory_of
from muladd.llm.model import Decoder
from muladd.tensor import Tensor
from muladd.tensor.handle import no_grad
from muladd.tensor.jit import jit

PAGE = 64  # positions of a page
CHUNK = 64  # tokens of a prompt that are read in one step
_LOW = -1e30  # a score that counts nothing; finite, since a whole page may have it
_RUNS = 64  # of a step, at most
_NOWHERE = 1 << 30  # the position of a page that nobody sees


@dataclass
class Text:
    """What the pool holds of one conversation: its pages in order, and how many positions."""

    pages: list[int] = field(default_factory=list)
    length: int = 0


class Pool:
    """Pages of keys and values, for one decoder: per layer an array of keys (pages, key heads, head
    width, PAGE) and one of values (pages, key heads, PAGE, head width), each as a product reads it.
    Who holds which page is up to the caller.

    `huge` takes memory in huge pages: for a pool that will be full. (Else a huge page for each
    layer's first position might be all there is of them.)

    With int8 each position of each head is codes from -127 to 127 and a scale of its own: after
    all arrays come as many of scales, float32 (pages, key heads, 1, PAGE).
    """

    def __init__(
        self, decoder: Decoder, pages: int, dtype: str = "float32", huge: bool = False
    ) -> None:
        c = decoder.config
        self.decoder, self.pages, self.dtype = decoder, pages, dt.dtype(dtype)
        self.coded = self.dtype is dt.int8
        shape = (pages + 1, c.key_heads)  # the last stays empty: for texts that have none yet
        made = [_zeros(c.layers, (*shape, *sizes), self.dtype, huge)
                for sizes in ((c.head_width, PAGE), (PAGE, c.head_width))]  # fmt: skip
        if self.coded:
            made += [_zeros(c.layers, (*shape, 1, PAGE), dt.float32, huge) for _ in range(2)]
        self.arrays = [array for pair in (made[:2], made[2:]) if pair
                       for both in zip(pair[0][0], pair[1][0]) for array in both]  # fmt: skip
        # of all layers: keys, values, their scales, each (layers, pages, key heads, ...)
        self._memory = [memory for _, memory in made]
        sizes = {"pages": {1: ("pages", 1, _RUNS * max(2, pages))}}  # texts may share pages
        self.step = jit(self._step, symbolic=sizes)
        self.look = jit(self._look, symbolic=sizes)
        self._put = jit(self._scatter)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, the empty one included."""
        return sum(math.prod(a.shape) * a.dtype.itemsize for a in self.arrays)  # type: ignore

    def take(self) -> None:
        """Have all memory of the pool now, not page by page as it is written to. Empties it."""
        for memory in self._memory:
            if memory is not None:
                memory.fill(0)

    def clear(self, pages: Sequence[int]) -> None:
        """Forget what stands in pages: for numbers that are none, which even unseen do harm."""
        for memory in self._memory:
            if memory is not None:
                memory[:, pages] = 0
        if self._memory[0] is None and pages:
            at = Tensor(np.array(pages, np.int32))
            with no_grad():
                for array in self.arrays:
                    array[at] = 0

    # --- running ---------------------------------------------------------------------------------

    def read(
        self, texts: Sequence[Text], ids: Sequence[Sequence[int]], rows: int, *,
        slots: int | None = None, answers: int | None = None, hidden: bool = False,
        every: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """Each text goes on by its ids, for which it has pages: see `run`.

        Gives logits, float32 (texts, vocabulary), after the last id of each; with `every`
        (texts, rows, vocabulary), of which those after a text's last id mean nothing. With `hidden`
        what the logits are made of: (texts, rows, width).
        """
        assert max(map(len, ids)) <= rows or not (every or hidden), "a text's rows are one run"
        found = as_array(self.run(texts, ids, rows, slots, answers, hidden, every))
        if every or hidden:
            found = found.reshape(-1, rows, found.shape[-1])
        return found[: len(texts)]

    def run(
        self, texts: Sequence[Text], ids: Sequence[Sequence[int]], rows: int,
        slots: int | None = None, answers: int | None = None, hidden: bool = False,
        every: bool = False,
    ) -> Tensor:  # fmt: skip
        """What `read` gives, in rows as the program has them: (n, vocabulary) or (n, width).

        A program is compiled for `slots` runs of `rows` tokens each (by default as many as there
        are texts) and for the logits of `answers` texts (by default as many as runs). A text with
        more ids takes several runs, unless all rows are wanted.
        """
        runs = [(i, at) for i, new in enumerate(ids) for at in range(0, len(new), rows)]
        count = slots or len(runs)
        given = np.zeros((count, rows), np.int32)
        start = np.zeros((3, count), np.int32)
        start[2] = np.arange(count)
        last = np.zeros(answers or count, np.int32)
        first = [0] * len(texts)
        for n, (i, at) in enumerate(runs):
            some = ids[i][at : at + rows]
            given[n, : len(some)] = some
            first[i] = n - at // rows
            start[:, n] = texts[i].length + at, texts[i].length, first[i]
            last[i] = n * rows + len(some) - 1
        wanted = np.arange(count * rows, dtype=np.int32) if every or hidden else last
        listed = _listed([(texts[i], n) for n, (i, _) in enumerate(runs)], self.pages)
        with no_grad():
            step = self.look if hidden else self.step
            logits, *new_ones = step(*map(Tensor, (given.reshape(-1), start, listed, wanted)))
            self._write(texts, [len(new) for new in ids], [n * rows for n in first], new_ones)
        for text, new in zip(texts, ids):
            text.length += len(new)
        return logits

    def _write(
        self, texts: Sequence[Text], counts: Sequence[int], first: Sequence[int],
        new_ones: list[Tensor],
    ) -> None:  # fmt: skip
        """Put new keys and values (key heads, slots x rows, head width) into their pages; a text's
        are `counts` from its `first` row on."""
        runs = [run for text, count, row in zip(texts, counts, first)
                for run in _runs(text, count, row)]  # fmt: skip
        if self._memory[0] is None:
            places = [(page, at + n, row + n) for page, at, row, count in runs
                      for n in range(count)]  # fmt: skip
            self._put(*map(Tensor, np.array(places, np.int32).T), new_ones)
            return
        both = [array[which::2] for array in map(as_array, new_ones) for which in range(2)]
        for i, (memory, new) in enumerate(zip(self._memory, both)):
            assert memory is not None
            for page, at, row, count in runs:  # (layers, key heads, count, width)
                some = new[:, :, row : row + count]
                place = (slice(None), *_place(i, page, slice(at, at + count)))
                memory[place] = some if i == 1 else some.swapaxes(-1, -2)

    def _scatter(self, page: Tensor, at: Tensor, row: Tensor, new_ones: list[Tensor]) -> None:
        """The same where memory is not the host's: a pass over all of the pool."""
        count = 2 * self.decoder.config.layers
        found = [t[i] for t in new_ones for i in range(count)]
        for i, (whole, new) in enumerate(zip(self.arrays, found)):
            place = _place(i % 2 + 2 * (i >= count), page, at)
            whole[place] = new[:, row].permute(1, 0, 2)

    # --- the graph -------------------------------------------------------------------------------

    def _step(self, ids: Tensor, start: Tensor, pages: Tensor, wanted: Tensor) -> list[Tensor]:
        """[logits (rows wanted, vocabulary), keys and values by turns, their scales if any], the
        latter (2 x layers, key heads, tokens, width).

        ids (runs x rows,); start (3, runs) are each run's first position, its text's first new
        one, and its text (the number of that one's first run); pages (3, t) are for each page its
        number, the run that looks at it, and its first position. All are int32.
        """
        x, *found = self._through(ids, start, pages, wanted)
        return [self.decoder.logits(x), *found]

    def _look(self, ids: Tensor, start: Tensor, pages: Tensor, wanted: Tensor) -> list[Tensor]:
        """The same with what logits are made of, (rows wanted, width)."""
        x, *found = self._through(ids, start, pages, wanted)
        return [self.decoder.last(x), *found]

    def _through(self, ids: Tensor, start: Tensor, pages: Tensor, wanted: Tensor) -> list[Tensor]:
        rows = ids.shape[0] // start.shape[1]  # type: ignore[operator]
        row = Tensor.arange(rows, dtype="int32")
        positions = (start[0].unsqueeze(1) + row).reshape(-1)
        seen = _Seen(self.decoder, start, pages, positions)
        found: list[Tensor] = []
        scales: list[Tensor] = []

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            old = self.arrays[2 * i : 2 * i + 2]
            if not self.coded:
                k, v = k.cast(self.dtype), v.cast(self.dtype)
                found.extend((k, v))
                return seen.attend(i, q, (k.cast("float32"), v.cast("float32")), old)
            old += self.arrays[2 * (self.decoder.config.layers + i) :][:2]
            codes, steps = zip(*map(_coded, (k, v)))
            found.extend(codes)
            scales.extend(steps)
            k, v = (c.cast("float32") * s for c, s in zip(codes, steps))
            return seen.attend(i, q, (k, v), old)

        x = self.decoder.hidden(ids, positions, attend)
        return [x[wanted], *(f[0].stack(*f[1:]) for f in (found, scales) if f)]


class _Seen:
    """Who sees what in one step, and attention over it."""

    def __init__(self, decoder: Decoder, start: Tensor, pages: Tensor, at: Tensor) -> None:
        self.decoder, self.config = decoder, decoder.config
        self.count, t = start.shape[1], pages.shape[1]
        self.rows = at.shape[0] // self.count
        self.pages, self.run = pages[0], pages[1] % self.count
        mine = self.run.unsqueeze(0) == Tensor.arange(self.count, dtype="int32").unsqueeze(1)
        self.mine = mine.reshape(self.count, t, 1, 1, 1)
        places = pages[2].unsqueeze(1) + Tensor.arange(PAGE, dtype="int32")  # (t, PAGE)
        old = (places < start[1][self.run].unsqueeze(1)).reshape(t, 1, 1, 1, PAGE)
        here = at.reshape(self.count, 1, 1, self.rows, 1)
        new = at <= here
        if self.count != 1:  # (runs, 1, 1, rows, new tokens of all)
            whose = start[2].unsqueeze(1).expand(self.count, self.rows).reshape(-1)
            new = new & (start[2].reshape(self.count, 1, 1, 1, 1) == whose)
        self.old, self.new = [old], [new]
        if self.config.window:
            begin = start[0][self.run].unsqueeze(1) - self.config.window
            begin = begin + Tensor.arange(self.rows, dtype="int32")  # (t, rows)
            near = places.unsqueeze(1) > begin.unsqueeze(2)
            self.old.append(old & near.reshape(t, 1, 1, self.rows, PAGE))
            self.new.append(new & (at > here - self.config.window))

    def attend(
        self, i: int, q: Tensor, new: tuple[Tensor, Tensor], old: Sequence[Tensor]
    ) -> Tensor:
        """q (heads, n, width) over the new keys and values (key heads, n, width), and the pool's
        and their scales if they have any; gives (heads, n, width)."""
        c, count, rows = self.config, self.count, self.rows
        group = c.heads // c.key_heads
        lies = (c.key_heads, group, count, rows, c.head_width)
        q = q.reshape(*lies).permute(2, 0, 1, 3, 4)
        q = q.reshape(count, c.key_heads, group * rows, c.head_width)
        k, v = (t.unsqueeze(0) for t in new)
        if count != 1:  # a text's NaN is no other text's, though that one counts it 0 times
            v = (v.abs() < math.inf).where(v, 0.0)
        # what lies in pages, each for itself: (t, key heads, group x rows, ...)
        number = self.pages % old[0].shape[0]  # proves that it lies inside
        keys, values, *scales = (t[number].cast("float32") for t in old)
        windowed = self.decoder.is_windowed(i)
        scores = self._scores(q[self.run], keys, self.old[windowed], _LOW, *scales[:1])
        top = scores.amax(-1, keepdim=True)
        weights = (scores - top).exp()
        total = weights.sum(-1, keepdim=True)
        sums = (weights * scales[1] if scales else weights) @ values
        # the new tokens among themselves, and all together: (count, key heads, group x rows, ...)
        scores = self._scores(q, k.transpose(-2, -1), self.new[windowed], -math.inf)
        highest = self.mine.where(top.unsqueeze(0), _LOW).amax(1)
        highest = highest.maximum(scores.amax(-1, keepdim=True))
        weights, part = (scores - highest).exp(), (top - highest[self.run]).exp()
        all_sums = self._joined(part * sums) + weights @ v
        all_totals = self._joined(part * total) + weights.sum(-1, keepdim=True)
        y = (all_sums / all_totals).reshape(count, c.key_heads, group, rows, c.head_width)
        return y.permute(1, 2, 0, 3, 4).reshape(c.heads, count * rows, c.head_width)

    def _joined(self, x: Tensor) -> Tensor:
        """The pages' parts (t, ...) added up by their owners: (count, ...)."""
        if self.count == 1:
            return x.sum(0, keepdim=True)
        return self.mine.where(x.unsqueeze(0), 0.0).sum(1)

    def _scores(
        self, q: Tensor, keys: Tensor, seen: Tensor, none: float, scale: Tensor | None = None
    ) -> Tensor:
        """Scores (..., key heads, group x rows, positions); `none` where a query does not see.
        Positions' keys may have a scale each."""
        scores = self.decoder.scores(q @ keys if scale is None else (q @ keys) * scale)
        if seen.shape[-2] != 1:  # the same for each query head of a group
            *lead, _, rows, positions = seen.shape
            group = self.config.heads // self.config.key_heads
            seen = seen.expand(*lead, group, rows, positions)
        return seen.reshape(*seen.shape[:-3], -1, seen.shape[-1]).where(scores, none)


def _place(i: int, page: Any, at: Any) -> tuple[Any, ...]:
    """Where positions of pages lie in a layer's keys, values, or scales of these."""
    every = slice(None)
    return (page, every, at) if i == 1 else (page, every, every, at)


def _runs(text: Text, count: int, row: int) -> Iterator[tuple[int, int, int, int]]:
    """Where a text's next `count` tokens lie, which are rows from `row` on: page, position in it,
    first row, and how many."""
    n, end = text.length, text.length + count
    while n < end:
        at = n % PAGE
        some = min(end - n, PAGE - at)
        yield text.pages[n // PAGE], at, row, some
        n, row = n + some, row + some


def as_array(x: Tensor) -> np.ndarray:
    """What a tensor holds: on the CPU its own memory, not a copy."""
    if x.device != "CPU":
        return x.numpy()
    host: Any = devices.get("CPU")
    found: np.ndarray = host.view(x.storage().buffer, x.dtype.storage, x.shape)
    return found


def _coded(x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, scale) of the last axis' numbers."""
    scale = x.abs().amax(-1, keepdim=True).maximum(1e-30) * (1 / 127)
    return (x / scale).round().cast("int8"), scale


def _listed(runs: Sequence[tuple[Text, int]], empty: int) -> np.ndarray:
    """(3, t) int32: all pages that runs of texts look at, with the run's number and the page's
    first position. If there is none, an empty page that nobody sees."""
    found = [(page, i, n * PAGE) for text, i in runs
             for n, page in enumerate(text.pages[: -(-text.length // PAGE)])]  # fmt: skip
    return np.ascontiguousarray(np.array(found or [(empty, 0, _NOWHERE)], np.int32).T)


def _zeros(
    count: int, shape: tuple[int, ...], kind: dt.DType, huge: bool
) -> tuple[list[Tensor], np.ndarray | None]:
    """Tensors of zeros. On the CPU also their memory, which is one block, so that all are written
    to at once; the system gives it page by page: what is not used costs nothing."""
    empty = Tensor(np.zeros((), np.float32), dtype=kind)
    if empty.device != "CPU":
        return [Tensor(np.zeros(shape, np.float32), dtype=kind) for _ in range(count)], None
    host: Any = devices.get("CPU")
    raw = memory_of(count * math.prod(shape) * kind.itemsize, huge)
    memory = raw.view(kind.storage).reshape(count, *shape)
    stored = [Storage(shape, kind, "CPU", host.wrap(layer)) for layer in memory]
    return [Tensor(make(ops.INPUT, (), s)) for s in stored], memory  # type: ignore[arg-type]
