"""What a tokenizer stands on: an engine of the `tokenizers` library, and what its ids stand for."""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

SPACE = "\u2581"  # SentencePiece writes a space so
BYTE_NAME = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass
class Vocabulary:
    """An engine that gives ids without the marks around a text, and what the ids stand for."""

    engine: Any  # tokenizers.Tokenizer
    pieces: list[bytes]  # by id; of a control token, its name
    control: frozenset[int]  # ids that are marks, and no text
    space_prefix: bool = False  # a text begins with a space that is not the text's
    prefix: list[int] = field(default_factory=list)  # before a text (BOS, CLS)
    suffix: list[int] = field(default_factory=list)  # after a text (EOS, SEP)
    marks: dict[str, int] = field(default_factory=dict)  # bos, eos, unk, pad, ... -> id
    moved: dict[int, int] = field(default_factory=dict)  # the engine's id -> the file's
    fallback: list[int] | None = None  # ids of the 256 bytes, where the engine says unk

    def ids(self, encoding: Any) -> list[int]:
        """The ids of what an engine made of a text."""
        found = encoding.ids
        if not self.moved:
            return found
        unknown, fallback = self.marks.get("unk"), self.fallback
        if fallback is None:
            return [self.moved.get(i, i) for i in found]
        out: list[int] = []
        for i, text in zip(found, encoding.tokens):
            bytewise = i == unknown  # the model's; the name <unk> in a text has another id
            out += [fallback[b] for b in text.encode()] if bytewise else [self.moved.get(i, i)]
        return out


def byte_letters() -> dict[str, int]:
    """GPT-2's letter for each byte, so that any bytes are visible text without spaces: those of
    Latin-1 that can be seen are themselves, the others count up from U+0100."""
    visible = [*range(ord("!"), 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in set(visible)]
    return {**{chr(b): b for b in visible}, **{chr(256 + i): b for i, b in enumerate(hidden)}}


_LETTERS = byte_letters()
_BYTES = {i: _LETTERS.get(chr(i), 0x10FFFF) for i in range(256)}  # which Latin-1 cannot encode
_BYTES |= {ord(c): b for c, b in _LETTERS.items()}


def byte_text(token: str) -> bytes:
    """The bytes that a token of such letters stands for (other letters are themselves)."""
    try:
        return token.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return b"".join(bytes([_LETTERS[c]]) if c in _LETTERS else c.encode() for c in token)
