"""Vocabularies from GGUF metadata.

A file's `tokenizer.ggml.model` says which of four kinds its vocabulary is: byte-level byte pairs
(gpt2), SentencePiece's byte pairs by score (llama) or its unigrams (t5), or WordPiece (bert).
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from muladd.errors import FormatError
from muladd.llm.extras import wanted
from muladd.llm.pretokenizers import RULES, Rule
from muladd.llm.vocabulary import BYTE_NAME, SPACE, Vocabulary, byte_text

KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
_MODELS = {"gpt2": "byte_pairs", "gemma4": "byte_pairs", "llama": "sentence_pairs",
           "t5": "unigrams", "bert": "word_pieces"}  # fmt: skip
_PHI3_BARE = {"<unk>", "<s>", "<|endoftext|>"}  # of phi-3's markers, those that keep spaces after
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
_ENDS = ("eos", "eot", "eom")


def load(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary that a GGUF file's metadata describes. Raises FormatError naming the key that
    is missing, wrong, or of a model or pre-tokeniser that is not known."""
    reader = _Reader(metadata)
    try:
        found: Vocabulary = getattr(reader, _MODELS[reader.model])()
    except FormatError:
        raise
    except Exception as error:  # the library raises plain Exceptions over what does not fit
        raise FormatError(f"tokenizer: the vocabulary does not fit together: {error}") from None
    found.marks = reader.marks
    default = _ADDED.get(reader.model, "").split()
    if reader.model == "gpt2" and reader.rule().begin:
        default = ["bos"]
    for mark, place in (("bos", found.prefix), ("eos", found.suffix), ("sep", found.suffix)):
        if reader.flag(f"add_{mark}_token", mark in default) and mark in found.marks:
            place.append(found.marks[mark])
    return found


class _Reader:
    """What a file says of its vocabulary, and an engine for each kind of it."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata, self.library = metadata, wanted("tokenizers")
        self.model = self.given("model")
        if not isinstance(self.model, str) or self.model not in _MODELS:
            raise FormatError(f"tokenizer: {KEY}model is {self.model!r:.40}; expected "
                              f"{', '.join(_MODELS)}")  # fmt: skip
        self.tokens = self._tokens()
        self.kinds = np.full(len(self.tokens), NORMAL)
        if self.given("token_type") is not None:
            self.kinds = self.numbers("token_type", "iu")
        self.marks = self._marks()

    # --- metadata --------------------------------------------------------------------------------

    def given(self, name: str, default: Any = None) -> Any:
        return self.metadata.get(KEY + name, default)

    def flag(self, name: str, default: bool) -> bool:
        given = self.given(name, default)
        if not isinstance(given, bool):
            raise FormatError(f"tokenizer: {KEY}{name} is {given!r:.40}; expected true or false")
        return given

    def numbers(self, name: str, kind: str) -> np.ndarray:
        """A number for each token, of a dtype of these kinds."""
        found = self.given(name)
        if isinstance(found, list):
            found = np.asarray(found)
        shape = (len(self.tokens),)
        if isinstance(found, np.ndarray) and found.dtype.kind in kind and found.shape == shape:
            if np.isfinite(found).all():
                return found
        raise FormatError(f"tokenizer: {KEY}{name} is {_told(found)}; expected {len(self.tokens)} "
                          "numbers")  # fmt: skip

    def rule(self) -> Rule:
        """How words are cut."""
        name = "gemma4" if self.model == "gemma4" else self.given("pre", "default")
        if not isinstance(name, str) or name not in RULES:
            raise FormatError(f"tokenizer: {KEY}pre is {name!r:.40}; expected one of "
                              f"{', '.join(RULES)}")  # fmt: skip
        return RULES[name]

    def unknown(self) -> int:
        """The id of what the vocabulary lacks."""
        if "unk" not in self.marks:
            raise FormatError(f"tokenizer: {KEY}unknown_token_id is missing; expected an id")
        return self.marks["unk"]

    def _tokens(self) -> list[str]:
        tokens = self.given("tokens")
        if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
            raise FormatError(f"tokenizer: {KEY}tokens is {_told(tokens)}; expected a list of text")
        if len(set(tokens)) != len(tokens):
            last = {token: i for i, token in enumerate(tokens)}
            twice = next(token for i, token in enumerate(tokens) if last[token] != i)
            raise FormatError(f"tokenizer: {KEY}tokens has {twice!r:.40} twice; expected each once")
        return tokens

    def _marks(self) -> dict[str, int]:
        found = dict(_DEFAULT_MARKS.get(self.model, {}))
        size = len(self.tokens)
        for mark, word in _MARK_KEYS.items():
            given = self.given(f"{word}_token_id")
            if given is not None:
                # one that only begins or fills may be left out; without an end nothing stops
                if type(given) is not int or mark in _ENDS and not 0 <= given < size:
                    raise FormatError(f"tokenizer: {KEY}{word}_token_id is {given!r:.40}; expected "
                                      f"an id from 0 to {size - 1}")  # fmt: skip
                found[mark] = given
        if self.model == "bert":
            found["bos"] = self.given("cls_token_id", found["bos"])
        return {mark: i for mark, i in found.items() if type(i) is int and 0 <= i < size}

    # --- byte pairs ------------------------------------------------------------------------------

    def byte_pairs(self) -> Vocabulary:
        library, rule = self.library, self.rule()
        merges = self.given("merges")
        if not isinstance(merges, list):
            raise FormatError(f"tokenizer: {KEY}merges is {_told(merges)}; expected a list of text")
        pairs = []
        for merge in merges:
            cut = merge.find(" ", 1) if isinstance(merge, str) else -1
            if cut < 0:
                raise FormatError(f"tokenizer: {KEY}merges has {merge!r:.40}; expected "
                                  "'left right'")  # fmt: skip
            pairs.append((merge[:cut], merge[cut + 1 :]))
        vocab = {token: i for i, token in enumerate(self.tokens)}
        model = library.models.BPE(vocab, pairs, ignore_merges=rule.whole, byte_fallback=rule.plain)
        engine = library.Tokenizer(model)
        split = library.pre_tokenizers.Split
        isolated = [split(library.Regex(e), "isolated") for e in rule.expressions]
        if rule.plain:
            engine.normalizer = library.normalizers.Replace(" ", SPACE)
            pieces = self.sentence_pieces()
        else:
            engine.decoder = library.decoders.ByteLevel()
            isolated.append(library.pre_tokenizers.ByteLevel(add_prefix_space=False,
                                                             use_regex=False))  # fmt: skip
            pieces = [t.encode() if k in (CONTROL, USER, UNKNOWN) else byte_text(t)
                      for t, k in zip(self.tokens, self.kinds.tolist())]  # fmt: skip
        engine.pre_tokenizer = library.pre_tokenizers.Sequence(isolated)
        return self.finished(engine, pieces, self.tokens)

    # --- SentencePiece ---------------------------------------------------------------------------

    def sentence_pairs(self) -> Vocabulary:
        library, kinds = self.library, self.kinds
        scores = self.numbers("scores", "fiu")
        vocab = {token: i for i, token in enumerate(self.tokens)}
        text = {t: i for t, i in vocab.items() if kinds[i] not in (CONTROL, UNKNOWN, BYTE)}
        engine = library.Tokenizer(library.models.BPE(
            vocab, _merges_by_score(text, scores), byte_fallback=bool((kinds == BYTE).any()),
            fuse_unk=True,
            unk_token=self.tokens[self.marks["unk"]] if "unk" in self.marks else None))  # fmt: skip
        if not any(re.search(f"[^{SPACE}]{SPACE}", token) for token in text):
            # No token has a space after something else, so words can be looked at one by one (and
            # remembered), which changes no id.
            word = library.Regex(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
            engine.pre_tokenizer = library.pre_tokenizers.Split(word, "isolated")
        return self.spaced(engine)

    def unigrams(self) -> Vocabulary:
        library, tokens, kinds = self.library, self.tokens, self.kinds
        scores = self.numbers("scores", "fiu")
        # Marks and bytes are not found among the words of a text: they have another name in the
        # model. So marks get another id when they are added, and what is unknown becomes bytes
        # afterwards.
        words = np.isin(kinds, (NORMAL, USER, UNUSED)).tolist()
        names = [t if word else f"\0{t}" for t, word in zip(tokens, words)]
        rows = list(zip(names, map(float, scores)))
        engine = library.Tokenizer(library.models.Unigram(rows, unk_id=self.unknown()))
        found = self.spaced(engine)
        found.moved = {engine.token_to_id(tokens[i]): i for i in found.control}
        numbers = {found.pieces[i]: i for i in np.flatnonzero(kinds == BYTE).tolist()}
        if all(bytes([b]) in numbers for b in range(256)):
            found.fallback = [numbers[bytes([b])] for b in range(256)]
        return found

    def spaced(self, engine: Any) -> Vocabulary:
        """An engine of SentencePiece's with what is done to spaces."""
        library = self.library
        steps = []
        table = self.given("precompiled_charsmap")
        if table is not None and len(table):
            if not isinstance(table, np.ndarray) or table.dtype.itemsize != 1:
                raise FormatError(f"tokenizer: {KEY}precompiled_charsmap is {_told(table)}; "
                                  "expected bytes")  # fmt: skip
            steps.append(library.normalizers.Precompiled(table.tobytes()))
        if self.flag("remove_extra_whitespaces", False):
            steps.append(library.normalizers.Replace(library.Regex(r"\A +| +\z"), ""))
            steps.append(library.normalizers.Replace(library.Regex(" {2,}"), " "))
        if prefix := self.flag("add_space_prefix", True):
            steps.append(library.normalizers.Prepend(" "))
        steps.append(library.normalizers.Replace(" ", SPACE))
        engine.normalizer = library.normalizers.Sequence(steps)
        return self.finished(engine, self.sentence_pieces(), self.tokens, prefix)

    def sentence_pieces(self) -> list[bytes]:
        """The bytes of SentencePiece's tokens."""
        return [_sentence_piece(t, k) for t, k in zip(self.tokens, self.kinds.tolist())]

    # --- WordPiece -------------------------------------------------------------------------------

    def word_pieces(self) -> Vocabulary:
        """GGUF marks where a word begins (U+2581), the library where it goes on (##)."""
        library, tokens = self.library, self.tokens
        bare = [t.startswith("[") and t.endswith("]") for t in tokens]
        names = [t if b else t[1:] if t.startswith(SPACE) else "##" + t
                 for t, b in zip(tokens, bare)]  # fmt: skip
        pieces = [t.encode() if b else (" " + t[1:] if t.startswith(SPACE) else t).encode()
                  for t, b in zip(tokens, bare)]  # fmt: skip
        vocab = {name: i for i, name in enumerate(names)}
        unknown = names[self.unknown()]
        engine = library.Tokenizer(library.models.WordPiece(vocab, unk_token=unknown))
        lower = self.flag("normalizer.lowercase", True)
        engine.normalizer = library.normalizers.BertNormalizer(
            lowercase=lower, strip_accents=self.flag("normalizer.strip_accents", lower))
        engine.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        self.kinds = np.where(bare & (self.kinds == NORMAL), CONTROL, self.kinds)
        return self.finished(engine, pieces, names, True)

    # --- what all have in common -----------------------------------------------------------------

    def finished(
        self, engine: Any, pieces: list[bytes], names: list[str], space_prefix: bool = False
    ) -> Vocabulary:
        """Marks and the user's own tokens are found in a text before anything else is done to it.
        `names` are the tokens' in the engine."""
        name = str(self.metadata.get("general.name", "")).lower()
        strips = "phi-3" in name or "phi3" in name
        added: list[Any] = []
        special: list[Any] = []
        for i in np.flatnonzero(np.isin(self.kinds, (CONTROL, UNKNOWN, USER))).tolist():
            control = self.kinds[i] != USER
            mark = self.library.AddedToken(
                names[i], normalized=False, special=control, lstrip=names[i] == "[MASK]",
                rstrip=strips and control and names[i] not in _PHI3_BARE,
            )
            (special if control else added).append(mark)
        engine.add_special_tokens(special)
        engine.add_tokens(added)
        control_ids = np.flatnonzero(np.isin(self.kinds, (CONTROL, UNKNOWN))).tolist()
        return Vocabulary(engine, pieces, frozenset(control_ids), space_prefix)


def _sentence_piece(token: str, kind: int) -> bytes:
    """The bytes of a SentencePiece token."""
    found = BYTE_NAME.fullmatch(token) if kind == BYTE else None
    if found:
        return bytes([int(found[1], 16)])
    return token.encode() if kind in (CONTROL, UNKNOWN) else token.replace(SPACE, " ").encode()


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


def _told(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, list | np.ndarray) else ""
    return f"{type(value).__name__}{size}"
