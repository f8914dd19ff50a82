"""Continuous batching: one thread that reads prompts and writes answers of many jobs side by side.

Each turn reads one chunk of what is not read yet and then writes one token of every answer on its
way, in one step: those that write are held up by no more than a chunk. The chunk is of the oldest
prompt in one turn and of the shortest in the next, and what it has room for beside it: so a short
question does not wait for long ones, and no long one waits for ever. If the pool has no page left,
the youngest job gives its pages back and reads its text again later.
"""
from __future__ import annotations

import contextvars
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from muladd.errors import ArgumentError, FormatError, MuladdError
from muladd.llm.checks import check_number
from muladd.llm.generate import LanguageModel
from muladd.llm.pages import CHUNK, PAGE, Pool, Text, as_array
from muladd.llm.sampling import Weights, weights
from muladd.llm.serve.sharing import Sharing
from muladd.llm.weights import sizes
from muladd.llm.writing import Likelihood, Options, Piece, Writer, likelihood
from muladd.tensor import Tensor
from muladd.tensor.handle import no_grad
from muladd.tensor.jit import jit

SIZES = (1, 4, 8, 16, 32, 64)  # how many conversations a step's programs are compiled for
SHORT = 16  # tokens up to which a prompt's rest is read as such, if it is the only one
TOGETHER = 4  # prompts that share a chunk, at most
RUN = 4  # a prompt that shares one takes a multiple of so many rows
PAGES = 8  # and has so many pages before, at most
# what reads prompts: tokens of a run, runs, and texts that end, as programs are compiled for
_ALONE, _REST, _SHARED = (CHUNK, 1, 1), (SHORT, 1, 1), (RUN, CHUNK // RUN, TOGETHER)
_ROWS = 4  # texts from which on it is worth to weigh all their tokens at once


class Busy(MuladdError, RuntimeError):
    """The queue is full, or the server is stopping."""


class Late(MuladdError, TimeoutError):
    """A job took longer than it may."""


Event = Piece | np.ndarray | MuladdError


@dataclass(eq=False)
class Job:
    """A text to go on, or (without options) to embed. `emit` gets its pieces, or its vector
    (float32, (width,)), or what went wrong; it is called in the engine's thread. A list of `scores`
    has, when the first piece comes, `likelihood` of each id but the first after those before it."""

    ids: list[int]
    emit: Callable[[Event], None]
    options: Options | None = None
    deadline: float = float("inf")
    scores: list[Likelihood] | None = None
    # what the engine knows of it
    cancelled: bool = False
    cached: int = 0  # tokens of the prompt that were there already
    text: Text = field(default_factory=Text)
    writer: Writer | None = None
    sum: np.ndarray | None = None

    @property
    def all_ids(self) -> list[int]:
        return self.ids if self.writer is None else self.writer.ids

    @property
    def unread(self) -> int:
        return len(self.all_ids) - self.text.length

    def follows(self, other: Job) -> bool:
        """Whether the page that another job reads now would be one of this job's too."""
        end = (other.text.length // PAGE + 1) * PAGE
        return end <= len(self.all_ids) and self.all_ids[:end] == other.all_ids[:end]

    @property
    def looks(self) -> bool:
        """Whether what the last layer gives is wanted of every position."""
        return self.options is None or self.scores is not None and self.writer is None


@dataclass
class Totals:
    """What an engine has done since it began."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # those of the prompts' that did not have to be computed
    answer_tokens: int = 0
    steps: int = 0
    preempted: int = 0  # jobs whose pages were needed by older ones
    cancelled: int = 0
    failed: int = 0


class Engine:
    """Runs jobs on a model, `slots` at a time; `queue` more may wait.

    The pool has room for `tokens` of all conversations together: at least for one context, and
    for one in each slot if nothing is said.
    """

    def __init__(
        self, model: LanguageModel, *, slots: int = 16, queue: int = 256,
        tokens: int | None = None, cache: str = "float32",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        check_number("engine", "slots", slots, 1, SIZES[-1])
        self.model, self.slots, self.queue, self.clock = model, slots, queue, clock
        context = -(-model.context // PAGE)
        count = slots * context if tokens is None else max(context, -(-tokens // PAGE))
        self.sizes = [n for n in SIZES if n < slots] + [min(n for n in SIZES if n >= slots)]
        self.pool = Pool(model.decoder, count, cache, huge=True)
        self._head = jit(model.decoder.head, at_once=True)
        self._weights = jit(weights, at_once=True)
        self.sharing = Sharing(count)
        self.totals = Totals()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []  # the oldest first
        self._said: list[tuple[Job, Event]] = []  # in this turn
        self._changed = threading.Condition()
        self._closed, self._end = False, float("inf")
        self._oldest_first = False
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="engine", daemon=True)

    # --- from other threads -----------------------------------------------------------------------

    def start(self, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Compile what steps need, and begin; `progress` hears how many programs are done."""
        self.warm(progress)
        self._thread.start()

    def warm(self, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Run every program once, so that nothing is compiled while somebody waits; and take the
        pool's memory, so that it is there when it is needed."""
        self.pool.take()
        steps = [*((0, *shape) for shape in (_ALONE, _REST, _SHARED)),
                 *((1, 1, size, size) for size in self.sizes)]  # fmt: skip
        for i, (length, rows, slots, answers) in enumerate(steps):
            progress(i, len(steps) + 1)
            logits = self.pool.run([Text([0], length)], [[0]], rows, slots, answers)
            if rows == 1 and slots >= _ROWS:
                self._weighed(logits, [1.0] * slots)
        progress(len(steps), len(steps) + 1)
        self._logits(self.pool.read([Text([0])], [[0]], CHUNK, hidden=True)[0])

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs, all or none. Raises Busy, and ArgumentError for more than there is ever room
        for."""
        if len(jobs) > self.queue + self.slots:
            raise ArgumentError(f"{len(jobs)} texts are asked for at a time; expected at most "
                                f"{self.queue + self.slots}")  # fmt: skip
        with self._changed:
            if self._closed or self._end < float("inf"):
                raise Busy("the server is stopping; ask another, or later")
            if len(self._waiting) + len(jobs) > self.queue + self.slots - len(self._running):
                raise Busy(f"{len(self._waiting)} requests are waiting already; try again later")
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Forget jobs: their slots and pages are free with the next step. They say nothing more."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._changed.notify()

    def drain(self, limit: float) -> None:
        """Take no more jobs; those that are not done in `limit` seconds fail with Busy."""
        with self._changed:
            self._end = min(self._end, self.clock() + limit)
            self._changed.notify()

    def close(self) -> None:
        """Stop at once and wait for the thread; jobs that are left fail with Busy."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    # --- the engine's thread ----------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._waiting or self._running):
                    self._changed.wait()
                if self._closed:
                    break
                self._sort_out()
            self._turn()
            self._tell()
        for job in [*self._running, *self._waiting]:
            self._finish(job, Busy("the server has stopped"))
        self._tell()

    def _sort_out(self) -> None:
        """Who has gone, or is late, leaves; who waits gets a free slot."""
        now = self.clock()
        for job in [*self._running, *self._waiting]:
            if job.cancelled:
                self.totals.cancelled += 1
                self._finish(job, None)
            elif now >= self._end:
                self._finish(job, Busy("the server is stopping"))
            elif now >= job.deadline:
                self._finish(job, Late("the time for this request is over"))
        while self._waiting and len(self._running) < self.slots:
            self._running.append(self._waiting.popleft())

    def _turn(self) -> None:
        parts = self._parts()
        if parts:
            self._guarded(list(parts), partial(self._read, parts))
        writing = [job for job in self._running if job.unread == 1 and job.options]
        if writing:
            self._guarded(writing, partial(self._write, writing))

    def _parts(self) -> dict[Job, int]:
        """The jobs that are read next, and how many tokens of each: together no more than a chunk.
        One of which more than the last token's logits are wanted has it for itself, and so has one
        of many pages: where it shares, each run of tokens reads them all."""
        parts: dict[Job, int] = {}
        left = CHUNK
        waiting = [job for job in self._running if job.unread > 1 or not job.options]
        self._oldest_first = not self._oldest_first
        if not self._oldest_first:
            begun = [job for job in waiting if job.text.pages]
            waiting = [job for job in waiting if job in begun or not any(map(job.follows, begun))]
            waiting.sort(key=lambda job: job.unread)
        for job in waiting:
            if left <= 0 or len(parts) == TOGETHER:
                break
            if not job.text.pages and not job.looks:
                job.text = self.sharing.begin(job.all_ids)
                if job.writer is None:
                    job.cached = job.text.length
            alone = job.looks or len(job.text.pages) > PAGES
            if alone and parts:
                continue
            parts[job] = min(job.unread, left)
            left = 0 if alone else left - -(-parts[job] // RUN) * RUN
        return parts

    def _guarded(self, jobs: list[Job], run: Callable[[], None]) -> None:
        """A failure ends the jobs that it concerns, and nothing else."""
        try:
            run()
        except Exception as error:
            for job in jobs:
                if job in self._running:
                    self.totals.failed += 1
                    told = error if isinstance(error, MuladdError) else MuladdError(repr(error))
                    if isinstance(error, FormatError):  # what it has put away is no numbers
                        self.pool.clear(self.sharing.forget(job.text))
                    self._finish(job, told)

    def _read(self, parts: dict[Job, int]) -> None:
        """The next parts of prompts (or of what jobs had written before they lost their pages)."""
        jobs = self._with_room(parts)
        if not jobs:
            return
        looks = jobs[0].looks
        new = [job.all_ids[job.text.length :][: parts[job]] for job in jobs]
        short = len(new[0]) <= SHORT and not looks
        rows, slots, answers = _SHARED if len(jobs) > 1 else _REST if short else _ALONE
        texts = [job.text for job in jobs]
        found = self.pool.read(texts, new, rows, slots=slots, answers=answers, hidden=looks)
        self.totals.steps += 1
        for job, some, part in zip(jobs, new, found):
            if job.options is None:
                self._add(job, part[: len(some)].sum(0))
                continue
            if looks:
                part = self._score(job, part, len(some))
            self.sharing.seal(job.text, job.all_ids)
            if not job.unread:
                self._guarded([job], partial(self._put, job, part))

    def _add(self, job: Job, part: np.ndarray) -> None:
        """A part of what is to be embedded has been read."""
        job.sum = part if job.sum is None else job.sum + part
        if not job.unread:
            self.totals.prompt_tokens += len(job.ids)
            self.model.sound(job.sum)
            self._finish(job, job.sum / math.sqrt((job.sum * job.sum).sum()))

    def _score(self, job: Job, part: np.ndarray, count: int) -> np.ndarray:
        """A part of a prompt has been read, `count` positions: scores of the ids after these. Gives
        the logits after the last."""
        logits = self.model.sound(self._logits(part)[:count])
        assert job.options is not None and job.scores is not None
        after = job.ids[job.text.length - count + 1 :]
        top = job.options.logprobs or 0
        job.scores += [likelihood(row, token, top) for row, token in zip(logits, after)]
        return logits[-1]

    def _logits(self, hidden: np.ndarray) -> np.ndarray:
        """Of what the last layer gives of a chunk: (CHUNK, width) to (CHUNK, vocabulary)."""
        with no_grad():
            return self._head(Tensor(hidden)).numpy()

    def _write(self, jobs: list[Job]) -> None:
        """One token of each job."""
        jobs = self._with_room(dict.fromkeys(jobs, 1))
        if not jobs:
            return
        size = next(n for n in self.sizes if n >= len(jobs))
        texts = [job.text for job in jobs]
        found = self.pool.run(texts, [job.all_ids[-1:] for job in jobs], 1, size)
        self.totals.steps += 1
        for job, logits, known in zip(jobs, as_array(found), self._known(jobs, found)):
            self.sharing.seal(job.text, job.all_ids)
            self._guarded([job], partial(self._put, job, logits, known))

    def _known(self, jobs: list[Job], logits: Tensor) -> list[Weights | None]:
        """How likely tokens are, for those that draw them: of several rows at once this takes a
        fifth of the time."""
        warmth = [job.options.sampling.temperature if job.options and job.options.draws else 0.0
                  for job in jobs]  # fmt: skip
        if len(jobs) < _ROWS or not any(warmth):
            return [None] * len(jobs)
        found = self._weighed(logits, warmth)
        return [known if warm else None for known, warm in zip(found, warmth)]

    def _weighed(self, logits: Tensor, warmth: list[float]) -> list[Weights]:
        given = np.zeros(sizes(logits)[0], np.float32)
        given[: len(warmth)] = warmth
        with no_grad():
            found = self._weights(logits, Tensor(given))
        each, sums, low, high = map(as_array, found)
        ends = sums.cumsum(-1, dtype=np.float64)
        return [Weights(*row) for row in zip(each, ends, low.tolist(), high.tolist())]

    def _put(self, job: Job, logits: np.ndarray, known: Weights | None = None) -> None:
        if job.cancelled:
            return
        if job.writer is None:
            assert job.options is not None
            tokenizer, context = self.model.tokenizer, self.model.context
            job.writer = Writer(job.ids, tokenizer, context, job.options)
            self.totals.prompt_tokens += len(job.ids)
            self.totals.cached_tokens += job.cached
        if job.writer.options.max_tokens == 0:
            self._finish(job, Piece("", finish="length"))
            return
        if known is None:
            self.model.sound(logits)
        else:
            self.model.check_sound(known.low, known.high)
        piece = job.writer.put(logits, known)
        self.totals.answer_tokens += 1
        if piece.finish:
            self._finish(job, piece)
        else:
            self._said.append((job, piece))

    def _with_room(self, jobs: dict[Job, int]) -> list[Job]:
        """Those of the jobs that have pages for so many tokens more."""
        for job, count in jobs.items():
            if job in self._running:
                self._make_room(job, job.text.length + count)
        return [job for job in jobs if job in self._running]

    def _make_room(self, job: Job, length: int) -> None:
        """Pages for so many positions; younger jobs give theirs, or the job its own."""
        while not self.sharing.grow(job.text, length):
            youngest = self._running.pop()
            self.sharing.end(youngest.text)
            youngest.sum = None
            if youngest.looks and youngest.scores:
                youngest.scores.clear()
            self.totals.preempted += 1
            self._waiting.appendleft(youngest)
            if youngest is job:
                return

    def _finish(self, job: Job, event: Event | None) -> None:
        """A job leaves; others may have its slot and pages."""
        self.sharing.end(job.text)
        if job in self._running:
            self._running.remove(job)
        else:
            self._waiting.remove(job)
        if event is not None:
            self._said.append((job, event))

    def _tell(self) -> None:
        """What a turn has said goes out all at once: whoever hears it wants to run, and would get
        in the way of those who have not written yet."""
        for job, event in self._said:
            job.emit(event)
        self._said.clear()
