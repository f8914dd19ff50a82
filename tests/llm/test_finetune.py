"""Fine-tuning: which tokens are learnt, whole gradients, adapters as `peft` has them, one program,
going on after an interruption, and files that llama.cpp and transformers take."""
from __future__ import annotations

import json
import math
import signal

import numpy as np
import pytest
from support.families import FAMILIES, write
from support.llama_cpp import llama_cpp
from support.talker import write_talker

from muladd import Tensor, cli, llm
from muladd.errors import ArgumentError, FormatError
from muladd.formats import gguf, safetensors
from muladd.formats.stored import StoredArray
from muladd.ir import dtype as dt
from muladd.llm import dataset, finetune, hugging_face, merge
from muladd.llm.adapters import CONFIG, WEIGHTS, Adapter, LoRA
from muladd.llm.finetune import STATE, Settings
from muladd.llm.model import Decoder
from muladd.llm.opening import opened
from muladd.llm.sources import single
from muladd.llm.training import Training

# --- texts to rows -------------------------------------------------------------------------------


def write_lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    return write_talker(tmp_path_factory.mktemp("talker") / "talker.gguf")


@pytest.fixture(scope="module")
def tokenizer(talker):
    return opened(talker).tokenizer


def learnt(example, tokenizer):
    ids = [i for i, kind in zip(example.ids, example.learnt) if kind]
    return tokenizer.decode(ids, marks=True)


def test_what_is_learnt(tokenizer, tmp_path):
    said = [("user", "Hi"), ("assistant", "Ho"), ("user", "So?"), ("assistant", "No")]
    records = [{"text": "abc"}, {"prompt": "1 + 1 =", "completion": " 2"},
               {"messages": [{"role": r, "content": c} for r, c in said]}]  # fmt: skip
    found = dataset.read(write_lines(tmp_path / "d.jsonl", records), tokenizer, 100)
    end = tokenizer.decode([tokenizer.eos], marks=True)
    assert [learnt(e, tokenizer) for e in found[:2]] == [f"abc{end}", f" 2{end}"]
    assert tokenizer.decode(found[2].ids, marks=True) == (
        "user: Hi\nassistant: Ho\nuser: So?\nassistant: No\n"
    )
    assert learnt(found[2], tokenizer) == " Ho\n No\n"
    assert [e.line for e in found] == [1, 2, 3]


def test_rows_are_packed_or_padded(tokenizer, tmp_path):
    records = [{"text": "a" * n} for n in (3, 4, 9, 2)] + [{"text": "x" * 25}]
    found = dataset.read(write_lines(tmp_path / "d.jsonl", records), tokenizer, 10)
    assert [len(e.ids) - 1 for e in found] == [3, 4, 9, 2, 10, 10, 5]  # with the end's token
    padded, packed = (dataset.rows(found, 10, pack) for pack in (False, True))
    assert len(padded) == 7 and len(packed) == 6 and padded.learnt == packed.learnt == 43
    assert packed.texts[0].tolist() == [0] * 3 + [1] * 4 + [-1] * 3
    assert packed.positions[0, :7].tolist() == [0, 1, 2, 0, 1, 2, 3]
    chosen = packed.chosen([1], 3)
    assert chosen.ids.shape == (3, 10) and chosen.learnt == 9


WRONG = [
    ("{", "line 2: is not JSON"),
    ("[1]", "line 2: is list; expected an object"),
    ('{"words": "a"}', "line 2: has the keys 'words'; expected either 'text'"),
    ('{"text": "a", "messages": []}', "line 2: has the keys 'text', 'messages'"),
    ('{"prompt": "a"}', "line 2: has the keys 'prompt'; expected either"),
    ('{"text": 5}', "line 2: text is int"),
    ('{"text": ""}', "line 2: text is empty"),
    ('{"text": "\\ud800"}', "line 2: .*surrogate"),
    ('{"prompt": "a", "completion": ""}', "line 2: completion is empty"),
    ('{"messages": {}}', "line 2: chat: messages are dict"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "line 2: messages has no answer"),
    ('{"messages": [{"role": "assistant"}, 5]}', "line 2: chat: message 1 is 5"),
    ('{"prompt": "a", "completion": "' + "b" * 99 + '"}', "line 2: has 101 tokens, and a row has"),
]


@pytest.mark.parametrize("line, words", WRONG)
def test_a_wrong_line_is_named(line, words, tokenizer, tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(FormatError, match=words):
        dataset.read(path, tokenizer, 64)


def test_long_and_empty_files(tokenizer, tmp_path):
    path = write_lines(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b" * 99}])
    (cut,) = dataset.read(path, tokenizer, 64, "cut")
    assert len(cut.ids) == 65
    with pytest.raises(FormatError, match="nothing to learn from"):
        dataset.read(path, tokenizer, 64, "skip")
    path.write_text("\n\n")
    with pytest.raises(FormatError, match="nothing to learn from"):
        dataset.read(path, tokenizer, 64)


# --- gradients -----------------------------------------------------------------------------------


def some_rows(length=40):
    chance = np.random.default_rng(0)
    ids = chance.integers(3, 64, (2, length)).astype(np.int32)
    targets = np.roll(ids, -1, 1)
    targets[:, -1] = targets[0, :10] = dataset.IGNORED
    positions = np.tile(np.arange(length, dtype=np.int32), (2, 1))
    return ids, targets, positions, np.zeros((2, length), np.int32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [
    "llama", *(pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES if n != "llama")
])  # fmt: skip
def test_gradients_of_all_weights_equal_those_of_transformers(name, tmp_path):
    import torch

    theirs = write(name, tmp_path)
    config, tensors, _ = hugging_face.from_folder(tmp_path)
    training = Training(Decoder(config, tensors, 64))
    ids, targets, positions, texts = some_rows()
    loss = training.loss(*map(Tensor, (ids, targets, positions, texts)))
    loss.backward()
    logits = theirs(torch.tensor(ids.astype(np.int64))).logits.reshape(-1, 64)
    wanted = torch.nn.functional.cross_entropy(
        logits, torch.tensor(targets.astype(np.int64)).reshape(-1), reduction="sum"
    )
    wanted.backward()
    np.testing.assert_allclose(loss.item(), wanted.item(), rtol=1e-5)
    given = {n: StoredArray(dt.float32, p.grad.numpy()) for n, p in theirs.named_parameters()
             if p.grad is not None and ".experts." not in n}  # fmt: skip
    places = hugging_face._renamed(given, config.architecture, "")
    less = {n for n in places if hugging_face.is_less_one(n, config.architecture)}
    found = {n: np.asarray(a.numpy()) - (n in less)
             for n, a in single(places, config, "").items()}  # fmt: skip
    assert len(found) > 10 and found.keys() <= training.parameters.keys()
    most = max(np.abs(g).max() for g in found.values())
    for n, gradient in found.items():
        ours = training.parameters[n].grad.numpy()
        scale = max(np.abs(gradient).max(), most * 1e-2)  # that of gpt2's key biases is 0
        np.testing.assert_allclose(ours / scale, gradient / scale, atol=2e-5, err_msg=n)


def test_texts_in_a_row_do_not_see_each_other(talker):
    """The loss of a packed row is the sum of those of its texts."""
    source = opened(talker)
    training = Training(Decoder(source.config, source.tensors, 32))
    examples = [dataset.Example(tuple(range(k, k + n)), (True,) * n, 1)
                for k, n in ((1, 9), (40, 12), (90, 8))]  # fmt: skip

    def loss(some, pack=True):
        found = dataset.rows(some, 32, pack)
        return training.loss(*map(Tensor, (found.ids, found.targets, found.positions,
                                           found.texts))).item()  # fmt: skip

    together, apart = loss(examples), loss(examples, pack=False)
    np.testing.assert_allclose(together, apart, rtol=1e-5)
    np.testing.assert_allclose(together, sum(loss([e]) for e in examples), rtol=1e-5)


# --- adapters ------------------------------------------------------------------------------------


def noisy(adapter):
    """An adapter whose B is not 0, as if it were trained."""
    chance = np.random.default_rng(1)
    for pair in adapter.pairs.values():
        pair.b.assign(Tensor(chance.standard_normal(pair.b.shape).astype(np.float32) / 4))
    return adapter


def decoder_of(path, room=128):
    source = opened(path)
    return Decoder(source.config, source.tensors, room)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2"])
def test_peft_reads_our_adapters_and_we_read_theirs(name, tmp_path):
    """phi3 and gpt2 have one matrix for queries, keys and values, of which we adapt each."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    theirs = write(name, tmp_path / "model")
    ids = np.random.default_rng(0).integers(3, 64, 30).tolist()

    def wanted(model):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].numpy()

    base = wanted(theirs)
    noisy(Adapter.new(decoder_of(tmp_path / "model"), LoRA(rank=3))).save(tmp_path / "ours")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    logits = wanted(adapted)
    scale = np.abs(logits).max()
    assert np.abs(logits - base).max() > 0.05 * scale
    ours = llm.load(tmp_path / "model", adapter=tmp_path / "ours")
    np.testing.assert_allclose(ours.logits(ids) / scale, logits / scale, atol=3e-5)

    for n, p in adapted.named_parameters():
        if "lora_B" in n:
            p.data = torch.randn_like(p) / 4
    adapted.save_pretrained(tmp_path / "theirs")
    logits = wanted(adapted)
    ours = llm.load(tmp_path / "model", adapter=tmp_path / "theirs")
    np.testing.assert_allclose(ours.logits(ids) / scale, logits / scale, atol=3e-5)

    merge.merge(tmp_path / "model", tmp_path / "theirs", tmp_path / "merged")
    merged = type(theirs).from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(wanted(merged) / scale, logits / scale, atol=3e-5)


def test_an_adapter_of_a_gguf_file_is_one_of_the_same_folder(tmp_path):
    """llama's GGUF files have the rows of queries and keys in another order."""
    pytest.importorskip("transformers")
    write("llama", tmp_path / "folder")
    config, tensors, _ = hugging_face.from_folder(tmp_path / "folder")
    arrays = {n: np.asarray(t.numpy()) for n, t in tensors.items()}
    for n, array in arrays.items():
        if n.endswith(("attn_q.weight", "attn_k.weight")):
            heads = array.reshape(-1, 2, config.head_width // 2, array.shape[1])
            arrays[n] = np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(array.shape)
    sizes = {"block_count": config.layers, "context_length": 128, "embedding_length": config.width,
             "attention.head_count": config.heads, "attention.head_count_kv": config.key_heads,
             "attention.layer_norm_rms_epsilon": config.eps}  # fmt: skip
    head = {"general.architecture": "llama", **{f"llama.{k}": v for k, v in sizes.items()}}
    gguf.save(tmp_path / "m.gguf", head, arrays)
    ids = np.random.default_rng(0).integers(3, 64, 30).tolist()
    noisy(Adapter.new(decoder_of(tmp_path / "m.gguf"), LoRA(rank=2))).save(tmp_path / "adapter")
    a, b = (llm.load(tmp_path / name, adapter=tmp_path / "adapter").logits(ids)
            for name in ("m.gguf", "folder"))  # fmt: skip
    np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())
    merge.merge(tmp_path / "m.gguf", tmp_path / "adapter", tmp_path / "merged.gguf")
    np.testing.assert_allclose(llm.load(tmp_path / "merged.gguf").logits(ids), b,
                               atol=2e-5 * np.abs(b).max())  # fmt: skip


def test_merging_keeps_or_changes_kinds(smollm, tmp_path):
    source = opened(smollm)
    few = {n: t for n, t in source.tensors.items() if n.split(".")[1] in ("weight", "0")}
    metadata = gguf.Metadata(source.file.metadata)
    metadata["llama.block_count"] = 1
    gguf.save(tmp_path / "m.gguf", metadata, few)
    decoder = decoder_of(tmp_path / "m.gguf", 8)
    noisy(Adapter.new(decoder, LoRA(rank=2, targets=("q_proj", "ffn_up")))).save(tmp_path / "a")
    before = gguf.load(tmp_path / "m.gguf").tensors
    same = gguf.load(merge.merge(tmp_path / "m.gguf", tmp_path / "a", tmp_path / "s.gguf")).tensors
    with pytest.raises(ArgumentError, match="there is no folder .*nope; make it"):
        merge.merge(tmp_path / "m.gguf", tmp_path / "a", tmp_path / "nope" / "s.gguf")
    assert not (tmp_path / "nope").exists()
    changed = {n for n, t in same.items() if not np.array_equal(t.raw, before[n].raw)}
    assert changed == {"blk.0.attn_q.weight", "blk.0.ffn_up.weight"}
    kept = {n: "Q8_0" if n in changed else t.kind.name for n, t in before.items()}
    assert {n: t.kind.name for n, t in same.items()} == kept  # few bits would lose the change
    plain = merge.merge(tmp_path / "m.gguf", tmp_path / "a", tmp_path / "f.gguf", "F16")
    kinds = {t.kind.name for t in gguf.load(plain).tensors.values()}
    assert kinds == {"F16", "F32"}
    found = gguf.load(plain).tensors["blk.0.attn_k.weight"].dequantize()
    np.testing.assert_allclose(found, before["blk.0.attn_k.weight"].dequantize(), rtol=1e-3)


def test_adapters_that_do_not_fit(talker, tmp_path):
    decoder = decoder_of(talker)
    with pytest.raises(ArgumentError, match="'lm_head' is no projection .* q_proj, k_proj"):
        Adapter.new(decoder, LoRA(targets=("lm_head",)))
    for wrong in ({"rank": 0}, {"alpha": -1.0}, {"dropout": 1.0}):
        with pytest.raises(ArgumentError, match=f"LoRA: {next(iter(wrong))} is"):
            LoRA(**wrong)
    with pytest.raises(ArgumentError, match="the rank is 100000, and .* expected .* or less"):
        Adapter.new(decoder, LoRA(rank=100_000))
    folder = tmp_path / "a"
    with pytest.raises(FormatError, match="is no folder"):
        Adapter.load(folder, decoder)
    Adapter.new(decoder, LoRA(rank=2)).save(folder)
    arrays = {n: np.asarray(a) for n, a in safetensors.open_file(folder / WEIGHTS).items()}
    told = json.loads((folder / CONFIG).read_text())

    def refused(words, given=arrays, **more):
        safetensors.save(given, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps({**told, **more}))
        with pytest.raises(FormatError, match=words):
            llm.load(talker, adapter=folder)

    refused("peft_type is 'IA3'", peft_type="IA3")
    refused("use_dora is True", use_dora=True)
    refused("lora_alpha is 'big'", lora_alpha="big")
    refused("has the rank 99, and layer 0, .* has 2", r=99)
    refused("has the rank 7, and layer 0, .*q_proj has 2", rank_pattern={"q_proj": 7})
    refused("has no adapter", {})
    refused("'x' is not the A or B", {"x": np.zeros(2, np.float32)})
    name = next(n for n in arrays if "q_proj.lora_A" in n)
    refused("has only one of A, B", {name: arrays[name]})
    refused("adapter is of another model", {**arrays, name: arrays[name][:, :8].copy()})
    other = {n.replace("layers.0", "layers.7"): a for n, a in arrays.items()}
    refused("layer 7, .*, which this model .* has not", other)


# --- training ------------------------------------------------------------------------------------

SMALL = Settings(lora=LoRA(rank=4, dropout=0.1), length=32, batch=2, accumulate=2, steps=24,
                 rate=5e-2, validation=0.25)  # fmt: skip


def sentences(path, count=24):
    lines = ["the sun is out", "the rain is out", "a dog ran home", "a cat ran home"]
    return write_lines(path, [{"text": lines[i % 4]} for i in range(count)])


def test_the_loss_falls_and_the_step_is_one_program(talker, tmp_path, monkeypatch):
    runs = []
    plain = finetune._Run.run

    def run(self, resume):
        runs.append(self)
        return plain(self, resume)

    monkeypatch.setattr(finetune._Run, "run", run)
    seen = []
    data = sentences(tmp_path / "d.jsonl")
    found = finetune.run(talker, data, tmp_path / "a", SMALL, report=seen.append)
    assert found["losses"][-1] < 0.8 * found["losses"][0]
    assert found["validation_after"] < found["validation_before"]
    assert [p.step for p in seen] == list(range(1, 25)) and seen[-1].rate > 0
    assert runs[0].step._run.traces == runs[0].step._measured.traces == 1
    assert not (tmp_path / "a" / STATE).exists()
    ids = list(b"the sun")
    a, b = (llm.load(talker, context=64, adapter=x).logits(ids) for x in (None, tmp_path / "a"))
    assert np.abs(a - b).max() > 0.1
    again = finetune.run(talker, data, tmp_path / "b", SMALL)
    assert again["losses"] == found["losses"]


@pytest.mark.parametrize("full", [False, True])
def test_resuming_gives_what_no_interruption_gives(full, talker, tmp_path):
    data = sentences(tmp_path / "d.jsonl", 12)
    lora = None if full else SMALL.lora
    settings = Settings(lora=lora, length=32, accumulate=1, batch=1, steps=6, rate=1e-2,
                        validation=0, save_every=4, kind="F32" if full else None)  # fmt: skip
    whole = finetune.run(talker, data, tmp_path / "whole", settings)

    def stop(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune.run(talker, data, tmp_path / "part", settings, report=stop)
    assert (tmp_path / "part" / STATE).exists()
    rest = finetune.run(talker, data, tmp_path / "part", settings, resume=True)
    assert rest["losses"] == whole["losses"][5:]
    name = "model.gguf" if full else WEIGHTS
    assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        finetune.run(talker, data, tmp_path / "part", settings, report=stop, overwrite=True)
    with pytest.raises(FormatError, match="other settings"):
        finetune.run(talker, data, tmp_path / "part", SMALL, resume=True)
    with pytest.raises(ArgumentError, match="no training to go on with"):
        finetune.run(talker, data, tmp_path / "none", settings, resume=True)
    with pytest.raises(FormatError, match="other data"):
        finetune.run(talker, sentences(data, 9), tmp_path / "part", settings, resume=True)


@pytest.mark.slow
def test_batches_of_a_step_count_as_one(talker, tmp_path):
    """Two batches of one row, or one of two: the same mean over all targets."""
    data = sentences(tmp_path / "d.jsonl", 8)
    losses = []
    for batch, accumulate in ((1, 2), (2, 1)):
        settings = Settings(lora=LoRA(4), length=16, batch=batch, accumulate=accumulate, steps=4,
                            rate=1e-2, validation=0, pack=False,
                            recompute=batch == 1)  # fmt: skip
        losses.append(finetune.run(talker, data, tmp_path / f"{batch}", settings)["losses"])
    np.testing.assert_allclose(*losses, rtol=1e-3)


MISUSE = [
    ({"batch": 0}, "batch is 0"), ({"steps": -1}, "steps is -1"), ({"warmup": 1.0}, "warmup is"),
    ({"validation": -0.1}, "validation is"), ({"clip": math.nan}, "clip is nan"),
    ({"length": 1}, "length is 1"), ({"length": 300}, "trained for 2 to 256"),
    ({"rate": 0.0}, "rate is 0.0"), ({"long": "no"}, "long is 'no'"), ({"seed": -1}, "seed is -1"),
    ({"kind": "Q8_0"}, "kind is 'Q8_0', which is for all"),
    ({"kind": "Q9", "lora": None}, "'Q9' is no kind"),
]  # fmt: skip


@pytest.mark.parametrize("given, words", MISUSE)
def test_misuse_says_what_to_do(given, words, talker, tmp_path):
    with pytest.raises(ArgumentError, match=words):
        settings = Settings(**{"length": 16, **given})
        finetune.run(talker, sentences(tmp_path / "d.jsonl"), tmp_path / "a", settings)


def test_options_that_contradict_each_other_are_refused(tmp_path, capsys):
    given = [str(tmp_path / "m"), str(tmp_path / "d.jsonl"), "--full", "--alpha", "3"]
    assert cli.main(["finetune", *given]) == 2
    assert "--alpha is of --lora" in capsys.readouterr().err


def test_the_commands(talker, tmp_path, capsys, monkeypatch):
    data, out = sentences(tmp_path / "d.jsonl"), tmp_path / "adapter"
    given = ["finetune", str(talker), str(data), "--lora", "2", "--length", "32", "--steps", "2",
             "--accumulate", "1", "--output", str(out)]  # fmt: skip
    given += ["--targets", "q_proj", "v_proj"]
    assert cli.main([*given, "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out.splitlines()[-1])
    assert found["steps"] == 2 and found["trained"] == 2 * 2 * 2 * 32
    assert "tokens/s" in told.err and "muladd chat" in told.err
    merged = str(tmp_path / "m.gguf")
    assert cli.main(["merge", str(talker), str(out), merged, "--kind", "Q8_0", "--json"]) == 0
    assert gguf.load(merged).tensors["blk.0.attn_q.weight"].kind.name == "Q8_0"
    assert cli.main(["merge", str(talker), str(out), str(talker)]) == 2
    assert cli.main([*given, "--overwrite", "--targets", "none"]) == 2
    assert cli.main(["finetune", str(talker), str(tmp_path / "no.jsonl"), "--length", "9"]) == 1
    assert "is the model itself" in capsys.readouterr().err
    assert cli.main(["merge", str(talker), str(out), str(tmp_path / "m.safetensors")]) == 2
    assert "give a name that ends in .gguf" in capsys.readouterr().err
    # what is there already stays, unless told otherwise
    again = ["merge", str(talker), str(out), merged]
    for command in (again, given, [*given, "--resume"]):
        assert cli.main(command) == 2
        assert "is there already; give another output, or --over" in capsys.readouterr().err
    assert cli.main([*again, "--overwrite"]) == 0


def test_ctrl_c_and_sigterm_save_the_last_whole_step(talker, tmp_path, capsys, monkeypatch):
    data = sentences(tmp_path / "d.jsonl")
    given = ["finetune", str(talker), str(data), "--lora", "2", "--length", "32", "--steps", "3",
             "--accumulate", "1", "--output"]  # fmt: skip
    whole = tmp_path / "whole"
    assert cli.main([*given, str(whole)]) == 0
    plain = finetune.Step.__call__
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        calls = []

        def interrupted(self, *batch, number=number, calls=calls):
            calls.append(0)
            found = plain(self, *batch)
            if len(calls) == 2:  # weights have changed by now
                signal.raise_signal(number)
            return found

        monkeypatch.setattr(finetune.Step, "__call__", interrupted)
        part = [*given, str(tmp_path / str(code))]
        assert cli.main(part) == code
        assert "--resume goes on" in capsys.readouterr().out
        monkeypatch.undo()
        assert cli.main(part) == 2 and "was interrupted; --resume" in capsys.readouterr().err
        assert cli.main([*part, "--resume"]) == 0
        found = tmp_path / str(code) / WEIGHTS
        assert found.read_bytes() == (whole / WEIGHTS).read_bytes()
        assert "step 3/3" in capsys.readouterr().out and not (found.parent / STATE).exists()


# --- the real model ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_model_learns_a_novel_and_llama_cpp_says_what_it_learnt(smollm, tmp_path):
    from muladd import data

    text = data.novel()
    start = text.index("Sir Walter Elliot")
    whole = [" ".join(p.split()) for p in text[start : start + 12000].split("\n\n")]
    file = write_lines(tmp_path / "novel.jsonl", [{"text": p} for p in whole if len(p) > 60])
    settings = Settings(lora=LoRA(8), length=64, batch=1, accumulate=1, steps=12, rate=1e-3,
                        validation=0.1)  # fmt: skip
    found = finetune.run(smollm, file, tmp_path / "adapter", settings)
    assert found["validation_after"] < found["validation_before"] - 0.05
    merged = merge.merge(smollm, tmp_path / "adapter", tmp_path / "merged.gguf", "F32")
    plain = {"context": 128, "arithmetic": "float32"}
    model = llm.load(smollm, adapter=tmp_path / "adapter", **plain)
    prompt = model.tokenizer.encode("Sir Walter Elliot, of Kellynch Hall,")
    pieces = list(model.generate(prompt, max_tokens=24, logprobs=4))
    with llama_cpp(merged, context=128) as ask:
        answer = ask("/completion", {"prompt": prompt, "n_predict": 24, "temperature": 0,
                                     "n_probs": 4, "return_tokens": True})  # fmt: skip
    assert [p.token for p in pieces] == answer["tokens"]
    for piece, step in zip(pieces, answer["completion_probabilities"]):
        theirs = [t["logprob"] for t in step["top_logprobs"]]
        np.testing.assert_allclose([chance for _, chance in piece.top], theirs, atol=0.02)
    assert [p.token for p in llm.load(smollm, **plain).generate(prompt, max_tokens=24)] \
        != answer["tokens"]  # fmt: skip


def test_a_model_is_not_written_over_by_its_folders_name(tmp_path):
    path = tmp_path / "model.gguf"
    write_talker(path)
    before = path.read_bytes()
    with pytest.raises(ArgumentError, match="is the model itself"):
        merge.target(path, tmp_path)
    with pytest.raises(ArgumentError, match="is the model itself"):
        merge.write(opened(path), tmp_path, {})
    assert path.read_bytes() == before
