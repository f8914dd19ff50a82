"""Vocabularies from GGUF metadata, as engines of the `tokenizers` library.

A file's `tokenizer.ggml.model` says which of four kinds its vocabulary is: byte-level byte pairs
(gpt2), SentencePiece's byte pairs by score (llama) or its unigrams (t5), or WordPiece (bert).
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muladd.errors import FormatError
from muladd.llm.extras import wanted
from muladd.llm.pretokenizers import RULES, Rule

KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"  # SentencePiece writes a space so
BYTE_NAME = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PHI3_BARE = {"<unk>", "<s>", "<|endoftext|>"}  # of phi-3's markers, those that keep spaces after


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


def from_metadata(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary that a GGUF file's metadata describes. Raises FormatError naming the key that
    is missing, wrong, or of a model or pre-tokeniser that is not known."""
    model = metadata.get(KEY + "model")
    makers = {"gpt2": _byte_pairs, "gemma4": _byte_pairs, "llama": _sentence_pairs,
              "t5": _unigrams, "bert": _word_pieces}  # fmt: skip
    if not isinstance(model, str) or model not in makers:
        raise FormatError(f"tokenizer: {KEY}model is {model!r:.40}; expected {', '.join(makers)}")
    tokens, kinds = _tokens(metadata)
    marks = _marks(metadata, model, len(tokens))
    try:
        found = makers[model](metadata, tokens, kinds, marks)
    except FormatError:
        raise
    except Exception as error:  # the library raises plain Exceptions over what does not fit
        raise FormatError(f"tokenizer: the vocabulary does not fit together: {error}") from None
    found.marks = marks
    for mark, place in (("bos", found.prefix), ("eos", found.suffix), ("sep", found.suffix)):
        default = _ADDED.get(model, "").split()
        if model == "gpt2" and _rule(metadata).begin:
            default = ["bos"]
        if _flag(metadata, f"add_{mark}_token", mark in default) and mark in marks:
            place.append(marks[mark])
    return found


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    given = metadata.get(KEY + name, default)
    if not isinstance(given, bool):
        raise FormatError(f"tokenizer: {KEY}{name} is {given!r:.40}; expected true or false")
    return given


_ADDED = {"llama": "bos", "gemma4": "bos", "bert": "bos sep", "t5": "eos"}
_DEFAULT_MARKS = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "bert": {"bos": 101, "sep": 102, "unk": 100, "pad": 0, "mask": 103},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
}
_MARK_KEYS = {
    "bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unk": "unknown", "sep": "seperator",
    "pad": "padding", "mask": "mask",
}  # fmt: skip


def _marks(metadata: Mapping[str, Any], model: str, size: int) -> dict[str, int]:
    found = dict(_DEFAULT_MARKS.get(model, {}))
    for mark, word in _MARK_KEYS.items():
        given = metadata.get(f"{KEY}{word}_token_id")
        if given is not None:
            if type(given) is not int:
                raise FormatError(f"tokenizer: {KEY}{word}_token_id is {given!r:.40}; expected an "
                                  "id")  # fmt: skip
            found[mark] = given
    if model == "bert" and f"{KEY}cls_token_id" in metadata:
        found["bos"] = metadata[f"{KEY}cls_token_id"]
    return {mark: i for mark, i in found.items() if type(i) is int and 0 <= i < size}


def _tokens(metadata: Mapping[str, Any]) -> tuple[list[str], np.ndarray]:
    """(text, kind) of each id."""
    tokens = metadata.get(KEY + "tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise FormatError(f"tokenizer: {KEY}tokens is {_told(tokens)}; expected a list of text")
    if len(set(tokens)) != len(tokens):
        last = {token: i for i, token in enumerate(tokens)}
        twice = next(token for i, token in enumerate(tokens) if last[token] != i)
        raise FormatError(f"tokenizer: {KEY}tokens has {twice!r:.40} twice; expected each once")
    kinds = metadata.get(KEY + "token_type")
    if kinds is None:
        return tokens, np.full(len(tokens), NORMAL)
    return tokens, _numbers(metadata, "token_type", len(tokens), "iu")


def _numbers(metadata: Mapping[str, Any], name: str, size: int, kind: str) -> np.ndarray:
    found = metadata.get(KEY + name)
    if isinstance(found, list):
        found = np.asarray(found)
    if isinstance(found, np.ndarray) and found.dtype.kind in kind and found.shape == (size,):
        if np.isfinite(found).all():
            return found
    raise FormatError(f"tokenizer: {KEY}{name} is {_told(found)}; expected {size} numbers")


def _told(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, list | np.ndarray) else ""
    return f"{type(value).__name__}{size}"


def _rule(metadata: Mapping[str, Any]) -> Rule:
    name = metadata.get(KEY + "pre", "default")
    if metadata.get(KEY + "model") == "gemma4":
        name = "gemma4"
    if not isinstance(name, str) or name not in RULES:
        raise FormatError(f"tokenizer: {KEY}pre is {name!r:.40}; expected one of "
                          f"{', '.join(RULES)}")  # fmt: skip
    return RULES[name]


# --- byte pairs ----------------------------------------------------------------------------------


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


def _byte_pairs(
    metadata: Mapping[str, Any], tokens: list[str], kinds: np.ndarray, marks: dict[str, int]
) -> Vocabulary:
    library = wanted("tokenizers")
    rule = _rule(metadata)
    merges = metadata.get(KEY + "merges")
    if not isinstance(merges, list):
        raise FormatError(f"tokenizer: {KEY}merges is {_told(merges)}; expected a list of text")
    pairs = []
    for merge in merges:
        cut = merge.find(" ", 1) if isinstance(merge, str) else -1
        if cut < 0:
            raise FormatError(f"tokenizer: {KEY}merges has {merge!r:.40}; expected 'left right'")
        pairs.append((merge[:cut], merge[cut + 1 :]))
    vocab = {token: i for i, token in enumerate(tokens)}
    model = library.models.BPE(vocab, pairs, ignore_merges=rule.whole, byte_fallback=rule.plain)
    engine = library.Tokenizer(model)
    split = library.pre_tokenizers.Split
    isolated = [split(library.Regex(e), "isolated") for e in rule.expressions]
    if rule.plain:
        engine.normalizer = library.normalizers.Replace(" ", SPACE)
        pieces = [_sentence_piece(t, k) for t, k in zip(tokens, kinds.tolist())]
    else:
        engine.decoder = library.decoders.ByteLevel()
        isolated.append(library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        pieces = [t.encode() if k in (CONTROL, USER, UNKNOWN) else byte_text(t)
                  for t, k in zip(tokens, kinds.tolist())]  # fmt: skip
    engine.pre_tokenizer = library.pre_tokenizers.Sequence(isolated)
    return _finished(metadata, engine, pieces, tokens, kinds)


# --- SentencePiece -------------------------------------------------------------------------------


def _sentence_piece(token: str, kind: int) -> bytes:
    """The bytes of a SentencePiece token."""
    found = BYTE_NAME.fullmatch(token) if kind == BYTE else None
    if found:
        return bytes([int(found[1], 16)])
    return token.encode() if kind in (CONTROL, UNKNOWN) else token.replace(SPACE, " ").encode()


def _sentence_pairs(
    metadata: Mapping[str, Any], tokens: list[str], kinds: np.ndarray, marks: dict[str, int]
) -> Vocabulary:
    library = wanted("tokenizers")
    scores = _numbers(metadata, "scores", len(tokens), "fiu")
    vocab = {token: i for i, token in enumerate(tokens)}
    text = {t: i for i, t in enumerate(tokens) if kinds[i] not in (CONTROL, UNKNOWN, BYTE)}
    engine = library.Tokenizer(library.models.BPE(
        vocab, _merges_by_score(text, scores), byte_fallback=bool((kinds == BYTE).any()),
        fuse_unk=True, unk_token=tokens[marks["unk"]] if "unk" in marks else None))  # fmt: skip
    prefix = _flag(metadata, "add_space_prefix", True)
    _normalize_spaces(engine, library, metadata, prefix)
    if not any(re.search(f"[^{SPACE}]{SPACE}", token) for token in text):
        # No token has a space after something else, so words can be looked at one by one (and
        # remembered), which changes no id.
        word = library.Regex(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
        engine.pre_tokenizer = library.pre_tokenizers.Split(word, "isolated")
    pieces = [_sentence_piece(t, k) for t, k in zip(tokens, kinds.tolist())]
    return _finished(metadata, engine, pieces, tokens, kinds, prefix)


def _merges_by_score(text: Mapping[str, int], scores: np.ndarray) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, best score of what they make first. SentencePiece
    merges the best pair of neighbours again and again; this is the same, as ranks."""
    found = []
    for token, i in text.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in text and right in text:
                found.append((-float(scores[i]), i, cut, left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _normalize_spaces(
    engine: Any, library: Any, metadata: Mapping[str, Any], prefix: bool
) -> None:
    steps = []
    table = metadata.get(KEY + "precompiled_charsmap")
    if table is not None and len(table):
        if not isinstance(table, np.ndarray) or table.dtype.itemsize != 1:
            raise FormatError(f"tokenizer: {KEY}precompiled_charsmap is {_told(table)}; expected "
                              "bytes")  # fmt: skip
        steps.append(library.normalizers.Precompiled(table.tobytes()))
    if _flag(metadata, "remove_extra_whitespaces", False):
        steps.append(library.normalizers.Replace(library.Regex(r"\A +| +\z"), ""))
        steps.append(library.normalizers.Replace(library.Regex(" {2,}"), " "))
    if prefix:
        steps.append(library.normalizers.Prepend(" "))
    steps.append(library.normalizers.Replace(" ", SPACE))
    engine.normalizer = library.normalizers.Sequence(steps)


def _unigrams(
    metadata: Mapping[str, Any], tokens: list[str], kinds: np.ndarray, marks: dict[str, int]
) -> Vocabulary:
    library = wanted("tokenizers")
    scores = _numbers(metadata, "scores", len(tokens), "fiu")
    if "unk" not in marks:
        raise FormatError(f"tokenizer: {KEY}unknown_token_id is missing; expected an id")
    pieces = [_sentence_piece(t, k) for t, k in zip(tokens, kinds.tolist())]
    # Marks and bytes are not found among the words of a text: they have another name in the model.
    # So marks get another id when they are added, and what is unknown becomes bytes afterwards.
    words = np.isin(kinds, (NORMAL, USER, UNUSED)).tolist()
    names = [t if word else f"\0{t}" for t, word in zip(tokens, words)]
    rows = list(zip(names, map(float, scores)))
    engine = library.Tokenizer(library.models.Unigram(rows, unk_id=marks.get("unk")))
    prefix = _flag(metadata, "add_space_prefix", True)
    _normalize_spaces(engine, library, metadata, prefix)
    found = _finished(metadata, engine, pieces, tokens, kinds, prefix)
    found.moved = {engine.token_to_id(tokens[i]): i for i in found.control}
    numbers = {pieces[i]: i for i in np.flatnonzero(kinds == BYTE).tolist()}
    if all(bytes([b]) in numbers for b in range(256)):
        found.fallback = [numbers[bytes([b])] for b in range(256)]
    return found


# --- WordPiece -----------------------------------------------------------------------------------


def _word_pieces(
    metadata: Mapping[str, Any], tokens: list[str], kinds: np.ndarray, marks: dict[str, int]
) -> Vocabulary:
    """GGUF marks where a word begins (U+2581), the library where it goes on (##)."""
    library = wanted("tokenizers")
    bare = [t.startswith("[") and t.endswith("]") for t in tokens]
    names = [t if b else t[1:] if t.startswith(SPACE) else "##" + t for t, b in zip(tokens, bare)]
    pieces = [t.encode() if b else (" " + t[1:] if t.startswith(SPACE) else t).encode()
              for t, b in zip(tokens, bare)]  # fmt: skip
    if "unk" not in marks:
        raise FormatError(f"tokenizer: {KEY}unknown_token_id is missing; expected an id")
    unknown = names[marks["unk"]]
    engine = library.Tokenizer(library.models.WordPiece(
        {name: i for i, name in enumerate(names)}, unk_token=unknown))  # fmt: skip
    lower = _flag(metadata, "normalizer.lowercase", True)
    engine.normalizer = library.normalizers.BertNormalizer(
        lowercase=lower, strip_accents=_flag(metadata, "normalizer.strip_accents", lower))
    engine.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    control = np.where(bare & (kinds == NORMAL), CONTROL, kinds)
    return _finished(metadata, engine, pieces, names, control, True)


# --- what all have in common ---------------------------------------------------------------------


def _finished(
    metadata: Mapping[str, Any], engine: Any, pieces: list[bytes], tokens: list[str],
    kinds: np.ndarray, space_prefix: bool = False,
) -> Vocabulary:  # fmt: skip
    """Marks and the user's own tokens are found in a text before anything else is done to it."""
    library = wanted("tokenizers")
    name = str(metadata.get("general.name", "")).lower()
    strips = "phi-3" in name or "phi3" in name
    added: list[Any] = []
    special: list[Any] = []
    for i in np.flatnonzero(np.isin(kinds, (CONTROL, UNKNOWN, USER))).tolist():
        control = kinds[i] != USER
        mark = library.AddedToken(
            tokens[i], normalized=False, special=control, lstrip=tokens[i] == "[MASK]",
            rstrip=strips and control and tokens[i] not in _PHI3_BARE,
        )
        (special if control else added).append(mark)
    engine.add_special_tokens(special)
    engine.add_tokens(added)
    control_ids = np.flatnonzero(np.isin(kinds, (CONTROL, UNKNOWN))).tolist()
    return Vocabulary(engine, pieces, frozenset(control_ids), space_prefix)
