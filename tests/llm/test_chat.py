"""The terminal: lines in, answers out; Ctrl-C stops an answer. And the benchmark's last line."""
from __future__ import annotations

import io
import json

import pytest
from support.small_llama import write_small
from support.talker import write_talker

from muladd import cli
from muladd.errors import ArgumentError
from muladd.llm import Tokenizer
from muladd.llm.chat import Chat
from muladd.llm.generate import LanguageModel
from muladd.llm.model import Decoder
from muladd.llm.sources import from_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_talker(tmp_path_factory.mktemp("talker") / "talker.gguf")
    config, tensors, file = from_gguf(path)
    return LanguageModel(Decoder(config, tensors, 128), Tokenizer.from_gguf(file))


def talk(model, lines, **options):
    given = iter(lines)

    def ask(_):
        line = next(given, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    out = io.StringIO()
    out.isatty = lambda: True
    chat = Chat(model, out, ask, **options)
    chat.run()
    return chat, out.getvalue()


def test_a_conversation(model):
    chat, out = talk(model, ["hi\\", "there", "/what", KeyboardInterrupt(), "more"], max_tokens=4)
    roles = [m["role"] for m in chat.messages]
    assert roles == ["user", "assistant"] * 2 and chat.messages[0]["content"] == "hi\nthere"
    assert out.count("tokens/s") == 2 and "/clear" in out
    chat, _ = talk(model, ["the input ends\\"], max_tokens=4)
    assert [m["content"] for m in chat.messages][:1] == ["the input ends"]
    chat, _ = talk(model, ["hi", "/clear", "/quit", "no"], max_tokens=2, system="Be kind.")
    assert chat.messages == [{"role": "system", "content": "Be kind."}]


def test_a_pipe_gets_the_answers_alone(tmp_path, capsys, monkeypatch):
    path = write_talker(tmp_path / "talker.gguf")
    monkeypatch.setattr("sys.stdin", io.StringIO("/help\nhi\n"))
    assert cli.main(["chat", str(path), "--max-tokens", "2"]) == 0
    found = capsys.readouterr()
    assert "/clear" in found.err and "tokens/s" in found.err
    assert found.out.count("\n") <= 3 and "LanguageModel" not in found.out
    assert "tokens/s" not in found.out


def test_ctrl_c_stops_the_answer_only(model, monkeypatch):
    plain = model.chat

    def interrupted(*given, **options):
        for i, piece in enumerate(plain(*given, **options)):
            if i == 3:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(model, "chat", interrupted)
    chat, out = talk(model, ["hi", "again"], max_tokens=9)
    assert out.count("stopped]") == 2 and len(chat.messages) == 4


def test_a_conversation_that_grows_too_long_says_so(model, capsys):
    chat, _ = talk(model, ["a" * 200, "hi"], max_tokens=2)
    told = capsys.readouterr().err
    assert "there is room for 128" in told and "/clear" in told and chat.failed == 1
    assert [m["content"] for m in chat.messages][0] == "hi"


def test_the_command_gives_the_conversation_as_json(tmp_path, capsys, monkeypatch):
    path = write_talker(tmp_path / "talker.gguf")
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert cli.main(["chat", str(path), "--json", "--max-tokens", "2", "--top-k", "1"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["messages"]
    assert [m["role"] for m in said] == ["user", "assistant"]


@pytest.mark.parametrize("given, code, words", [
    (b"hi\n", 0, ""), (b"hi\n" + b"a" * 300 + b"\n", 1, "there is room for 256"),
    (b"\xff\n", 1, "is no UTF-8"), (b"", 0, ""),
])  # fmt: skip
def test_a_line_of_a_pipe_without_an_answer_is_a_failure(
    given, code, words, tmp_path, capsys, monkeypatch
):
    path = write_talker(tmp_path / "talker.gguf")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))
    assert cli.main(["chat", str(path), "--max-tokens", "2"]) == code
    assert words in capsys.readouterr().err


def test_a_model_that_cannot_talk_says_so_at_once(tmp_path, capsys):
    assert cli.main(["chat", str(write_small(tmp_path / "small.gguf"))]) == 2
    told = capsys.readouterr()
    assert "without a tokenizer" in told.err and not told.out


def test_nobody_has_said_anything(model):
    with pytest.raises(ArgumentError, match="no messages; give one at least"):
        model.chat([])


def test_answers_by_a_schema_and_with_guesses(tmp_path, capsys, monkeypatch):
    path, schema = str(write_talker(tmp_path / "talker.gguf")), tmp_path / "schema.json"
    schema.write_text('{"enum": ["yes", "no"]}')
    for more in ([], ["--draft", "ngram"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("well?\n"))
        assert cli.main(["chat", path, "--schema", str(schema), "--json", *more]) == 0
        said = json.loads(capsys.readouterr().out.splitlines()[-1])["messages"]
        assert json.loads(said[1]["content"]) in ("yes", "no")
    schema.write_text('{"enum": 3}')
    assert cli.main(["chat", path, "--schema", str(schema)]) == 2
    assert "enum is 3; expected a list" in capsys.readouterr().err


def test_the_benchmark_ends_with_json(tmp_path, capsys):
    path = str(write_talker(tmp_path / "talker.gguf"))
    given = ["bench", "llm", path, "--prompt", "70", "--decode", "4", "--repeat", "1", "--json"]
    assert cli.main(given) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["prompt_tok_s"] > 0 and found["decode_tok_s"] > 0
    assert cli.main([*given, "--context", "16"]) == 2
    assert "more than the context of 16" in capsys.readouterr().err
    assert cli.main(["bench", "llm", str(tmp_path / "none.gguf")]) == 1
