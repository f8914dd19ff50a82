"""Keys, queues, timeouts and the end of a server, with a model that says nonsense quickly."""
from __future__ import annotations

import re
import signal
import socket
import threading

import pytest
from support.server import serving
from support.small_llama import write_speaking

from muladd import llm
from muladd.llm.serve import api
from muladd.llm.serve.api import ApiError
from muladd.llm.serve.engine import Engine
from muladd.llm.serve.service import Service
from muladd.llm.tokenizer import Tokenizer

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_speaking(tmp_path_factory.mktemp("m") / "nonsense.gguf", context=8192)


def long_answer(**more):
    return {"model": "nonsense", "prompt": "ab", "max_tokens": 8000, "temperature": 0,
            "extra_body": {"ignore_eos": True}, **more}  # fmt: skip


def test_keys_queues_and_timeouts(model, tmp_path):
    key = tmp_path / "key"
    key.write_text("secret\n")
    with serving(model, "--slots", "1", "--queue", "1", "--timeout", "1", "--context", "8192",
                 "--api-key-file", str(key)) as server:  # fmt: skip
        for wrong in ("none", "secret2", "é"):
            status, said = server.ask("/v1/models", Authorization=f"Bearer {wrong}".encode())
            assert status == 401 and said["error"]["code"] == "invalid_api_key"
        assert server.ask("/v1/models")[0] == 401
        assert server.ask("/health")[0] == server.ask("/metrics")[0] == server.ask("/")[0] == 200
        with server.client("secret") as client:
            assert client.models.list().data[0].id == "nonsense"
            streams = [client.completions.create(**long_answer(stream=True))]
            next(iter(streams[0]))
            late: list[Exception] = []

            def wait():
                try:
                    client.completions.create(**long_answer())
                except openai.APIStatusError as error:
                    late.append(error)

            waiting = threading.Thread(target=wait)
            waiting.start()
            assert server.becomes(waiting=1)
            with pytest.raises(openai.RateLimitError, match="waiting already") as full:
                client.completions.create(**long_answer())
            assert full.value.response.headers["retry-after"]
            streams[0].close()
            waiting.join()
            assert late and late[0].status_code == 504 and "time" in str(late[0])
            with pytest.raises(openai.APIError, match="time for this request"):
                list(client.completions.create(**long_answer(stream=True)))


def test_a_stopped_server_finishes_what_it_began(model):
    with serving(model, "--slots", "2") as server, server.client() as client:
        asked = long_answer(stream=True, max_tokens=2000)
        stream = iter(client.completions.create(**asked))
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        parts = list(stream)
        assert parts[-1].choices[0].finish_reason == "length" and len(parts) > 100
        with pytest.raises((openai.APIConnectionError, openai.InternalServerError)):
            client.models.list()
        assert server.process.wait(10) == 0


def test_answers_that_do_not_finish_in_time_are_told(model):
    with serving(model, "--context", "8192", "--grace", "0.3") as server, server.client() as client:
        stream = iter(client.completions.create(**long_answer(stream=True)))
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
        assert server.process.wait(10) == 0


def test_a_client_may_leave_in_the_middle_of_what_it_says(model):
    with serving(model, "--slots", "1") as server:  # which would show a traceback at its end
        host, port = server.address.removeprefix("http://").split(":")
        for said in (b"Content-Length: 500\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"):
            with socket.create_connection((host, int(port)), 10) as line:
                line.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + said)
        assert server.ask("/health")[0] == 200


def test_a_body_that_does_not_come_is_not_waited_for(model):
    with serving(model, "--slots", "1", "--body-timeout", "0.5") as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), 10) as line:
            line.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                         b"Content-Length: 500\r\n\r\n{")  # fmt: skip
            assert server.ask("/health")[0] == 200
            said = b"".join(iter(lambda: line.recv(4096), b""))
        assert said.startswith(b"HTTP/1.1 408 ") and b"did not come in 0.5 seconds" in said


def test_a_header_that_does_not_end_is_not_waited_for(model):
    with serving(model, "--slots", "1", "--body-timeout", "0.5") as server:
        host, port = server.address.split(":")
        for begun in (b"", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"):
            with socket.create_connection((host, int(port)), 10) as line:
                line.sendall(begun)
                said = b"".join(iter(lambda: line.recv(4096), b""))
            assert said.startswith(b"HTTP/1.1 408 ")
        with socket.create_connection((host, int(port)), 10) as line:  # after one that was answered
            line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert line.recv(4096).startswith(b"HTTP/1.1 200 ")
            line.sendall(b"GET /health HT")
            assert b"HTTP/1.1 408 " in b"".join(iter(lambda: line.recv(4096), b""))


@pytest.mark.slow
def test_pages_of_others_are_refused(model, tmp_path):
    (tmp_path / "key").write_text("secret")
    with serving(model, "--slots", "1") as server:
        same = f"http://{server.address}"
        for more, status in (({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
                             ({"Host": "evil.example"}, 403), ({"Origin": same}, 200),
                             ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
                             ({"Host": "[::1"}, 403), ({"Host": "localhost:1"}, 200)):  # fmt: skip
            found, said = server.ask("/v1/models", **more)
            assert found == status, (more, said)
            assert status == 200 or said["error"]["type"] == "permission_error"
        assert server.ask("/health", Host="evil.example")[0] == 403
        assert server.ask("/any-path", Host="evil.example")[0] == 403
        assert "any-path" not in server.ask("/metrics")[1]
    with serving(model, "--slots", "1", "--api-key-file", str(tmp_path / "key")) as server:
        known = {"Host": "model.example", "Authorization": "Bearer secret"}  # behind a proxy
        assert server.ask("/v1/models", **known)[0] == 200


def test_a_prompt_that_is_far_too_long_is_not_read_to_its_end(model, monkeypatch):
    found = llm.load(model, context=64)
    service = Service(Engine(found, slots=1), "nonsense")
    service._longest = 1 << 20  # else the length alone would tell
    seen = []
    plain = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda *given: seen.append(given[1]) or plain(*given))
    for given in ("x" * 10_000_000, [1] * 1_000_000):
        with pytest.raises(ApiError, match="maximum context length is 64 tokens") as told:
            service.ids(given, "prompt")
        assert told.value.code == "context_length_exceeded"
    assert max(map(len, seen)) < 2000
    assert len(service.ids("x" * 60, "prompt")) == 60


@pytest.mark.parametrize("given, name", [
    ({"response_format": {"type": "json_schema", "json_schema": {"shema": {}}}},
     "response_format.json_schema.shema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
     "response_format.json_schema.schema"),
    ({"response_format": {"type": "text", "kind": 1}}, "response_format.kind"),
    ({"tools": [{"type": "function", "function": {"name": "f", "paramters": {}}}]},
     "tools.0.function.paramters"),
    ({"tools": [{"type": "function", "function": {"name": "f"}, "x": 1}]}, "tools.0.x"),
])  # fmt: skip
def test_a_misspelt_field_is_told_wherever_it_is(given, name):
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **given}
    with pytest.raises(ApiError, match=re.escape(name)) as told:
        api.chat(body)
    assert told.value.param == name


def test_clients_make_no_metrics(model):
    with serving(model) as server:
        for i in range(3):
            assert server.ask(f"/v1/models/any{i}")[0] == 404
        text = server.ask("/metrics")[1]
        assert "any" not in text and 'path="/v1/models/{id}"' in text


def test_wrong_usage_is_told_at_once(model, tmp_path, capsys):
    from muladd import cli

    def run(*arguments):
        return cli.main(["serve", str(model), *arguments])

    with serving(model, "--slots", "1") as server:
        assert run("--port", server.address.split(":")[1]) == 1
    assert run("--api-key", "") == 2
    assert run("--api-key-file", str(tmp_path / "none")) == 2
    assert run("--name", "two", "--embeddings", str(tmp_path / "two")) == 2
    assert "both models would be called 'two'" in capsys.readouterr().err
    assert cli.main(["serve", str(tmp_path / "none.gguf")]) == 1
    assert run("--port", "0", "--tokens", str(1 << 45)) == 1
    assert "choose a smaller model or context, or fewer tokens" in capsys.readouterr().err
    for wrong in (["--slots", "0"], ["--slots", "65"], ["--timeout", "-1"], ["--cache", "int3"],
                  ["--port", "70000"], ["--port", "-1"], ["--context", "0"]):
        with pytest.raises(SystemExit) as code:
            run(*wrong)
        assert code.value.code == 2


def test_any_name_is_shown_as_it_is(model):
    with serving(model, "--name", "a <b> \"c\"") as server:
        status, page = server.ask("/")
        assert status == 200 and "<title>a &lt;b&gt; &quot;c&quot;</title>" in page
        assert server.ask("/v1/models")[1]["data"][0]["id"] == 'a <b> "c"'
