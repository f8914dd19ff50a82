"""Texts to learn from: lines of JSON to tokens, and tokens to rows of one length.

A line is {"text": ...}, of which all is learnt; {"prompt": ..., "completion": ...}, of which the
completion is; or {"messages": [...]}, a conversation by the model's template, of which the
assistant's answers are.
"""
from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from muladd.errors import ArgumentError, FormatError, MuladdError
from muladd.formats.stored import map_file
from muladd.llm.checks import check_number
from muladd.llm.template import check_messages
from muladd.llm.tokenizer import Tokenizer

IGNORED = -100  # a target that does not count
LONG = ("error", "skip", "cut")
_KEYS = ({"text"}, {"prompt", "completion"}, {"messages"})


@dataclass(frozen=True)
class Example:
    """The tokens of a text, and which of them are learnt; `line` is where it stands, from 1."""

    ids: tuple[int, ...]
    learnt: tuple[bool, ...]
    line: int


def read(
    path: str | os.PathLike[str], tokenizer: Tokenizer, length: int, long: str = "error"
) -> list[Example]:
    """The examples in a file of JSON lines.

    A text longer than `length` tokens becomes several examples; what else is longer is an error, is
    skipped, or is cut at its end, as `long` says. Raises FormatError, naming the line, for what is
    none of the three kinds, and for a file in which nothing is left to learn.
    """
    if long not in LONG:
        raise ArgumentError(f"data: long is {long!r:.40}; expected one of {', '.join(LONG)}")
    check_number("data", "length", length, 2)
    where = os.fspath(path)
    found: list[Example] = []
    for number, line in enumerate(bytes(map_file(path, "data")).split(b"\n"), 1):
        if line.strip():
            try:
                found += _fitted(_example(_parsed(line), tokenizer, number), length, long)
            except MuladdError as error:
                raise FormatError(f"{where}: line {number}: {error}") from None
    if not found:
        raise FormatError(f"{where}: has nothing to learn from; expected lines such as "
                          '{"text": "..."}')  # fmt: skip
    return found


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise FormatError(f"is {type(record).__name__}; expected an object")
    kinds = [keys for keys in _KEYS if keys & record.keys()]
    if len(kinds) != 1 or kinds[0] - record.keys():
        raise FormatError(f"has the keys {', '.join(map(repr, record))[:80] or 'none'}; expected "
                          "either 'text', or 'prompt' and 'completion', or 'messages'")  # fmt: skip
    for key in kinds[0] - {"messages"}:
        if not isinstance(record[key], str):
            raise FormatError(f"{key} is {type(record[key]).__name__}; expected text")
        if not record[key] and key != "prompt":
            raise FormatError(f"{key} is empty; there is nothing to learn")
    return record


def _example(record: Mapping[str, Any], tokenizer: Tokenizer, line: int) -> Example:
    pieces: list[tuple[list[int], bool]] = []
    if "text" in record:
        pieces = [(tokenizer.encode(record["text"]), True)]
    elif "prompt" in record:
        pieces = [(tokenizer.encode(record["prompt"]), False),
                  (tokenizer.encode(record["completion"], ends=False), True)]  # fmt: skip
    else:
        pieces = list(_conversation(record["messages"], tokenizer))
    if "messages" not in record and tokenizer.eos is not None:
        pieces.append(([tokenizer.eos], True))
    ids = [i for some, _ in pieces for i in some]
    learnt = [kind for some, kind in pieces for _ in some]
    if len(ids) < 2 or not any(learnt[1:]):
        raise FormatError("has no token to learn; expected a longer text")
    return Example(tuple(ids), tuple(learnt), line)


def _conversation(messages: Any, tokenizer: Tokenizer) -> Iterator[tuple[list[int], bool]]:
    """(tokens, whether they are an answer) of the parts of a conversation.

    The text before an answer is what the model reads when it is to give this answer, so tokens do
    not reach over its ends.
    """
    check_messages(messages)
    said, first = "", True
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.chat(messages[:i])
        after = tokenizer.chat(messages[: i + 1], add_generation_prompt=False)
        if not before.startswith(said) or not after.startswith(before):
            raise FormatError(f"the model's template does not go on from message {i}: what it "
                              "writes of the messages before changes; end the conversation "
                              "there")  # fmt: skip
        yield tokenizer.encode(before[len(said) :], ends=None if first else False), False
        yield tokenizer.encode(after[len(before) :], ends=False), True
        said, first = after, False
    if first:
        raise FormatError("messages has no answer of the assistant; there is nothing to learn")


def _fitted(example: Example, length: int, long: str) -> list[Example]:
    """Examples of at most length + 1 tokens: the last is a target only."""
    count = len(example.ids)
    if count <= length + 1:
        return [example]
    if all(example.learnt):  # a text
        return [Example(example.ids[i : i + length + 1], example.learnt[i : i + length + 1],
                        example.line) for i in range(0, count - 1, length)]  # fmt: skip
    if long == "error":
        raise ArgumentError(f"has {count} tokens, and a row has room for {length}; give a "
                            "greater --length, or --long skip or cut")  # fmt: skip
    kept = Example(example.ids[: length + 1], example.learnt[: length + 1], example.line)
    return [kept] if long == "cut" and any(kept.learnt[1:]) else []


# --- rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Examples in rows of one length: int32 (rows, length) each.

    `ids` are read and `targets` are to be said next (IGNORED: does not count); `positions` are
    those within each example and `texts` tells the examples in a row apart (-1: filling).
    """

    ids: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    texts: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def learnt(self) -> int:
        """How many targets count."""
        return int((self.targets != IGNORED).sum())

    def chosen(self, order: Sequence[int] | np.ndarray, count: int) -> Rows:
        """Some rows; where there are fewer than `count`, rows in which nothing counts follow."""
        spare = count - len(order)
        parts = []
        for name, value in (("ids", 0), ("targets", IGNORED), ("positions", 0), ("texts", -1)):
            array: np.ndarray = getattr(self, name)[np.asarray(order, np.int64)]
            parts.append(np.pad(array, ((0, spare), (0, 0)), constant_values=value))
        return Rows(*parts)


def rows(examples: Sequence[Example], length: int, pack: bool) -> Rows:
    """Examples in rows: one each, or (pack) as many as a row has room for, in their order."""
    groups: list[list[Example]] = []
    room = 0
    for example in examples:
        needed = len(example.ids) - 1
        if not pack or needed > room or not groups:
            groups.append([])
            room = length
        groups[-1].append(example)
        room -= needed
    shape = (len(groups), length)
    found = Rows(np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32),
                 np.zeros(shape, np.int32), np.full(shape, -1, np.int32))  # fmt: skip
    for r, group in enumerate(groups):
        at = 0
        for number, example in enumerate(group):
            count = len(example.ids) - 1
            span = slice(at, at + count)
            found.ids[r, span] = example.ids[:-1]
            found.targets[r, span] = np.where(example.learnt[1:], example.ids[1:], IGNORED)
            found.positions[r, span] = np.arange(count)
            found.texts[r, span] = number
            at += count
    return found
