"""OpenAI's own client talks to a server process with the real SmolLM2."""
from __future__ import annotations

import json
import math
import os
import threading
from typing import Any

import pytest
from support.server import serving

openai = pytest.importorskip("openai")

ASK = [{"role": "user", "content": "What is 2 + 2?"}]
WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "The weather of a city now", "parameters": {
        "type": "object", "required": ["city"], "additionalProperties": False,
        "properties": {"city": {"type": "string", "maxLength": 12}}}}}  # fmt: skip


@pytest.fixture(scope="module")
def server(smollm, minilm):
    with serving(smollm, "--slots", "4", "--context", "512", "--name", "smol",
                 "--max-body", str(1 << 20), "--embeddings", str(minilm),
                 "--embeddings-name", "minilm") as found:  # fmt: skip
        yield found


@pytest.fixture
def client(server):
    with server.client() as found:
        yield found


def test_chats(client):
    assert [m.id for m in client.models.list()] == ["smol", "minilm"]
    assert client.models.retrieve("smol").id == "smol"
    given = {"model": "smol", "messages": ASK, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**given, logprobs=True, top_logprobs=3)
    choice = whole.choices[0]
    assert "4" in choice.message.content and choice.finish_reason in ("stop", "length")
    assert whole.usage.prompt_tokens + whole.usage.completion_tokens == whole.usage.total_tokens
    told = choice.logprobs.content
    assert len(told) == whole.usage.completion_tokens
    assert all(t.top_logprobs[0].token == t.token and t.logprob <= 0 for t in told)
    assert choice.message.content.startswith(b"".join(bytes(t.bytes) for t in told[:5]).decode())

    stream = list(client.chat.completions.create(**given, stream=True,
                                                 stream_options={"include_usage": True}))
    assert stream[0].choices[0].delta.role == "assistant"
    said = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert said == choice.message.content
    assert [c.choices[0].finish_reason for c in stream if c.choices][-1] == choice.finish_reason
    assert stream[-1].choices == [] and stream[-1].usage.completion_tokens == len(told)

    cut = client.chat.completions.create(**given, stop=["math", " 4"])
    assert cut.choices[0].finish_reason == "stop"
    assert choice.message.content.startswith(cut.choices[0].message.content)
    assert "4" not in cut.choices[0].message.content


def test_choices_seeds_and_biases(client):
    given = {"model": "smol", "messages": ASK, "max_tokens": 8, "temperature": 1.5, "seed": 5}
    a, b = (client.chat.completions.create(**given, n=3) for _ in range(2))
    texts = [c.message.content for c in a.choices]
    assert texts == [c.message.content for c in b.choices] and len(set(texts)) == 3
    assert a.usage.completion_tokens <= 24
    greedy = {**given, "temperature": 0}
    first = client.chat.completions.create(**greedy, logprobs=True).choices[0].logprobs.content[0]
    ids = {"The": 504, "2": 34}
    other = client.chat.completions.create(**greedy, logit_bias={str(ids[first.token]): -100})
    assert not other.choices[0].message.content.startswith(first.token)
    greedy |= {"max_tokens": 40, "frequency_penalty": 2.0, "presence_penalty": 2.0}
    words = client.chat.completions.create(**greedy).choices[0].message.content.lower().split()
    assert len(set(words)) > 0.8 * len(words)


def test_completions(client, server):
    given = {"model": "smol", "max_tokens": 5, "temperature": 0}
    two = client.completions.create(**given, prompt=["The capital of France is", "Once upon a"])
    assert "Paris" in two.choices[0].text and two.choices[1].text.startswith(" time")
    assert two.usage.completion_tokens == 10 and two.choices[0].finish_reason == "length"
    echo = client.completions.create(**given, prompt="Once upon a", echo=True, logprobs=2)
    assert echo.choices[0].text == "Once upon a" + two.choices[1].text
    told = echo.choices[0].logprobs
    assert told.tokens[:3] == ["Once", " upon", " a"] and len(told.tokens) == 3 + 5
    assert told.text_offset[:4] == [0, 4, 9, 11] and "".join(told.tokens) == echo.choices[0].text
    assert told.token_logprobs[0] is told.top_logprobs[0] is None
    assert all(t in top for t, top in zip(told.tokens[1:], told.top_logprobs[1:]))
    assert echo.usage.prompt_tokens == 3 and echo.usage.completion_tokens == 5
    parts = list(client.completions.create(**given, prompt="Once upon a", stream=True))
    assert "".join(p.choices[0].text for p in parts) == two.choices[1].text
    ids = client.completions.create(**given, prompt=[[504, 3575, 282]])
    assert len(ids.choices) == 1


@pytest.mark.slow
def test_texts_are_scored_and_not_gone_on(client, server, smollm):
    """max_tokens=0 with echo: each token's probability after those before it."""
    from muladd import llm

    text = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich \N{GRINNING FACE}. " * 5
    model = llm.load(smollm, context=512)
    ids = model.tokenizer.encode(text)
    wanted = model.log_likelihoods(ids)
    given = {"model": "smol", "max_tokens": 0, "echo": True, "logprobs": 1}
    for prompt in (text, [ids[:5], ids], text):  # beginnings that are known change nothing
        found = client.completions.create(**given, prompt=prompt)
        told = found.choices[-1].logprobs
        assert found.choices[-1].text == text and found.choices[-1].finish_reason == "length"
        assert len(told.tokens) == len(ids) > 128 and found.usage.completion_tokens == 0
        assert max(abs(told.token_logprobs[1:] - wanted)) < 0.3
        assert sum(t.startswith("bytes:") for t in told.tokens) >= 5
    parts = list(client.completions.create(**given, prompt=text, stream=True))
    assert len(parts) == 1 and parts[0].choices[0].text == text
    assert len(parts[0].choices[0].logprobs.tokens) == len(ids)
    assert client.completions.create(model="smol", prompt="a", max_tokens=0).choices[0].text == ""
    assert server.metric("pages_held") == 0


def test_embeddings(client):
    one = client.embeddings.create(model="smol", input=["a cat", "a kitten", "tax law of 1971"])
    same = client.embeddings.create(model="smol", input="a cat", encoding_format="float")
    a, b, c = (d.embedding for d in one.data)
    assert len(a) == 576 and math.isclose(sum(x * x for x in a), 1, rel_tol=1e-4)
    assert max(abs(x - y) for x, y in zip(a, same.data[0].embedding)) < 1e-4
    assert sum(map(float.__mul__, a, b)) > sum(map(float.__mul__, a, c))
    assert one.usage.prompt_tokens == one.usage.total_tokens > 3


@pytest.mark.slow
def test_embeddings_of_a_model_of_their_own(client, minilm):
    """While answers are written, too."""
    from muladd.llm import embeddings

    stream = client.chat.completions.create(model="smol", messages=ASK, max_tokens=60, stream=True,
                                            temperature=0)  # fmt: skip
    assert next(iter(stream)).choices
    texts = ["a cat", " ", "tax law of 1971", "word " * 100]
    found = client.embeddings.create(model="minilm", input=texts)
    said = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert said and found.model == "minilm"
    wanted = embeddings.load(minilm).read(texts)
    assert found.usage.prompt_tokens == wanted.tokens
    for ours, one in zip(wanted.vectors.tolist(), found.data):
        assert max(abs(x - y) for x, y in zip(ours, one.embedding)) < 1e-5
    for wrong, words in (([1, 2], "takes text"), ("word " * 300, "302 tokens")):
        with pytest.raises(openai.BadRequestError, match=words):
            client.embeddings.create(model="minilm", input=wrong)
    with pytest.raises(openai.BadRequestError, match="gives embeddings only"):
        client.chat.completions.create(model="minilm", messages=ASK)
    with pytest.raises(openai.NotFoundError, match="there is 'smol' and 'minilm'"):
        client.embeddings.create(model="other", input="a")


def test_tools_and_schemas(client):
    given = {"model": "smol", "messages": [{"role": "user", "content": "How warm is Rome?"}],
             "temperature": 0, "tools": [WEATHER]}  # fmt: skip
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        found = client.chat.completions.create(**given, tool_choice=choice).choices[0]
        assert found.finish_reason == "tool_calls"
        (call,) = found.message.tool_calls
        assert call.function.name == "weather"
        assert list(json.loads(call.function.arguments)) == ["city"]
    parts = list(client.chat.completions.create(**given, tool_choice="required", stream=True))
    streamed = [c for p in parts for c in p.choices[0].delta.tool_calls or ()]
    assert streamed[0].function.arguments == call.function.arguments
    more = [*given["messages"], {"role": "assistant", "tool_calls": [call.model_dump()]},
            {"role": "tool", "tool_call_id": call.id, "content": "31 degrees"}]  # fmt: skip
    after = client.chat.completions.create(**{**given, "messages": more}, max_tokens=20)
    assert after.choices[0].message.content
    schema = {"type": "object", "required": ["sum"], "additionalProperties": False,
              "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}}}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}
    bound = client.chat.completions.create(model="smol", messages=ASK, response_format=form)
    assert set(json.loads(bound.choices[0].message.content)) == {"sum"}
    either = client.chat.completions.create(**given, response_format=form).choices[0].message
    assert either.tool_calls or set(json.loads(either.content)) == {"sum"}


def test_references_in_tools_lead_where_they_did(client):
    """As pydantic writes the schemas of nested types."""
    place = {"type": "object", "required": ["name"], "additionalProperties": False,
             "properties": {"name": {"enum": ["Rome", "Oslo"]}}}  # fmt: skip
    parameters = {"type": "object", "required": ["place"], "additionalProperties": False,
                  "properties": {"place": {"$ref": "#/$defs/Place"}},
                  "$defs": {"Place": place}}  # fmt: skip
    tool = {"type": "function", "function": {"name": "visit", "parameters": parameters}}
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": parameters}}
    ask = {"model": "smol", "messages": [{"role": "user", "content": "Where to?"}],
           "temperature": 0, "tools": [WEATHER, tool]}  # fmt: skip
    found = client.chat.completions.create(
        **ask, tool_choice={"type": "function", "function": {"name": "visit"}})
    (call,) = found.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["place"]["name"] in ("Rome", "Oslo")
    said = client.chat.completions.create(**ask, response_format=form).choices[0].message
    told = said.tool_calls[0].function.arguments if said.tool_calls else said.content
    assert {"place", "city"} & set(json.loads(told))


MISUSE = [
    (b"{bad", 400, "not JSON"), (b"\xff\xfe{}", 400, "no UTF-8"), (b"[]", 400, "JSON object"),
    (b"", 400, "not JSON"), (b"[" * 100_000, 400, "not JSON"),
    ({"messages": None}, 400, "messages is absent"), ({"messages": []}, 400, "at least one"),
    ({"messages": "hello"}, 400, "expected a list"), ({"messages": [7]}, 400, "messages.0 is 7"),
    ({"messages": [{"role": "king", "content": ""}]}, 400, "one of system"),
    ({"messages": [{"role": "user", "content": 5}]}, 400, "messages.0.content is 5"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "reads texts"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
    ({"messages": [{"role": "user", "content": "a b " * 600}]}, 400, "context length is 512"),
    ({"messages": [{"role": "user", "content": "ab" * 400_000}]}, 400, "context length is 512"),
    ({"messages": [{"role": "user", "content": "x" * 10_000_000}]}, 413, "1048576 bytes"),
    ({"model": "gpt-4"}, 404, "does not exist"), ({"model": 4}, 400, "model is 4"),
    ({"temperature": "hot"}, 400, "temperature"), ({"temperature": 1e400}, 400, "temperature"),
    ({"max_tokens": 0}, 400, "max_tokens"), ({"max_tokens": 1.5}, 400, "max_tokens"),
    ({"n": True}, 400, "n is true"), ({"stream": "yes"}, 400, "stream"),
    ({"stop": [""]}, 400, "stop.0 is"), ({"stop": ["x"] * 17}, 400, "up to 16"),
    ({"messages": [{"role": "user", "content": "x", "zz": 1}]}, 400, "messages.0.zz"),
    ({"logit_bias": {"5": 1000}}, 400, "from -100 to 100"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "give one of them"),
    (b'{"n": ' + b"1" * 5000 + b"}", 400, "too long a number"),
    ({"stop": 5}, 400, "stop"), ({"top_logprobs": 3}, 400, "needs"),
    ({"logit_bias": {"a": 1}}, 400, "logit_bias"),
    ({"logit_bias": {"49152": 1}}, 400, "logit_bias holds 49152; expected ids from 0 to 49151"),
    ({"logit_bias": {"-1": 1}}, 400, "logit_bias holds -1"),
    ({"tools": [{}]}, 400, "tools.0.type"),
    ({"tools": [WEATHER, WEATHER]}, 400, "like that of another"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, 400, "letters, digits"),
    ({"tools": [{"type": "function", "function": {"name": "bad name!"}}]}, 400, "1 to 64 letters"),
    ({"modalities": ["audio"]}, 400, "modalities is"),
    ({"tool_choice": "required"}, 400, "no tools"), ({"tempretur": 1}, 400, "tempretur"),
    ({"response_format": {"type": "xml"}}, 400, "one of text"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}},
     400, "no"),
]  # fmt: skip


def test_bad_input_is_told_what_is_wrong_and_the_server_stays_up(server):
    base = {"model": "smol", "messages": ASK, "max_tokens": 2}
    for given, status, words in MISUSE:
        data = given if isinstance(given, bytes) else json.dumps({**base, **given}).encode()
        found, said = server.ask("/v1/chat/completions", data)
        assert found == status, (str(given)[:80], said)
        assert words in said["error"]["message"], said
        assert set(said["error"]) == {"message", "type", "param", "code"}
    for path, data, status in [
        ("/v1/nothing", b"{}", 404), ("/v1/chat/completions", None, 405),
        ("/v1/models/other", None, 404), ("/v1/completions", b'{"model": "smol"}', 400),
        ("/v1/completions", b'{"model": "smol", "prompt": ""}', 400),
        ("/v1/completions", b'{"model": "smol", "prompt": [1000000]}', 400),
        ("/v1/completions", b'{"model": "smol", "prompt": [[]]}', 400),
        ("/v1/embeddings", b'{"model": "smol", "input": []}', 400),
    ]:  # fmt: skip
        found, said = server.ask(path, data)
        assert found == status and said["error"]["message"], (path, said)
    assert server.ask("/health")[1]["status"] == "ok"
    status, said = server.ask("/v1/chat/completions", json.dumps(base).encode())
    assert status == 200 and said["usage"]["completion_tokens"] == 2
    assert server.metric("failed") == 0


def test_whoever_goes_frees_his_slot_at_once(server):
    def begin(stream):
        body = {"model": "smol", "prompt": "Once", "max_tokens": 500, "ignore_eos": True,
                "stream": stream}  # fmt: skip
        talk = __import__("http.client").client.HTTPConnection(server.address)
        talk.request("POST", "/v1/completions", json.dumps(body))
        return talk

    gone = server.metric("cancelled")
    talks = [begin(stream) for stream in (True, False, True)]
    assert server.becomes(running=3)
    for talk in talks:
        talk.sock.close()
    assert server.becomes(running=0, pages_held=0, cancelled=gone + 3, seconds=5)


def test_many_at_a_time_hear_what_each_hears_alone(server):
    """Eight clients on four slots, some of whose prompts begin alike. (Activations are rounded, and
    sums of other shapes are rounded otherwise: so chances are compared, up to where texts part.)"""
    prompts = [f"{'Once upon a time ' * (i % 3 * 20)}there lived {i}" for i in range(8)]
    given = {"model": "smol", "max_tokens": 10, "temperature": 0, "logprobs": 1}
    said: dict[int, Any] = {}

    def run(i):
        with server.client() as client:
            said[i] = client.completions.create(**given, prompt=prompts[i]).choices[0].logprobs

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    with server.client() as client:
        for i in (0, 2, 5):
            alone = client.completions.create(**given, prompt=prompts[i]).choices[0].logprobs
            same = len(os.path.commonprefix([alone.tokens, said[i].tokens]))
            for a, b in zip(alone.token_logprobs[: same + 1], said[i].token_logprobs):
                assert abs(a - b) < 0.3
    assert server.metric("cached_tokens") > 0
