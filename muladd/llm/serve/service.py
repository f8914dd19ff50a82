"""Requests to jobs of the engine, and their events to answers: all of the API but HTTP."""
from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

from muladd.errors import ArgumentError, MuladdError
from muladd.llm.constrain import json_constraint
from muladd.llm.embeddings import EmbeddingModel
from muladd.llm.serve import answers, api, tools
from muladd.llm.serve.api import ApiError
from muladd.llm.serve.engine import Busy, Engine, Event, Job, Late
from muladd.llm.tokenizer import Tokenizer
from muladd.llm.writing import Options, Piece

_AT_ONCE = 4  # prompts that are made ids at a time: the engine needs the cores, too


class Service:
    """Answers requests with one model, which is called `name`; none takes longer than `timeout`
    seconds. `embedders` are models of sentence embeddings by their names."""

    def __init__(
        self, engine: Engine, name: str, timeout: float = 600.0,
        embedders: Mapping[str, EmbeddingModel] | None = None,
    ) -> None:  # fmt: skip
        tokenizer = engine.model.tokenizer
        if tokenizer is None:
            raise ArgumentError(f"serve: {name} came without a tokenizer, and clients send text")
        self.engine, self.name, self.timeout = engine, name, timeout
        self.tokenizer: Tokenizer = tokenizer
        self.context = engine.model.context
        self.embedders = dict(embedders or {})
        self._one_at_a_time = anyio.CapacityLimiter(1)
        self._reading = partial(anyio.to_thread.run_sync, limiter=anyio.CapacityLimiter(_AT_ONCE))
        self._longest = max(map(len, tokenizer.pieces))

    # --- requests to jobs ------------------------------------------------------------------------

    def check_model(self, name: str) -> None:
        """Raises ApiError for a model that is not here."""
        if name in self.embedders:
            raise ApiError(f"the model {name!r} gives embeddings only; {self.name!r} gives texts",
                           param="model")  # fmt: skip
        if name != self.name:
            there = " and ".join(map(repr, (self.name, *self.embedders)))
            raise ApiError(f"the model {name!r} does not exist; there is {there}",
                           status=404, param="model", code="model_not_found")  # fmt: skip

    def ids(self, text: str | list[int], param: str, room: int = 1) -> list[int]:
        """A prompt as ids that leave room for an answer. Raises ApiError."""
        if isinstance(text, str):
            try:
                found = self._encoded(text, param)
            except ArgumentError as error:
                raise ApiError(str(error), param=param) from None
        elif len(text) > self.context:
            raise self._too_long(str(len(text)), param)
        else:
            found = text
            self._check_ids(found, param)
        if not found:
            raise ApiError(f"{param} is empty; give some text", param=param)
        if len(found) + room > self.context:
            raise self._too_long(str(len(found)), param)
        return found

    def _check_ids(self, ids: Iterable[int], param: str) -> None:
        count = self.engine.model.decoder.embedding.shape[0]
        if wrong := [i for i in ids if not 0 <= i < count]:
            raise ApiError(f"{param} holds {wrong[0]}; expected ids from 0 to {count - 1}",
                           param=param)  # fmt: skip

    def _encoded(self, text: str, param: str) -> list[int]:
        """A text's ids. One that is far too long is known by its length, or by its beginning."""
        if len(text) <= self.context * self._longest:
            ids, whole = self.tokenizer.encode_up_to(text, self.context)
            if whole:
                return ids
        raise self._too_long(f"more than {self.context}", param)

    def _too_long(self, count: str, param: str) -> ApiError:
        return ApiError(
            f"This model's maximum context length is {self.context} tokens, and the prompt has "
            f"{count}; shorten it", param=param, code="context_length_exceeded",
        )  # fmt: skip

    def chat_prompt(self, asked: api.ChatAsked) -> tuple[list[int], Options]:
        """The ids of a conversation, and the options with what its answer is bound to."""
        messages, offered = asked.messages, asked.offered
        if not self.tokenizer.knows_tools:
            messages, offered = tools.told(messages, offered), []
        try:
            text = self.tokenizer.chat(messages, offered or None)
        except MuladdError as error:
            raise ApiError(str(error), param="messages") from None
        schema, param = asked.schema, "response_format"
        if asked.tool_choice == "required":
            schema, param = tools.schema(asked.tools), "tools"
        elif asked.offered and isinstance(schema, Mapping):  # an answer, or a call
            schema = tools.schema(asked.offered, schema)
        options = asked.options
        if schema is not None:
            try:
                bound = json_constraint(self.tokenizer, None if schema is True else schema)
            except ArgumentError as error:
                raise ApiError(str(error), param=param) from None
            options = replace(options, constraint=bound)
        return self.ids(text, "messages"), options

    def jobs(self, asked: api.Asked, prompts: Sequence[list[int]], options: Options) -> list[Job]:
        """A job for each choice of each prompt; seeds of choices differ. Raises ApiError."""
        self._check_ids(options.logit_bias, "logit_bias")
        sampling = options.sampling
        each = [options] * asked.count
        if sampling.seed is not None:
            seeds = [(sampling.seed + i) % (1 << 63) for i in range(asked.count)]
            each = [replace(options, sampling=replace(sampling, seed=seed)) for seed in seeds]
        return [self._job(prompt, choice) for prompt in prompts for choice in each]

    def _job(self, ids: list[int], options: Options | None) -> Job:
        return Job(ids, _nowhere, options, self.engine.clock() + self.timeout)

    # --- events to answers -----------------------------------------------------------------------

    async def chat(self, asked: api.ChatAsked) -> AsyncIterator[Any]:
        """The bodies of a stream, or one body; what is asked is checked before the first."""
        self.check_model(asked.model)
        ids, options = await self._reading(self.chat_prompt, asked)
        jobs = self.jobs(asked, [ids], options)
        return self._bodies(answers.ChatAnswer(asked, self.tokenizer, jobs))

    async def completion(self, asked: api.CompletionAsked) -> AsyncIterator[Any]:
        """The same for texts without a template."""
        self.check_model(asked.model)
        room = int(asked.options.max_tokens != 0)
        prompts = [await self._reading(self.ids, p, "prompt", room) for p in asked.prompts]
        jobs = self.jobs(asked, prompts, asked.options)
        if asked.echo and asked.options.logprobs is not None:
            for job in jobs:
                job.scores = []
        return self._bodies(answers.CompletionAnswer(asked, self.tokenizer, jobs))

    async def _bodies(self, answer: answers.Answer) -> AsyncIterator[Any]:
        jobs = [c.job for c in answer.choices]
        async with Events(self.engine, jobs, at_once=answer.asked.stream) as events:
            async for i, piece in events:
                for body in answer.put(i, piece):
                    yield body
        if not answer.asked.stream:
            yield answer.whole()
        elif answer.asked.usage_in_stream:
            yield {**answer.body([]), **answer.usage()}

    async def embedding(self, asked: api.EmbeddingAsked) -> Any:
        """The answer of /v1/embeddings: vectors of a model of its own, or means of what the last
        layer gives, of length 1."""
        if asked.model in self.embedders:
            read = partial(self._embedded, self.embedders[asked.model], asked)
            return await anyio.to_thread.run_sync(read, limiter=self._one_at_a_time)
        self.check_model(asked.model)
        texts = [await self._reading(self.ids, t, "input", 0) for t in asked.inputs]
        found: list[Any] = [None] * len(texts)
        jobs = [self._job(ids, None) for ids in texts]
        async with Events(self.engine, jobs, at_once=False) as events:
            async for i, vector in events:
                found[i] = vector
        return answers.vectors(self.name, found, sum(map(len, texts)), asked.base64)

    def _embedded(self, model: EmbeddingModel, asked: api.EmbeddingAsked) -> Any:
        if any(not isinstance(text, str) for text in asked.inputs):
            raise ApiError(f"input holds ids; {asked.model!r} takes text", param="input")
        try:
            found = model.read([str(text) for text in asked.inputs], cut=False)
        except ArgumentError as error:
            raise ApiError(str(error), param="input", code="context_length_exceeded") from None
        return answers.vectors(asked.model, list(found.vectors), found.tokens, asked.base64)


class Events:
    """What jobs say, with their numbers, until all are done: an asynchronous iterator, and a
    context whose end cancels what is left. Raises ApiError when a job fails or cannot be taken.

    If it need not be `at_once`, nobody is woken before a job has said its last: that takes time
    from the next step of all jobs.
    """

    def __init__(self, engine: Engine, jobs: Sequence[Job], at_once: bool) -> None:
        self.engine, self.jobs, self.left, self.at_once = engine, jobs, len(jobs), at_once
        self._loop = asyncio.get_running_loop()
        self._said: list[tuple[int, Event]] = []  # what nobody was woken for, in engine's thread
        self._queue: asyncio.Queue[list[tuple[int, Event]]] = asyncio.Queue()
        self._heard: deque[tuple[int, Event]] = deque()
        for i, job in enumerate(jobs):
            job.emit = partial(self._emit, i)
        try:
            engine.submit(jobs)
        except MuladdError as error:
            raise _told(error) from None

    def _emit(self, i: int, event: Event) -> None:
        self._said.append((i, event))
        if not (self.at_once or _is_last(event)):
            return
        said, self._said = self._said, []
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, said)
        except RuntimeError:  # the loop is closed: nobody listens
            pass

    async def __aenter__(self) -> Events:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.left:
            self.engine.cancel(self.jobs)

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> tuple[int, Any]:
        if not self.left:
            raise StopAsyncIteration
        if not self._heard:
            self._heard.extend(await self._queue.get())
        elif len(self._heard) % 64 == 0:  # a long answer leaves others their turns
            await asyncio.sleep(0)
        i, event = self._heard.popleft()
        if isinstance(event, MuladdError):
            raise _told(event)
        self.left -= _is_last(event)
        return i, event


def _is_last(event: Event) -> bool:
    """Whether a job says no more after it."""
    return not isinstance(event, Piece) or event.finish is not None


def _nowhere(event: Event) -> None:
    """Where events go before somebody listens."""


def _told(error: MuladdError) -> ApiError:
    """An engine's error in the API's form."""
    if isinstance(error, Busy):
        status = 503 if "stop" in str(error) else 429
        return ApiError(str(error), status=status, kind="server_error" if status == 503
                        else "rate_limit_error", code="overloaded")  # fmt: skip
    if isinstance(error, Late):
        return ApiError(str(error), status=504, kind="server_error", code="timeout")
    if isinstance(error, ArgumentError):
        return ApiError(str(error))
    return ApiError(f"the server failed: {error}", status=500, kind="server_error")
