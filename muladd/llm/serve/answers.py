"""Pieces of text as the objects that OpenAI's API answers with."""
from __future__ import annotations

import base64
import itertools
import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muladd.llm.serve import tools
from muladd.llm.serve.api import Asked, ChatAsked, CompletionAsked
from muladd.llm.serve.engine import Job
from muladd.llm.tokenizer import Tokenizer
from muladd.llm.writing import Piece


@dataclass
class Choice:
    """One choice of an answer, as it comes."""

    job: Job
    pieces: list[Piece] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    reader: tools.Reader | None = None
    written: int = 0  # tokens of the answer


class Answer(ABC):
    """What is told of jobs' pieces: parts of a stream as they come, or one body at the end.

    `jobs` are the choices of the first prompt, then those of the next, ...
    """

    prefix: str
    kind: str  # of the object

    def __init__(self, asked: Asked, tokenizer: Tokenizer, jobs: Sequence[Job]) -> None:
        self.asked, self.tokenizer = asked, tokenizer
        self.wants = asked.options.logprobs is not None  # whether log-probabilities are told
        self.choices = [Choice(job) for job in jobs]
        kind = f"{self.kind}.chunk" if asked.stream and self.kind.startswith("chat") else self.kind
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "object": kind,
                      "created": int(time.time()), "model": asked.model}  # fmt: skip

    @abstractmethod
    def put(self, i: int, piece: Piece) -> list[dict[str, Any]]:
        """A piece of choice i has come: the parts of a stream that tell it."""

    @abstractmethod
    def choice(self, i: int) -> dict[str, Any]:
        """Choice i as a whole."""

    def body(self, choices: list[Any]) -> dict[str, Any]:
        """The object around choices."""
        return {**self._head, "choices": choices}

    def whole(self) -> dict[str, Any]:
        """The answer to a request that is no stream."""
        return {**self.body([self.choice(i) for i in range(len(self.choices))]), **self.usage()}

    def usage(self) -> dict[str, Any]:
        """How many tokens were read and written. A prompt with several choices counts once."""
        each = [c.job for c in self.choices[:: self.asked.count]]
        read, written = sum(len(j.ids) for j in each), sum(c.written for c in self.choices)
        return {"usage": {
            "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": sum(j.cached for j in each)},
        }}  # fmt: skip

    def name(self, token: int | None) -> str:
        """A token as text; U+FFFD for what is a part of a character."""
        return "" if token is None else self.tokenizer.pieces[token].decode("utf-8", "replace")


class ChatAnswer(Answer):
    """The answer of /v1/chat/completions. Calls of tools are taken out, if there are any."""

    prefix, kind = "chatcmpl", "chat.completion"

    def __init__(self, asked: ChatAsked, tokenizer: Tokenizer, jobs: Sequence[Job]) -> None:
        super().__init__(asked, tokenizer, jobs)
        for choice in self.choices if asked.offered else ():
            choice.reader = tools.Reader()

    def put(self, i: int, piece: Piece) -> list[dict[str, Any]]:
        choice = self.choices[i]
        first, text = not choice.pieces, piece.text
        choice.pieces.append(piece)
        choice.written += 1
        choice.finish = piece.finish
        if choice.reader is not None:
            text = choice.reader.put(text)
            if piece.finish:
                rest, found = choice.reader.end()
                text += rest
                choice.calls = [_call(i, *call) for i, call in enumerate(found)]
                choice.finish = "tool_calls" if found else piece.finish
        choice.text += text
        if not self.asked.stream:
            return []
        deltas: list[tuple[dict[str, Any], str | None]] = []
        if first or text or self.wants:
            deltas.append(({**({"role": "assistant"} if first else {}), "content": text}, None))
        if choice.finish:
            deltas.append(({"tool_calls": choice.calls} if choice.calls else {}, choice.finish))
        told = self._logprobs([piece])
        return [self.body([{"index": i, "delta": delta, "finish_reason": finish,
                            "logprobs": told if "content" in delta else None}])
                for delta, finish in deltas]  # fmt: skip

    def choice(self, i: int) -> dict[str, Any]:
        c = self.choices[i]
        message: dict[str, Any] = {"role": "assistant", "content": c.text, "refusal": None}
        if c.calls:
            message["content"] = c.text or None
            message["tool_calls"] = [{k: call[k] for k in ("id", "type", "function")}
                                     for call in c.calls]  # fmt: skip
        return {"index": i, "message": message, "logprobs": self._logprobs(c.pieces),
                "finish_reason": c.finish}  # fmt: skip

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if not self.wants:
            return None

        def entry(token: int, chance: float | None) -> dict[str, Any]:
            return {"token": self.name(token), "logprob": chance,
                    "bytes": list(self.tokenizer.pieces[token])}  # fmt: skip

        return {"content": [
            {**entry(p.token, p.logprob), "top_logprobs": [entry(*pair) for pair in p.top]}
            for p in pieces if p.token is not None
        ], "refusal": None}  # fmt: skip


class CompletionAnswer(Answer):
    """The answer of /v1/completions. With `echo` it begins with the prompt."""

    prefix, kind = "cmpl", "text_completion"
    asked: CompletionAsked

    def put(self, i: int, piece: Piece) -> list[dict[str, Any]]:
        choice = self.choices[i]
        new = [*(self._prompt(choice.job) if self.asked.echo and not choice.pieces else ()), piece]
        at, text = len(choice.text), "".join(p.text for p in new)
        choice.pieces += new
        choice.written += piece.token is not None
        choice.text += text
        choice.finish = piece.finish
        if not self.asked.stream or not (text or self.wants or piece.finish):
            return []
        return [self.body([{"index": i, "text": text, "finish_reason": piece.finish,
                            "logprobs": self._logprobs(new, at)}])]  # fmt: skip

    def choice(self, i: int) -> dict[str, Any]:
        c = self.choices[i]
        return {"index": i, "text": c.text, "logprobs": self._logprobs(c.pieces, 0),
                "finish_reason": c.finish}  # fmt: skip

    def name(self, token: int | None) -> str:
        """A token as text, or as bytes where it is a part of a character."""
        found = b"" if token is None else self.tokenizer.pieces[token]
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)

    def _prompt(self, job: Job) -> list[Piece]:
        """The prompt's tokens; nothing foresees the first."""
        stream = self.tokenizer.stream(marks=True)
        texts = [stream.put(token) for token in job.ids]
        if job.ids[0] == self.tokenizer.bos:  # which nobody wrote
            texts[0] = ""
        texts[-1] += stream.end()
        unknown: list[Any] = [(None, ())]
        scores = unknown + (job.scores or unknown * len(job.ids))
        return [Piece(text, token, *score) for text, token, score in zip(texts, job.ids, scores)]

    def _logprobs(self, pieces: Sequence[Piece], offset: int) -> dict[str, Any] | None:
        """offset: characters before these pieces."""
        if not self.wants:
            return None
        told = [p for p in pieces if p.token is not None]
        offsets = itertools.accumulate((len(p.text) for p in told), initial=offset)
        return {"tokens": [self.name(p.token) for p in told],
                "token_logprobs": [p.logprob for p in told],
                "top_logprobs": [self._top(p) for p in told],
                "text_offset": [at for at, _ in zip(offsets, told)]}  # fmt: skip

    def _top(self, piece: Piece) -> dict[str, float] | None:
        """The likeliest tokens, and the one that stands there."""
        if piece.logprob is None:
            return None
        return {self.name(token): chance for token, chance in
                (*piece.top, (piece.token, piece.logprob))}  # fmt: skip


def _call(index: int, name: str, arguments: str) -> dict[str, Any]:
    return {"index": index, "id": f"call_{secrets.token_hex(8)}", "type": "function",
            "function": {"name": name, "arguments": arguments}}  # fmt: skip


def vectors(model: str, found: Sequence[np.ndarray], tokens: int, packed: bool) -> dict[str, Any]:
    """The answer of /v1/embeddings."""

    def written(vector: np.ndarray) -> Any:
        little = vector.astype("<f4")
        return base64.b64encode(little.tobytes()).decode() if packed else little.tolist()

    data = [{"object": "embedding", "index": i, "embedding": written(v)}
            for i, v in enumerate(found)]  # fmt: skip
    return {"object": "list", "data": data, "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def event(body: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
