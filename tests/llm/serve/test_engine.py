"""Jobs side by side give what each gives alone; who goes frees his place."""
from __future__ import annotations

import queue
import threading

import numpy as np
import pytest
from support.small_llama import write_small

from muladd.errors import ArgumentError, FormatError, MuladdError
from muladd.formats import gguf
from muladd.llm.generate import LanguageModel
from muladd.llm.model import Decoder
from muladd.llm.pages import PAGE
from muladd.llm.sampling import Sampling
from muladd.llm.serve.engine import Busy, Engine, Job, Late
from muladd.llm.sources import from_gguf
from muladd.llm.writing import Options


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    read = from_gguf(write_small(tmp_path_factory.mktemp("m") / "small.gguf", layers=1))
    return LanguageModel(Decoder(*read[:2], 256))


@pytest.fixture
def engine(model, request):
    made = Engine(model, **getattr(request, "param", {"slots": 4}))
    made.start()
    yield made
    made.close()
    assert made.sharing.held == 0, "pages were lost"


class Answer(Job):
    """A job whose events wait in a queue."""

    def __init__(self, ids, options=None, **more):
        self.events = queue.Queue()
        super().__init__(list(ids), self.events.put, options, **more)

    def pieces(self):
        found = []
        while not found or not found[-1].finish:
            event = self.events.get(timeout=60)
            if isinstance(event, MuladdError):
                raise event
            found.append(event)
        return found


def most(n, **more):
    return Options(max_tokens=n, **more)


def test_many_jobs_say_what_each_says_alone(engine, model, rng):
    shapes = [(3, 20), (70, 9), (1, 30), (130, 5), (64, 12), (65, 1), (200, 40), (5, 5), (63, 3)]
    prompts = [rng.integers(0, 96, n).tolist() for n, _ in shapes]
    sampling = Sampling(temperature=1.0, seed=4)
    jobs = [Answer(p, most(n, sampling=sampling, logprobs=2)) for p, (_, n) in zip(prompts, shapes)]
    engine.submit(jobs)
    for job, prompt, (_, n) in zip(jobs, prompts, shapes):
        alone = list(model.generate(prompt, max_tokens=n, temperature=1.0, seed=4, logprobs=2))
        found = job.pieces()
        assert [p.token for p in found] == [p.token for p in alone]
        assert found[-1].finish == "length" and found[0].logprob == found[0].logprob
    assert engine.totals.answer_tokens == sum(n for _, n in shapes)
    assert engine.running == engine.waiting == 0


def test_the_same_beginning_is_read_once(engine, rng):
    system = rng.integers(0, 96, 2 * PAGE).tolist()
    jobs = [Answer([*system, i], most(3)) for i in range(6)]
    engine.submit(jobs)
    for job in jobs:
        job.pieces()
    assert [job.cached for job in jobs] == [0] + [2 * PAGE] * 5
    assert engine.totals.prompt_tokens == 6 * (2 * PAGE + 1)
    assert engine.totals.cached_tokens == 5 * 2 * PAGE and engine.totals.preempted == 0


def test_a_short_question_does_not_wait_for_long_ones(model, rng):
    """Without its thread, turn by turn."""
    engine = Engine(model, slots=4)
    long = [Answer(rng.integers(0, 96, 230).tolist(), most(2)) for _ in range(3)]
    short = Answer(rng.integers(0, 96, 20).tolist(), most(2))
    engine.submit([*long, short])
    turns = 0
    while short.events.empty():
        engine._sort_out()
        engine._turn()
        engine._tell()
        turns += 1
    assert turns == 2 and all(job.events.empty() for job in long)
    while any(job.events.empty() for job in long):  # nobody else is forgotten
        engine._sort_out()
        engine._turn()
        engine._tell()
        turns += 1
    assert turns < 20
    engine.cancel([*long, short])
    engine._sort_out()


def test_who_begins_as_another_does_waits_for_his_pages(engine, rng):
    system = rng.integers(0, 96, 3 * PAGE).tolist()
    jobs = [Answer([*system, *rng.integers(0, 96, n).tolist()], most(2)) for n in (60, 5, 20)]
    engine.submit(jobs)
    for job in jobs:
        job.pieces()
    assert [job.cached for job in jobs] == [0, 3 * PAGE, 3 * PAGE]


def test_a_prompt_that_begins_within_a_chunk_is_known_page_by_page(engine, model, rng):
    """Its parts end where no page does."""
    short, long = (rng.integers(0, 96, n).tolist() for n in (50, 220))
    jobs = [Answer(p, most(5)) for p in (short, long)]
    engine.submit(jobs)
    said = [[p.token for p in job.pieces()] for job in jobs]
    assert [job.cached for job in jobs] == [0, 0]
    again = Answer(long, most(5))
    engine.submit([again])
    assert [p.token for p in again.pieces()] == said[1]
    assert again.cached == 3 * PAGE
    for prompt, tokens in zip((short, long), said):
        assert [p.token for p in model.generate(prompt, max_tokens=5)] == tokens


@pytest.mark.parametrize("engine", [{"slots": 4, "tokens": 256}], indirect=True)
def test_too_few_pages_for_all(engine, model, rng):
    """Four texts of 200 tokens in a pool for 256: the youngest wait, and lose nothing."""
    prompts = [rng.integers(0, 96, 100 + i).tolist() for i in range(4)]
    jobs = [Answer(p, most(100)) for p in prompts]
    engine.submit(jobs)
    for job, prompt in zip(jobs, prompts):
        alone = [p.token for p in model.generate(prompt, max_tokens=100)]
        assert [p.token for p in job.pieces()] == alone
    assert engine.totals.preempted > 0


@pytest.mark.parametrize("engine", [{"slots": 4, "tokens": 256}], indirect=True)
@pytest.mark.parametrize("count", [0, 60])
def test_prompts_are_scored(engine, model, rng, count):
    """Also where they begin like others, and where pages are taken back on the way."""
    first = rng.integers(0, 96, 64).tolist()
    prompts = [[*first, *rng.integers(0, 96, n).tolist()] for n in (0, 1, 64, 65)] + [[5]]
    jobs = [Answer(p, most(count, logprobs=2), scores=[]) for p in prompts]
    engine.submit(jobs)
    for job, prompt in zip(jobs, prompts):
        pieces = job.pieces()
        assert pieces[-1].finish == "length" and len(pieces) == max(1, count)
        wanted = model.log_likelihoods(prompt)
        np.testing.assert_allclose([chance for chance, _ in job.scores], wanted, atol=1e-3)
        assert all(len(top) == 2 for _, top in job.scores)
    assert engine.totals.answer_tokens == 5 * count and engine._head.traces == 1
    assert (engine.totals.preempted > 0) == (count > 0)


def test_who_goes_frees_his_slot(engine):
    gone = [Answer([1, 2, 3], most(200)) for _ in range(4)]
    engine.submit(gone)
    gone[0].events.get(timeout=60)
    next_one = Answer([5], most(2))
    engine.submit([next_one])
    assert next_one.events.empty()
    engine.cancel(gone)
    assert len(next_one.pieces()) == 2
    assert engine.totals.cancelled == 4 and engine.running == 0
    assert not any(e.finish for job in gone for e in list(job.events.queue))


@pytest.mark.parametrize("engine", [{"slots": 1, "queue": 2}], indirect=True)
def test_limits(engine):
    first = Answer([1], most(250))
    engine.submit([first])
    first.events.get(timeout=60)
    with engine._changed:  # it does not find out who is late before all have come
        engine.submit([Answer([1], most(1)), late := Answer([1], most(1), deadline=0.0)])
        with pytest.raises(Busy, match="2 requests are waiting"):
            engine.submit([Answer([1], most(1))])
    with pytest.raises(ArgumentError, match="4 texts are asked for at a time; expected at most 3"):
        engine.submit([Answer([1], most(1)) for _ in range(4)])
    with pytest.raises(Late):
        late.pieces()
    engine.drain(0.0)
    with pytest.raises(Busy, match="stopping"):
        engine.submit([Answer([1], most(1))])
    with pytest.raises(Busy, match="stopping"):
        first.pieces()


def test_a_drained_engine_finishes_what_it_has(engine):
    job = Answer([1], most(50))
    engine.submit([job])
    engine.drain(60.0)
    assert len(job.pieces()) == 50


def test_a_failure_ends_one_job_and_the_engine_goes_on(engine):
    class Wrong:
        def start(self):
            raise ValueError("nobody thought of this")

    wrong, right = Answer([1], most(5, constraint=Wrong())), Answer([2], most(5))
    engine.submit([wrong, right])
    with pytest.raises(MuladdError, match="nobody thought of this"):
        wrong.pieces()
    assert len(right.pieces()) == 5 and engine.totals.failed == 1


@pytest.mark.slow
def test_numbers_that_are_none_stay_with_their_text(tmp_path, rng):
    """Beside others in a chunk, and in a step; and no page of theirs is read again."""
    found = gguf.load(write_small(tmp_path / "small.gguf"))
    weights = {n: t.dequantize().copy() for n, t in found.tensors.items()}
    weights["output.weight"] = weights["token_embd.weight"].copy()
    weights["token_embd.weight"][90] = np.nan
    gguf.save(tmp_path / "nan.gguf", found.metadata, weights)
    model = LanguageModel(Decoder(*from_gguf(tmp_path / "nan.gguf")[:2], 256))
    engine = Engine(model, slots=4)
    engine.start()
    prompts = [[1, 2, 3], [4, 90, 5], [7, 8], rng.integers(0, 89, 151).tolist()]
    jobs = [Answer(p, most(30)) for p in prompts]
    long = rng.integers(0, 89, 151).tolist()
    ill = [Answer([*long[:130], 90, n], most(3)) for n in range(2)]
    engine.submit(jobs)
    engine.submit(ill)
    for job in (jobs[1], *ill):
        with pytest.raises(FormatError):
            job.pieces()
    jobs += [Answer(long, most(5)), Answer([6], most(5))]
    engine.submit(jobs[-2:])
    for job in (jobs[0], *jobs[2:]):
        assert len(job.pieces()) in (5, 30)
    engine.close()


def test_nothing_is_compiled_in_service(engine, rng):
    traces = engine.pool.step.traces
    jobs = [Answer(rng.integers(0, 96, 1 + 17 * i).tolist(), most(9)) for i in range(12)]
    threads = [threading.Thread(target=engine.submit, args=([job],)) for job in jobs]
    for t in threads:
        t.start()
    for job in jobs:
        job.pieces()
    assert engine.pool.step.traces == traces == 3 + len(engine.sizes)


def test_vectors(engine, rng):
    ids = rng.integers(0, 96, 150).tolist()
    jobs = [Answer(i) for i in (ids, ids[:20], ids)]
    engine.submit(jobs)
    a, b, c = (job.events.get(timeout=60) for job in jobs)
    np.testing.assert_allclose(np.linalg.norm(a), 1, rtol=1e-5)
    np.testing.assert_allclose(a, c, atol=1e-6)
    assert a.shape == b.shape == (32,) and a @ b < 0.999
