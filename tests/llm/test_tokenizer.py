"""Tokenizers: ids equal those of llama.cpp, sentencepiece and tokenizers; text comes back."""
from __future__ import annotations

import io
import json
import random
import time

import numpy as np
import pytest
from support.llama_cpp import llama_cpp, write_model
from support.mixed_text import mixed

from muladd.errors import ArgumentError, FormatError, IndexingError
from muladd.formats import gguf
from muladd.llm.pretokenizers import RULES

tokenizers = pytest.importorskip("tokenizers")

from muladd.llm import Tokenizer  # noqa: E402
from muladd.llm.vocabulary import byte_letters, byte_text  # noqa: E402

KEY = "tokenizer.ggml."
# Rules of which llama.cpp's own form differs from the models' tokenizer.json: it does not tell
# upper from lower case in these, or looks beyond the pieces that an earlier expression has cut.
OWN_WAY = {"youtu", "tiny_aya", "kimi-k2"}


@pytest.fixture(scope="module")
def model(smollm):
    return gguf.load(smollm)


@pytest.fixture(scope="module")
def tokenizer(model):
    return Tokenizer.from_gguf(model)


def tokenizer_of(metadata):
    return Tokenizer.from_gguf(gguf.GGUF(gguf.Metadata(metadata), {}))


def small(**changes):
    """A byte-level vocabulary of the 256 bytes and a few merges."""
    letters = sorted(byte_letters(), key=byte_letters().get)
    tokens = [*letters, "ab", "abc", "Ġa", "<|end|>", "<extra>"]
    kinds = [1] * (len(tokens) - 2) + [3, 4]
    found = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens,
             "token_type": np.array(kinds, np.int32), "merges": ["a b", "ab c", "Ġ a"],
             "eos_token_id": len(tokens) - 2}  # fmt: skip
    return {KEY + key: value for key, value in {**found, **changes}.items() if value is not None}


# --- the same ids --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_megabyte_of_mixed_text_equals_llama_cpp(smollm, tokenizer):
    text = mixed(1 << 20)
    assert len(text.encode()) >= 1 << 20
    with llama_cpp(smollm) as ask:
        for marks in (True, False):
            body = {"content": text, "add_special": True, "parse_special": marks}
            ids = tokenizer.encode(text, marks=marks)
            assert ids == ask("/tokenize", body)["tokens"]
            assert tokenizer.decode(ids, marks=True) == text


def rules_that_differ():
    """One name for each different rule, without those of OWN_WAY."""
    without = {RULES[name].expressions for name in OWN_WAY}
    names = {rule.expressions: name for name, rule in RULES.items()
             if not rule.plain and rule.expressions not in without}  # fmt: skip
    return sorted(names.values())


def test_common_rules_equal_llama_cpp(model, tmp_path):
    check_rules(["gpt-2", "llama-bpe", "qwen2", "gpt-4o", "deepseek-v3", "tekken"], model, tmp_path,
                1 << 15)  # fmt: skip


@pytest.mark.slow
def test_all_rules_equal_llama_cpp(model, tmp_path):
    check_rules(rules_that_differ(), model, tmp_path, 1 << 17)


def check_rules(names, model, tmp_path, size):
    text = mixed(size)
    for name in names:
        metadata = {**model.metadata, KEY + "pre": name}
        ours = tokenizer_of(metadata)
        with llama_cpp(write_model(tmp_path / "tiny.gguf", metadata)) as ask:
            body = {"content": text, "add_special": False, "parse_special": True}
            assert ours.encode(text, ends=False) == ask("/tokenize", body)["tokens"], name
        assert ours.decode(ours.encode(text), marks=True) == text, name


def test_every_letter_is_its_byte_and_others_are_themselves():
    letters = byte_letters()
    for c in map(chr, [*range(400), 0x4E2D, 0x1F600]):
        expected = bytes([letters[c]]) if c in letters else c.encode()
        assert byte_text(c) == expected and byte_text(f"a{c}") == b"a" + expected


def test_words_of_both_cases():
    """What llama.cpp does in its own way, by the expressions in the models' files."""
    ours = tokenizer_of(small(pre="kimi-k2", merges=[], tokens=small()[KEY + "tokens"]))
    split = ours._vocabulary.engine.pre_tokenizer.pre_tokenize_str
    letters = byte_letters()

    def words(text):
        return [bytes(letters[c] for c in word).decode() for word, _ in split(text)]

    assert words("DTypeError 中文abc1234  x") == ["DType", "Error", " ", "中文", "abc", "123", "4",
                                                 " ", " x"]  # fmt: skip


def test_words_that_are_tokens_stay_whole():
    """Llama 3's vocabulary has words that no merges lead to."""
    tokens = [*small()[KEY + "tokens"], "whole"]
    given = small(tokens=tokens, token_type=np.ones(len(tokens), np.int32), bos_token_id=3)
    for pre, whole in (("llama-bpe", [3, len(tokens) - 1]), ("gpt-2", None)):
        ids = tokenizer_of({**given, KEY + "pre": pre}).encode("whole")
        assert ids == whole if whole else len(ids) == 5


# --- SentencePiece -------------------------------------------------------------------------------


def trained(kind, **options):
    library = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    lines = mixed(200_000, seed=7).replace("\0", "").split("\n")
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=1500, model_type=kind,
        minloglevel=2, num_threads=1, character_coverage=0.99, **options,
    )  # fmt: skip
    return library.SentencePieceProcessor(model_proto=out.getvalue())


IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False,
            "allow_whitespace_only_pieces": True}  # fmt: skip


def metadata_of(theirs, model, **more):
    ids = range(theirs.get_piece_size())
    kinds = [2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i)
             else 5 if theirs.is_unused(i) else 1 for i in ids]  # fmt: skip
    found = {
        "model": model, "tokens": [theirs.id_to_piece(i) for i in ids],
        "scores": np.array([theirs.get_score(i) for i in ids], np.float32),
        "token_type": np.array(kinds, np.int32), "unknown_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, **more,
    }  # fmt: skip
    return {KEY + key: value for key, value in found.items()}


@pytest.mark.parametrize("options, more", [
    ({"byte_fallback": True}, {}),
    ({"byte_fallback": False}, {}),
    ({"byte_fallback": True, "add_dummy_prefix": False, "split_by_whitespace": False},
     {"add_space_prefix": False}),
], ids=["bytes", "unknown", "across words"])  # fmt: skip
def test_pairs_by_score_equal_sentencepiece(options, more, tmp_path):
    theirs = trained("bpe", **IDENTITY, **options)
    ours = tokenizer_of(metadata_of(theirs, "llama", **more))
    text = mixed(1 << 20 if not more else 1 << 18).replace("\0", "")
    ids = ours.encode(text, marks=False, ends=False)
    assert ids == theirs.encode(text)
    if options["byte_fallback"]:
        assert ours.decode(ids) == text
        assert ours.encode(text, marks=False) == [1, *ids]


def test_pairs_by_score_equal_llama_cpp(tmp_path):
    metadata = metadata_of(trained("bpe", byte_fallback=True, **IDENTITY), "llama")
    ours, text = tokenizer_of(metadata), mixed(1 << 17)
    with llama_cpp(write_model(tmp_path / "tiny.gguf", metadata)) as ask:
        for marks in (True, False):
            body = {"content": text, "add_special": True, "parse_special": marks}
            ids = ours.encode(text, marks=marks)
            assert ids == ask("/tokenize", body)["tokens"]
            assert ours.decode(ids[1:], marks=True) == text


def fields(data):
    """The fields of a protocol buffer: (number, bytes or int)."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            at += 1
            value |= (data[at - 1] & 127) << shift
            shift += 7
            if data[at - 1] < 128:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            yield key >> 3, number()
        else:
            size = {1: 8, 5: 4}.get(key & 7) or number()
            at += size
            yield key >> 3, data[at - size : at]


@pytest.mark.parametrize("kind, model", [("unigram", "t5"), ("bpe", "llama")])
@pytest.mark.parametrize("normal", [False, True], ids=["identity", "nmt_nfkc"])
def test_normalising_and_unigrams_equal_sentencepiece(kind, model, normal):
    theirs = trained(kind, byte_fallback=not normal, **({} if normal else IDENTITY))
    more = {}
    if normal:
        table = dict(fields(dict(fields(theirs.serialized_model_proto()))[3]))[2]
        more = {"precompiled_charsmap": np.frombuffer(table, np.uint8),
                "remove_extra_whitespaces": True}  # fmt: skip
    ours = tokenizer_of(metadata_of(theirs, model, **more))
    lines = mixed(1 << 20).replace("\0", "").split("\n")
    scores = np.array([theirs.get_score(i) for i in range(theirs.get_piece_size())], np.float64)
    ties = 0
    for line in lines:
        a, b = ours.encode(line, marks=False, ends=False), theirs.encode(line)
        if a != b:
            # two ways to cut a run of equal letters, as good as each other: in which float32
            # sums round differently by where they stand
            assert kind == "unigram" and len(a) == len(b), line
            assert scores[a].sum() == pytest.approx(scores[b].sum(), rel=1e-12), line
            ties += 1
        if not normal:
            assert ours.decode(a) == line
    assert ties < len(lines) / 300


def test_unigrams_equal_llama_cpp(tmp_path):
    metadata = metadata_of(trained("unigram", **IDENTITY), "t5", add_space_prefix=True)
    ours, text = tokenizer_of(metadata), mixed(1 << 20).replace("\0", "")
    with llama_cpp(write_model(tmp_path / "tiny.gguf", metadata)) as ask:
        body = {"content": text, "add_special": True, "parse_special": False}
        assert ours.encode(text, marks=False) == ask("/tokenize", body)["tokens"]
    assert ours.encode("a</s>b")[-1] == 2 and 2 in ours.encode("a</s>b")[:-1]
    assert 2 not in ours.encode("a</s>b", marks=False)[:-1]


# --- WordPiece, tokenizer.json -------------------------------------------------------------------


def bert_metadata(file):
    """A BERT's vocabulary as GGUF has it: U+2581 where a word begins, bare where it goes on."""
    vocab = json.loads(file.read_text())["model"]["vocab"]
    names = sorted(vocab, key=vocab.get)
    marks = {"[PAD]": 3, "[UNK]": 2, "[CLS]": 3, "[SEP]": 3, "[MASK]": 3}
    tokens = [n if n.startswith("[") and n.endswith("]") else n[2:] if n.startswith("##")
              else "\u2581" + n for n in names]  # fmt: skip
    kinds = np.array([marks.get(n, 1) for n in names], np.int32)
    return {KEY + "model": "bert", KEY + "tokens": tokens, KEY + "token_type": kinds}


def test_word_pieces_equal_the_library(minilm):
    file = minilm / "tokenizer.json"
    reference = tokenizers.Tokenizer.from_file(str(file))
    reference.no_truncation()
    reference.no_padding()
    text = mixed(1 << 20)
    wanted = reference.encode(text).ids
    from_file, from_gguf = Tokenizer.from_file(minilm), tokenizer_of(bert_metadata(file))
    for ours in (from_file, from_gguf):
        assert ours.encode(text) == wanted
        assert ours.encode("Hello") == [101, 7592, 102]
        assert ours.encode("Hello", ends=False) == [7592]
        assert ours.decode(ours.encode("Unbelievably big")) == "unbelievably big"
        assert (ours.bos, ours.sep, ours.pad) == (101, 102, 0)


def test_byte_level_tokenizer_json(model, tokenizer, tmp_path):
    """A tokenizer.json of the same vocabulary gives the same ids, text and templates."""
    (tmp_path / "tokenizer.json").write_text(tokenizer._vocabulary.engine.to_str())
    settings = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"},
                "chat_template": model.metadata["tokenizer.chat_template"]}  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = Tokenizer.from_file(tmp_path)
    text = mixed(1 << 16)
    assert ours.encode(text) == tokenizer.encode(text)
    assert ours.decode(ours.encode(text), marks=True) == text
    assert (ours.bos, ours.eos, ours.stops) == (1, 2, tokenizer.stops)
    messages = [{"role": "user", "content": "Hi"}]
    assert ours.chat(messages) == tokenizer.chat(messages)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    assert Tokenizer.from_file(tmp_path).chat(messages) == "<|im_start|>Hi"


def test_sentencepiece_tokenizer_json(tmp_path):
    """Llama 2's form: a space in front, U+2581 for spaces, bytes, BOS by the post-processor."""
    library = tokenizers
    names = ["<unk>", "<s>", *[f"<0x{b:02X}>" for b in range(256)], "\u2581", "a", "\u2581a", "b"]
    vocab = {name: i for i, name in enumerate(names)}
    engine = library.Tokenizer(library.models.BPE(
        vocab, [("\u2581", "a")], unk_token="<unk>", byte_fallback=True))  # fmt: skip
    engine.normalizer = library.normalizers.Sequence(
        [library.normalizers.Prepend("\u2581"), library.normalizers.Replace(" ", "\u2581")])
    decoders = library.decoders
    engine.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(),
                                        decoders.Fuse(), decoders.Strip(" ", 1, 0)])  # fmt: skip
    engine.add_special_tokens(["<s>"])
    engine.post_processor = library.processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    engine.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert ours.encode("a b") == [1, vocab["\u2581a"], vocab["\u2581"], vocab["b"]]
    assert ours.encode("<s>a")[:2] == [1, vocab["\u2581a"]]  # not two of them
    for text in ("a b", " a", "größe 水🙂", "", "a  a"):
        assert ours.decode(ours.encode(text)) == text == engine.decode(engine.encode(text).ids)


# --- text comes back, also in parts --------------------------------------------------------------


def test_every_character_comes_back(tokenizer):
    """All of Unicode, but for what has bytes that SmolLM2's vocabulary lacks, such as 0x04."""
    lacking = {byte for c, byte in byte_letters().items() if tokenizer.id(c) is None}
    assert len(lacking & set(range(0x20, 0xC0))) == 0
    every = (chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    text = "".join(c for c in every if not lacking.intersection(c.encode()))
    for at in range(0, len(text), 1 << 16):
        part = text[at : at + (1 << 16)]
        assert tokenizer.decode(tokenizer.encode(part, marks=False)) == part


def test_streams_give_whole_characters(tokenizer):
    text = "Größe 水🙂 " + mixed(1 << 15)
    ids = tokenizer.encode(text, marks=False)
    stream = tokenizer.stream()
    parts = [stream.put(i) for i in ids]
    assert "".join(parts) + stream.end() == text
    assert "\ufffd" not in "".join(parts)
    split = tokenizer.encode("🙂" * 3, marks=False)
    assert len(split) > 3
    given = [stream.put(i) for i in split]
    assert [part for part in given if part] == ["🙂"] * 3


def test_bytes_that_are_no_text_are_marked(tokenizer):
    face = tokenizer.encode("\U0010ffff", marks=False)
    stream = tokenizer.stream()
    first = [stream.put(i) for i in face[:2]]
    assert first == ["", ""] and stream.end() == "\ufffd"
    assert stream.put(face[-1]) == "\ufffd"
    assert stream.end() == ""
    assert tokenizer.decode(face[:-1]) == "\ufffd"
    assert tokenizer.decode([*face[:-1], *tokenizer.encode("a")]) == "\ufffda"


def test_streams_equal_decoding_for_any_ids(tokenizer):
    chance = random.Random(1)
    for marks in (False, True):
        for _ in range(200):
            ids = [chance.randrange(len(tokenizer)) for _ in range(chance.randrange(30))]
            stream = tokenizer.stream(marks=marks)
            text = "".join(stream.put(i) for i in ids) + stream.end()
            assert text == tokenizer.decode(ids, marks=marks)


def test_spaces_in_front_are_those_of_the_text():
    ours = tokenizer_of(metadata_of(trained("bpe", byte_fallback=True, **IDENTITY), "llama"))
    for text in ("", " ", "a", " a", "  a", "a <s> b", "</s> a</s>"):
        ids = ours.encode(text, ends=False)
        assert ours.decode(ids, marks=True) == text, text
        stream = ours.stream(marks=True)
        assert "".join(stream.put(i) for i in ids) + stream.end() == text


def test_numpy_ids_and_what_is_no_id(tokenizer):
    assert tokenizer.decode(np.array(tokenizer.encode("Hi there"))) == "Hi there"
    for wrong in (-1, len(tokenizer), 1.5, "a", None):
        with pytest.raises(IndexingError, match="is no id; expected 0 to 49151"):
            tokenizer.decode([wrong])


# --- marks, ends, stops --------------------------------------------------------------------------


def test_marks_in_a_text_count_or_not(tokenizer):
    end = tokenizer.id("<|im_end|>")
    assert tokenizer.encode("a<|im_end|>")[-1] == end and end in tokenizer.stops
    plain = tokenizer.encode("a<|im_end|>", marks=False)
    assert end not in plain and tokenizer.decode(plain) == "a<|im_end|>"
    assert tokenizer.decode([end]) == "" and tokenizer.decode([end], marks=True) == "<|im_end|>"
    assert tokenizer.pieces[end] == b"<|im_end|>" and end in tokenizer.control
    assert tokenizer.id("no such token") is None


def test_ends_are_added_as_the_file_says():
    ours = tokenizer_of(small(bos_token_id=5, add_bos_token=True, add_eos_token=True))
    ids = [ord("b") - 33, ord("c") - 33]
    letters = sorted(byte_letters().values())
    assert len(letters) == 256
    bare = ours.encode("bc", ends=False)
    assert len(bare) == len(ids)
    assert ours.encode("bc") == [5, *bare, ours.eos]
    assert ours.encode("bc", ends=True) == [5, *bare, ours.eos]
    assert tokenizer_of(small()).encode("bc") == bare


def test_the_users_own_tokens_are_text():
    ours = tokenizer_of(small())
    extra = ours.id("<extra>")
    for marks in (True, False):
        ids = ours.encode("a<extra>", marks=marks)
        assert ids[-1] == extra
        assert ours.decode(ids) == "a<extra>"


# --- what is wrong -------------------------------------------------------------------------------


def test_what_is_no_text_is_refused(tokenizer):
    for wrong in (b"bytes", None, 7, ["a"]):
        with pytest.raises(ArgumentError, match="expected text, got"):
            tokenizer.encode(wrong)
    with pytest.raises(ArgumentError, match=r"character 2 is '\\ud83d', half of a surrogate pair"):
        tokenizer.encode("ab\ud83d")


@pytest.mark.parametrize("changes, wanted", [
    ({"model": "rwkv"}, "model is 'rwkv'; expected gpt2"),
    ({"model": None}, "model is None"),
    ({"pre": "unheard-of"}, "pre is 'unheard-of'; expected one of gpt-2"),
    ({"tokens": None}, "tokens is NoneType"),
    ({"tokens": np.arange(3)}, "tokens is ndarray of 3; expected a list of text"),
    ({"tokens": ["a", "b", "a"]}, "tokens has 'a' twice"),
    ({"token_type": np.ones(3, np.int32)}, "token_type is ndarray of 3; expected 261 numbers"),
    ({"merges": None}, "merges is NoneType"),
    ({"merges": ["ab"]}, "merges has 'ab'; expected 'left right'"),
    ({"merges": ["x yz"]}, "does not fit together"),
    ({"model": ["gpt2"]}, r"model is \['gpt2'\]"),
    ({"pre": 7}, "pre is 7; expected one of"),
    ({"add_bos_token": 1}, "add_bos_token is 1; expected true or false"),
    ({"model": "bert", "unknown_token_id": 10**6}, "unknown_token_id is missing"),
    ({"eos_token_id": "two"}, "eos_token_id is 'two'; expected an id"),
    ({"eos_token_id": 1 << 20}, "eos_token_id is 1048576; expected an id from 0 to"),
    ({"model": "llama"}, "scores is NoneType; expected 261 numbers"),
    ({"model": "llama", "scores": np.full(261, np.nan)}, "scores is ndarray of 261"),
    ({"model": "t5", "scores": np.zeros(261), "precompiled_charsmap": ["a"]}, "charsmap is list"),
    ({"model": "t5", "scores": np.zeros(261), "precompiled_charsmap": np.arange(9, dtype=np.uint8)},
     "does not fit together|fit"),
])  # fmt: skip
def test_damaged_metadata_is_named(changes, wanted):
    with pytest.raises(FormatError, match=wanted):
        tokenizer_of(small(**changes))


def test_any_metadata_gives_a_tokenizer_or_a_clear_error():
    chance = random.Random(0)
    many = len(small()[KEY + "tokens"])
    values = [0, -1, 2**31, "", "x", [], ["a"], [" a"], ["a b"] * 3, True, np.zeros(3),
              np.zeros(many, np.float32), np.full(many, -1e30, np.float32), np.arange(many),
              np.frombuffer(chance.randbytes(40), np.uint8), ["", ""], ["a\0b", "\ud7ff"]]
    keys = ["pre", "tokens", "token_type", "merges", "scores", "eos_token_id", "bos_token_id",
            "unknown_token_id", "precompiled_charsmap", "add_space_prefix", "add_eos_token"]
    made = refused = 0
    for _ in range(1500):
        changes = {"model": chance.choice(["gpt2", "llama", "t5", "bert", "gemma4"]),
                   "scores": np.zeros(many, np.float32)}  # fmt: skip
        for _ in range(chance.randrange(3)):
            changes[chance.choice(keys)] = chance.choice(values)
        try:
            ours = tokenizer_of(small(**changes))
            for marks in (True, False):
                ours.decode(ours.encode("abc 水 <extra><|end|>\u2581<0x41>", marks=marks))
            made += 1
        except FormatError:
            refused += 1
    assert made > 300 and refused > 300


def test_the_file_is_named(tmp_path):
    gguf.save(tmp_path / "bad.gguf", small(model="rwkv"), {})
    with pytest.raises(FormatError, match="bad.gguf: tokenizer: .*model is 'rwkv'"):
        Tokenizer.from_gguf(tmp_path / "bad.gguf")
    with pytest.raises(FormatError, match="cannot read.*none.gguf"):
        Tokenizer.from_gguf(tmp_path / "none.gguf")


def test_some_marks_take_the_spaces_after_them():
    """Phi 3's marks do, which its GGUF files do not say."""
    for name, spaces in (("Phi-3 mini", 0), ("Another", 2)):
        ours = tokenizer_of({**small(), "general.name": name})
        ids = ours.encode("<|end|>  b")
        assert len(ids) == 2 + spaces and ids[0] == ours.eos


def test_ids_out_of_range_are_no_marks():
    ours = tokenizer_of(small(bos_token_id=10**9, add_bos_token=True))
    assert ours.bos is None and ours.encode("a") == tokenizer_of(small()).encode("a")


def test_damaged_tokenizer_json_is_named(tmp_path):
    file = tmp_path / "tokenizer.json"
    with pytest.raises(FormatError, match="cannot read.*tokenizer.json"):
        Tokenizer.from_file(tmp_path)
    for text in (b"", b"{", b"[]", b"{}", b"\xff", b'{"model": {"type": "BPE"}}'):
        file.write_bytes(text)
        with pytest.raises(FormatError, match="is no tokenizer.json"):
            Tokenizer.from_file(file)


def test_megabytes_without_a_space_take_seconds(tokenizer):
    start = time.monotonic()
    for text in ("a" * 1_000_000, " " * 1_000_000, "ab\n" * 300_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.monotonic() - start < 60
