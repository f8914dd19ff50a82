"""Chat templates: the text of known ones, what they may use, and what they may not."""
from __future__ import annotations

from datetime import datetime

import pytest
from support.llama_cpp import llama_cpp

from muladd.errors import ArgumentError, FormatError
from muladd.formats import gguf

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from muladd.llm import Tokenizer
from muladd.llm.template import Template

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Größe & <b>?"},
    {"role": "assistant", "content": "42"},
    {"role": "user", "content": "Sure?"},
]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"city": "größe"}}}


def render(source, messages=TALK, tools=None, prompt=True, **more):
    template = Template(source, {"bos_token": "<s>"}, now=lambda: datetime(2025, 3, 9, 8, 7))
    return template.render(messages, tools, prompt, **more)


def test_the_real_template_equals_llama_cpp(smollm):
    ours = Tokenizer.from_gguf(smollm)
    with llama_cpp(smollm) as ask:
        for talk in (TALK, TALK[1:2], TALK[1:]):
            wanted = ask("/apply-template", {"messages": talk})["prompt"]
            assert ours.chat(talk) == wanted
            ids = ask("/tokenize", {"content": wanted, "parse_special": True})["tokens"]
            assert ours.encode(ours.chat(talk)) == ids
    bare = ours.chat(TALK, add_generation_prompt=False)
    assert ours.chat(TALK) == bare + "<|im_start|>assistant\n"


def test_what_templates_use():
    source = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {{- '[' + message['role'] + ']' + message.content | trim }}
    {%- generation %}!{% endgeneration %}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{{ tools[0] | tojson(indent=1) }}{% endif %}
{%- if add_generation_prompt %}[assistant]{% endif %}
{{- strftime_now('%d %b %Y') }}{{ thinking | default(true) }}"""
    text = "<s>[user]Größe & <b>?![assistant]42![user]Sure?!"
    assert render(source) == text + "[assistant]09 Mar 2025True"
    assert render(source, prompt=False, thinking=False) == text + "09 Mar 2025False"
    with_tools = render(source, tools=[TOOL])
    assert '"parameters": {"city": "größe"}}}' in with_tools
    assert '\n "type": "function"' in with_tools


def test_blocks_leave_no_lines_behind():
    assert render("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"


def test_what_a_template_refuses_is_told_in_its_words():
    source = "{% if messages[0].role != 'user' %}{{ raise_exception('System role!') }}{% endif %}ok"
    with pytest.raises(ArgumentError, match="the model's template refuses: System role!"):
        render(source)
    assert render(source, TALK[1:]) == "ok"


@pytest.mark.parametrize("source", [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append({}) }}",
    "{{ messages[0].update(role='x') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ (messages|attr('__class__')).__name__ }}",
    "{{ 'a' * 10**8 }}", "{{ [1] * 10000000 }}", "{{ 10 ** 10000000 }}", "{{ range(10**9)|list }}",
    "{{ self.__init__.__globals__ }}", "{{ lipsum(10**6) }}", "{{ cycler.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{{ '{0.__class__}'.format(1) }}",
    "{{ undefined.attribute }}", "{{ 1 / 0 }}", "{{ messages['x'] + 1 }}", "{{ none() }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
])  # fmt: skip
def test_templates_stay_in_the_sandbox(source):
    talk = [dict(message) for message in TALK]
    with pytest.raises((ArgumentError, FormatError), match="template"):
        text = render(source, talk)
        assert not text or text == "None", text  # what is out of reach may also be nothing
        raise ArgumentError("the template saw nothing")
    assert talk == TALK


@pytest.mark.parametrize("source", ["{% if %}", "{{ a", "{% for x in y %}", "{% unknown %}",
                                    "{{ a|no_such_filter }}", "{{" + "(" * 5000])  # fmt: skip
def test_a_damaged_template_is_named(source):
    with pytest.raises(FormatError, match="chat template.*damaged"):
        render(source)


@pytest.mark.parametrize("messages, wanted", [
    ("Hi", "messages are str"), ({"role": "user"}, "messages are dict"), (None, "NoneType"),
    ([{"content": "x"}], "message 0 is {'content'"), (TALK[:1] + ["x"], "message 1 is 'x'"),
])  # fmt: skip
def test_messages_are_checked(messages, wanted):
    with pytest.raises(ArgumentError, match=wanted):
        render("{{ messages }}", messages)


def tokenizer_with(**templates):
    letters = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
               "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.merges": []}  # fmt: skip
    keys = {"default": "tokenizer.chat_template"}
    named = {keys.get(k, f"tokenizer.chat_template.{k}"): v for k, v in templates.items()}
    return Tokenizer.from_gguf(gguf.GGUF(gguf.Metadata({**letters, **named}), {}))


def test_a_model_may_have_none_or_many():
    with pytest.raises(ArgumentError, match="no template 'default' .it has none."):
        tokenizer_with().chat(TALK)
    many = tokenizer_with(default="plain", tool_use="tools", rag="documents")
    assert many.chat(TALK) == "plain" and many.chat(TALK, [TOOL]) == "tools"
    assert many.chat(TALK, template="rag") == "documents"
    with pytest.raises(ArgumentError, match="'other' .*default.*rag"):
        many.chat(TALK, template="other")
    with pytest.raises(FormatError, match="chat_template is int"):
        tokenizer_with(default=7)
