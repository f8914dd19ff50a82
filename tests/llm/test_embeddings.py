"""Sentence embeddings: those of the model's own runtime, whatever the texts and their company."""
from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest

from muladd import cli, data
from muladd.errors import ArgumentError, FormatError
from muladd.formats import safetensors
from muladd.llm import embeddings
from muladd.llm.embeddings import _batches

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{c}" for c in "abcde")]


def write_small(folder, modules=("Transformer", "Pooling", "Normalize"), mode="mean", **more):
    """A BERT of small random weights by `transformers`; gives it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    sizes = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 160,
             **more}  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**sizes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.5 if weight.ndim == 1 else 0.2))
    model.save_pretrained(folder)
    engine = tokenizers.Tokenizer(tokenizers.models.WordPiece(
        {w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))  # fmt: skip
    engine.normalizer = tokenizers.normalizers.BertNormalizer()
    engine.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    engine.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])  # fmt: skip
    engine.save(str(folder / "tokenizer.json"))
    (folder / "pool").mkdir()
    (folder / "pool/config.json").write_text(json.dumps({f"pooling_mode_{mode}_tokens": True}))
    told = [{"type": f"a.b.{m}", "path": "pool" if m == "Pooling" else ""} for m in modules]
    (folder / "modules.json").write_text(json.dumps(told))
    return model


def wanted(model, tokenizer, text):
    """The mean over a text's tokens, by torch, normalised."""
    import torch

    with torch.no_grad():
        found = model(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0].mean(0)
    return (found / found.norm()).numpy()


@pytest.mark.filterwarnings("ignore")
def test_vectors_do_not_depend_on_their_company(tmp_path):
    theirs = write_small(tmp_path)
    model = embeddings.load(tmp_path)
    chance = np.random.default_rng(0)
    texts = ["".join(chance.choice(list("abcdefgh "), n)) for n in (3, 40, 110, 9, 75, 200, 1, 0)]
    texts *= 3
    found = model.embed(texts)
    assert found.shape == (24, 32) and found.dtype == np.float32
    for text, vector in zip(texts[:8], found):
        np.testing.assert_allclose(vector, wanted(theirs, model.tokenizer, text), atol=2e-6)
    np.testing.assert_allclose(found[:8], found[8:16], atol=2e-6)
    np.testing.assert_allclose(model.embed(texts[1]), found[1], atol=2e-6)
    assert model.embed([]).shape == (0, 32)
    assert model._run.traces <= 4


@pytest.mark.filterwarnings("ignore")
def test_a_text_that_is_far_too_long_is_not_read_to_its_end(tmp_path, monkeypatch):
    write_small(tmp_path)
    model = embeddings.load(tmp_path)
    plain, seen = model.tokenizer.encode, []
    monkeypatch.setattr(type(model.tokenizer), "encode",
                        lambda _, text: seen.append(text) or plain(text))  # fmt: skip
    long = "ab " * 1_000_000
    with pytest.raises(ArgumentError, match=f"over {model.length} tokens and there is room for"):
        model.embed(long, cut=False)
    whole = model.embed(long)
    assert max(map(len, seen)) < 200 * model.length
    np.testing.assert_allclose(model.embed(long[: 10 * model.length]), whole, atol=2e-6)


@pytest.mark.filterwarnings("ignore")
def test_what_the_files_say_is_done(tmp_path):
    theirs = write_small(tmp_path, ("Transformer", "Pooling"), "cls", hidden_act="gelu_new")
    model = embeddings.load(tmp_path)
    import torch

    with torch.no_grad():
        hidden = theirs(torch.tensor([model.tokenizer.encode("abc def")])).last_hidden_state[0]
    np.testing.assert_allclose(model.embed("abc def"), hidden[0].numpy(), atol=5e-6)
    (tmp_path / "modules.json").unlink()
    plain = embeddings.load(tmp_path)
    np.testing.assert_allclose(plain.embed("abc def"), hidden.mean(0).numpy(), atol=5e-6)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 6}')
    short = embeddings.load(tmp_path)
    np.testing.assert_allclose(short.embed("a b c d e f g"), short.embed("a b c d"), atol=1e-6)
    with pytest.raises(ArgumentError, match="text 1 has 9 tokens and there is room for 6"):
        short.embed(["a", "a b c d e f g"], cut=False)


def test_rows_hold_all_texts_once():
    chance = np.random.default_rng(0)
    for count in (0, 1, 2, 7, 300):
        lengths = chance.integers(2, 301, count).tolist()
        seen = []
        for (rows, length), texts in _batches(lengths, 300):
            assert len(texts) <= rows and all(0 < len(row) <= 16 for row in texts)
            assert all(sum(lengths[i] for i in row) <= length for row in texts)
            seen += [i for row in texts for i in row]
        assert sorted(seen) == list(range(count))


@pytest.mark.filterwarnings("ignore")
def test_files_that_are_no_model(tmp_path):
    with pytest.raises(FormatError, match="is no folder"):
        embeddings.load(tmp_path / "none")
    write_small(tmp_path / "good")

    def refused(words, change):
        here = tmp_path / "bad"
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(tmp_path / "good", here)
        change(here)
        with pytest.raises(FormatError, match=words):
            embeddings.load(here)

    def config(**more):
        def change(here):
            told = json.loads((here / "config.json").read_text())
            (here / "config.json").write_text(json.dumps({**told, **more}))

        return change

    def modules(text):
        return lambda here: (here / "modules.json").write_text(text)

    refused("model_type 'gpt2' is no encoder", config(model_type="gpt2"))
    refused("hidden_act is 'magic'", config(hidden_act="magic"))
    refused("position_embedding_type is", config(position_embedding_type="relative_key"))
    refused("does not divide into 5 heads", config(num_attention_heads=5))
    refused("num_hidden_layers is None", config(num_hidden_layers=None))
    refused("encoder.layer.2.attention.* is missing", config(num_hidden_layers=3))
    refused("has the shape", config(intermediate_size=47))
    refused("do not belong together|has the shape", config(vocab_size=10))
    refused("is not JSON", modules("["))
    refused("holds a dict; expected a list", modules("{}"))
    refused("the module 'Dense'", modules('[{"type": "x.Dense", "path": "a"}]'))
    refused("path is '../x'", modules('[{"type": "x.Pooling", "path": "../x"}]'))
    refused("pools by max", lambda h: (h / "pool/config.json").write_text(
        '{"pooling_mode_max_tokens": true}'))  # fmt: skip
    refused("max_seq_length is 0", lambda h: (h / "sentence_bert_config.json").write_text(
        '{"max_seq_length": 0}'))  # fmt: skip
    refused("is no tokenizer.json", lambda h: (h / "tokenizer.json").write_text("{}"))
    refused("cannot read", lambda h: (h / "tokenizer.json").unlink())

    def without(here):
        arrays = safetensors.load(here / "model.safetensors")
        kept = {n: arrays[n] for n in arrays if "word_embeddings" not in n}
        safetensors.save(kept, here / "model.safetensors")

    refused("word_embeddings.weight is missing", without)


@pytest.mark.filterwarnings("ignore")
def test_the_command(tmp_path, capsys, monkeypatch):
    write_small(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\nfgh\n"))
    assert cli.main(["embed", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(v) for v in lines] == [32, 32]
    assert cli.main(["embed", str(tmp_path), "abc", "fgh", "--query", "fgh", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["order"] == [1, 0] and found["cosines"][1] == pytest.approx(1)
    for given in (["abc", "--query", "fgh"], ["--query", "fgh", "abc"]):
        assert cli.main(["embed", str(tmp_path), *given]) == 0
        assert capsys.readouterr().out.endswith("  abc\n")
    for errors in ("strict", "surrogateescape"):
        given = io.TextIOWrapper(io.BytesIO(b"a\n\xff\n"), "utf-8", errors)
        monkeypatch.setattr("sys.stdin", given)
        assert cli.main(["embed", str(tmp_path)]) == 1
        assert "is no UTF-8" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert cli.main(["embed", str(tmp_path)]) == 2
    assert "no texts" in capsys.readouterr().err
    given = ["bench", "embeddings", str(tmp_path), "--count", "3", "--repeat", "1", "--json"]
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    assert cli.main(given) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [r["name"] for r in rows] == ["sentences", "passages", "one"]
    for wrong in ([5], 5, ["\ud800"]):
        with pytest.raises(ArgumentError):
            embeddings.load(tmp_path).embed(wrong)


UNUSUAL = [
    "", " \n\t ", "a", "Hello, world!", "日本語のテキスト", "naïve café \U0001f600 e\u0301",
    "[SEP] and [MASK]", "x " * 1000, "supercalifragilistic" * 20, "\x00\ufffd\u200b", "ΑΒΓ שלום",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_minilm_gives_what_its_own_runtime_gives(minilm):
    package = pytest.importorskip("sentence_transformers")
    novel = data.novel()
    sentences = [s for s in " ".join(novel[3000:20000].split()).split(". ") if s][:60]
    texts = [*UNUSUAL, *sentences, novel[10000:13000]]
    theirs = package.SentenceTransformer(str(minilm), device="cpu").encode(texts)
    ours = embeddings.load(minilm).embed(texts)
    assert (ours * theirs).sum(1).min() >= 0.9999
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
