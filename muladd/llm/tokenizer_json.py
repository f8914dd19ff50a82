"""Vocabularies from tokenizer.json, the `tokenizers` library's file, and what lies beside it."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from muladd.errors import FormatError
from muladd.formats.stored import map_file
from muladd.llm.extras import wanted
from muladd.llm.vocabulary import BYTE_NAME, SPACE, Vocabulary, byte_text

MOST_BYTES = 256 << 20
MARKS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def load(file: Path, settings: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a tokenizer.json; `settings` is what tokenizer_config.json says. Raises
    FormatError naming what is wrong with the file."""
    data = map_file(file, "tokenizer")
    if len(data) > MOST_BYTES:
        raise FormatError(f"tokenizer: {file}: has {len(data)} bytes; expected at most "
                          f"{MOST_BYTES}")  # fmt: skip
    try:
        text = bytes(data).decode("utf-8")
        described = json.loads(text)
        engine = wanted("tokenizers").Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exceptions over what does not fit
        raise FormatError(f"tokenizer: {file}: is no tokenizer.json ({error})") from None
    engine.no_truncation()
    engine.no_padding()
    pieces, control, prefixed = _pieces(engine, described)
    found = Vocabulary(engine, pieces, control, prefixed)
    _marks(found, settings)
    found.prefix, found.suffix = _ends(engine)
    if not found.marks.get("bos") and found.prefix:
        found.marks.setdefault("bos", found.prefix[0])
    return found


def _marks(found: Vocabulary, settings: dict[str, Any]) -> None:
    for mark in MARKS:
        given = settings.get(f"{mark}_token")
        name = given.get("content") if isinstance(given, dict) else given
        number = found.engine.token_to_id(name) if isinstance(name, str) else None
        if number is not None:
            found.marks["bos" if mark == "cls" and "bos" not in found.marks else mark] = number


def _ends(engine: Any) -> tuple[list[int], list[int]]:
    """(before, after): what the file's post-processor puts around a text."""
    bare = engine.encode("a", add_special_tokens=False).ids
    whole = engine.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def _pieces(
    engine: Any, described: dict[str, Any]
) -> tuple[list[bytes], frozenset[int], bool]:
    """(bytes of each id, control ids, whether a text begins with a space that is not its own)."""
    vocab: dict[str, int] = engine.get_vocab(with_added_tokens=True)
    size = max(vocab.values(), default=-1) + 1
    if size > 4 * len(vocab) + 1024:
        raise FormatError(f"tokenizer: {len(vocab)} tokens have ids up to {size - 1}; expected ids "
                          "without great gaps")  # fmt: skip
    decoders = _decoders(described.get("decoder"))
    names = [d.get("type") for d in decoders]
    bytewise, words = "ByteLevel" in names, "WordPiece" in names
    fallback = "ByteFallback" in names
    added = engine.get_added_tokens_decoder()
    pieces = [b""] * size
    for token, i in vocab.items():
        byte = BYTE_NAME.fullmatch(token) if fallback else None
        if i in added:
            pieces[i] = token.encode()
        elif bytewise:
            pieces[i] = byte_text(token)
        elif byte:
            pieces[i] = bytes([int(byte[1], 16)])
        elif words:
            pieces[i] = token[2:].encode() if token.startswith("##") else b" " + token.encode()
        else:
            pieces[i] = token.replace(SPACE, " ").encode()
    control = frozenset(i for i, token in added.items() if token.special)
    strips = any(d.get("type") == "Strip" and d.get("start") for d in decoders) or any(
        d.get("type") == "Metaspace" and d.get("prepend_scheme", "always") != "never"
        for d in decoders
    )
    return pieces, control, words or strips


def _decoders(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    inner = decoder.get("decoders")
    return [d for d in inner if isinstance(d, dict)] if isinstance(inner, list) else [decoder]


def templates(file: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name, from chat_template.jinja and from the settings."""
    found: dict[str, str] = {}
    given = settings.get("chat_template")
    if isinstance(given, str):
        found["default"] = given
    elif isinstance(given, list):
        for row in given:
            if isinstance(row, dict) and isinstance(row.get("template"), str):
                found[str(row.get("name", "default"))] = row["template"]
    beside = file.with_name("chat_template.jinja")
    if beside.exists():
        try:
            found["default"] = bytes(map_file(beside, "tokenizer")).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"tokenizer: {beside}: is not UTF-8 text") from None
    return found
