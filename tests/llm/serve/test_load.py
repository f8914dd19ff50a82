"""Many clients of all kinds, random disconnects: nothing that is well-formed fails, memory stays.

The whole ten minutes: python -m muladd.llm.serve.load URL --seconds 600 --process PID
"""
from __future__ import annotations

import json
import threading
import time

import pytest
from support.server import serving
from support.small_llama import write_speaking

from muladd import cli
from muladd.llm.serve import load


def check(server, duration, clients, growth, capsys):
    code = load.main([server.url, "--seconds", str(duration), "--clients", str(clients),
                      "--process", str(server.process.pid), "--most-growth", str(growth)])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0, told
    assert all(told["answered"].get(kind) for kind in ("whole", "stream", "leaves", "is_wrong"))
    assert server.becomes(running=0, waiting=0, pages_held=0)
    assert server.metric("failed") == 0
    return told


@pytest.mark.slow
def test_a_short_load(tmp_path, capsys):
    model = write_speaking(tmp_path / "nonsense.gguf", context=2048)
    with serving(model, "--slots", "4", "--tokens", "4096") as server:
        check(server, 12, 8, 0.15, capsys)
        assert server.metric("cancelled") > 0


@pytest.mark.slow
def test_a_load_on_the_real_model(smollm, capsys):
    with serving(smollm, "--slots", "16", "--context", "1024") as server:
        check(server, 60, 16, 0.1, capsys)


@pytest.mark.slow
def test_sixteen_clients_get_more_than_one(smollm):
    """Tokens per second of 16 clients against one, whose prompts are of some length. (The aim is 3
    times; a machine that tests on all of its cores may show less.)"""
    with serving(smollm, "--context", "512") as server:

        def rate(clients):
            def ask(i):
                body = {"model": server.name, "prompt": f"{i} Once upon a time there was a king",
                        "max_tokens": 64, "ignore_eos": True, "temperature": 0}  # fmt: skip
                status, _ = server.ask("/v1/completions", json.dumps(body))
                assert status == 200

            threads = [threading.Thread(target=ask, args=(i,)) for i in range(clients)]
            start = time.perf_counter()
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            return clients * 64 / (time.perf_counter() - start)

        rates = [(rate(1), rate(16)) for _ in range(3)]
        one, many = (max(r) for r in zip(*rates))
        print(f"1 client: {one:.0f} tokens/s, 16 clients: {many:.0f}: {many / one:.2f} times")
        assert many > 1.2 * one


@pytest.mark.slow
def test_the_benchmark_tells_of_one_client_and_of_many(tmp_path, capsys):
    path = str(write_speaking(tmp_path / "nonsense.gguf"))
    given = ["bench", "serve", path, "--clients", "2", "--prompt", "2", "--decode", "3",
             "--repeat", "1", "--json"]  # fmt: skip
    assert cli.main(given) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["clients"] == 2 and found["one_tok_s"] > 0 and found["many_tok_s"] > 0
    assert cli.main(["bench", "serve", str(tmp_path / "none.gguf")]) == 1
    told = capsys.readouterr().err
    assert "the server did not begin" in told and "none.gguf" in told
