"""What a constraint lets through is JSON that its schema finds valid; what it cannot do it says."""
from __future__ import annotations

import json
import random
import re
import threading
import time

import jsonschema
import numpy as np
import pytest
from support.small_llama import write_speaking

from muladd import llm
from muladd.errors import ArgumentError
from muladd.formats import gguf
from muladd.llm import keywords
from muladd.llm import schema as schemas
from muladd.llm.constrain import Constraint, TokenTree, _alphabet, json_constraint
from muladd.llm.expressions import Expressions
from muladd.llm.tokenizer import Tokenizer

WORDS = ['{"', '":', '": ', '",', '", ', '"}', '"]', "[]", "{}", "true", "null", "false", "],",
         "},", "ab", "abc", "12", "0.5", "-1", "000", "\n  ", "    ", "é", "日本", "𝄞", '"a', "\\n",
         "\\u00", "2024", "-01-", "T10:", "00Z", "@x.", "e+", "/", "x" * 9]  # fmt: skip
PIECES = [bytes([b]) for b in range(256)] + [w.encode() for w in WORDS] + [b"", None]
END = len(PIECES) - 1
TREE = TokenTree(PIECES)
CLOSING = np.array([2.5 if p and p[-1:] in b'"}]' else 0.0 for p in PIECES])
CLOSING[END] = 4.0
CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER


def made(schema, tree=TREE):
    make = Expressions()
    return Constraint(schemas.expression(schema, make), make, tree, [END])


def drawn(constraint, chance, most=400):
    """The text of random tokens, and whether it came to an end."""
    state, text = constraint.start(), b""
    for _ in range(most):
        if state.finished:
            break
        allowed = state.allowed()
        assert allowed.any(), text
        scores = np.where(allowed, chance.gumbel(size=len(PIECES)) + CLOSING, -np.inf)
        token = int(scores.argmax())
        complete, state = state.complete, state.advance(token)
        if token == END:
            assert complete
            break
        text += PIECES[token]
    return text, state.finished


def check(schema, count=12, seed=0):
    constraint, chance, ended = made(schema), np.random.default_rng(seed), 0
    for _ in range(count):
        text, complete = drawn(constraint, chance)
        if complete:
            ended += 1
            value = json.loads(text)
            jsonschema.Draft202012Validator(schema, format_checker=CHECKER).validate(value)
            json.dumps(value, allow_nan=False)
    return ended


def accepts(constraint, text):
    """Whether a text can be written, byte by byte, and be complete."""
    state = constraint.start()
    for byte in text.encode():
        if not state.allowed()[byte]:
            return False
        state = state.advance(byte)
    return state.complete


ADDRESS = {"type": "object", "required": ["city"], "additionalProperties": False, "properties": {
    "city": {"type": "string", "minLength": 1, "maxLength": 8}, "zip": {"type": "integer"}}}
TABLE = {
    "everything": True,
    "text": {"type": "string"},
    "short": {"type": "string", "minLength": 2, "maxLength": 5},
    "pattern": {"type": "string", "pattern": r"^[a-c]{2,4}(-\d+)?$"},
    "found": {"type": "string", "pattern": "a+b|c$", "maxLength": 12},
    "not word": {"type": "string", "pattern": r"^\W[^a-zé]\S\D.$"},
    "length and pattern": {"type": "string", "pattern": "^(ab|c)*$", "minLength": 5},
    **{f: {"type": "string", "format": f} for f in keywords.FORMATS},
    "date and pattern": {"type": "string", "format": "date", "pattern": "^20"},
    "enum": {"enum": ["a", "b\n\"", 1, 2.5, None, True, {"k": [1]}, "日"]},
    "enum of a type": {"enum": ["a", 1, 2, None], "type": ["integer", "null"], "minimum": 2},
    "const": {"const": {"a": [1, {"b": "c"}], "d": {}}},
    "integer": {"type": "integer"},
    "from 7 to 1205": {"type": "integer", "minimum": 7, "maximum": 1205},
    "negative": {"type": "integer", "exclusiveMinimum": -120, "exclusiveMaximum": -7},
    "around zero": {"type": "integer", "minimum": -3, "maximum": 12},
    "large": {"type": "integer", "minimum": 10**20},
    "above a double": {"type": "integer", "exclusiveMinimum": 1e30, "maximum": 1e31},
    "below": {"type": "integer", "maximum": -(10**16)},
    "sevens": {"type": "integer", "minimum": 20, "maximum": 3000, "multipleOf": 7},
    "number": {"type": "number"},
    "unit": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "odd bounds": {"type": "number", "exclusiveMinimum": -0.125, "maximum": 17.305},
    "above": {"type": "number", "exclusiveMinimum": 2.5},
    "at most": {"type": "number", "maximum": -1e-7},
    "one number": {"type": "number", "minimum": 0.25, "maximum": 0.25},
    "whole": {"type": "number", "multipleOf": 5, "minimum": 1},
    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "no items": {"type": "array", "maxItems": 0},
    "tuple": {"type": "array", "prefixItems": [{"type": "null"}, {"const": "x"}], "minItems": 1,
              "items": {"type": "integer", "maximum": 3, "minimum": 0}, "maxItems": 5},
    "pair": {"prefixItems": [{"type": "null"}, {"type": "null"}], "items": False, "minItems": 2},
    "object": ADDRESS,
    "any object": {"type": "object"},
    "open": {"type": "object", "properties": {"a": {"type": "null"}, "\"q": {"type": "null"}},
             "additionalProperties": {"type": "integer"}, "required": ["a"], "maxProperties": 4},
    "unnamed but required": {"type": "object", "required": ["k"]},
    "optional ones": {"type": "object", "properties": {
        k: {"type": "integer", "minimum": 0, "maximum": 9} for k in "abcdef"}, "required": ["c"]},
    "any of": {"anyOf": [ADDRESS, {"type": "integer", "minimum": 5, "maximum": 6}]},
    "one of types": {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "null"}, ADDRESS]},
    "one of kinds": {"type": "object", "required": ["kind"], "oneOf": [
        {"properties": {"kind": {"const": "dot"}, "x": {"type": "integer"}}, "required": ["x"],
         "type": "object"},
        {"properties": {"kind": {"enum": ["a", "b"]}, "r": {"type": "null"}}, "type": "object"}]},
    "all of": {"allOf": [{"$ref": "#/$defs/address"}, {"properties": {"city": {"minLength": 3}}},
                         {"required": ["zip"]}], "$defs": {"address": ADDRESS}},
    "all of numbers": {"allOf": [{"type": ["integer", "null"], "minimum": 3}, {"type": "number"},
                                 {"minimum": 5, "maximum": 9}]},
    "tree": {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
        "value": {"type": "integer", "minimum": 0, "maximum": 9},
        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}},
        "required": ["value"], "additionalProperties": False}}},
    "chain": {"$ref": "#/$defs/link", "$defs": {"link": {"type": "object", "properties": {
        "v": {"type": "integer", "minimum": 0, "maximum": 9},
        "next": {"anyOf": [{"$ref": "#/$defs/link"}, {"type": "null"}], "default": None}},
        "required": ["v", "next"]}}},
    "one of a chain": {"$ref": "#/$defs/link", "$defs": {"link": {"type": "object", "properties": {
        "next": {"oneOf": [{"$ref": "#/$defs/link"}, {"type": "null"}]}}, "required": ["next"]}}},
    "list of lists": {"type": "array", "items": {"$ref": "#"}},
    "nullable": {"type": ["string", "null"], "maxLength": 2},
    "no type": {"minimum": 3, "maxLength": 4},
    "names with dots": {"type": "object", "properties": {
        "a.b": {"$ref": "#/$defs/a~1b%25", "maximum": 3}, "a": {"properties": {
            "b": {"$ref": "#/$defs/a~1b%25", "maximum": 9}}}},
        "$defs": {"a/b%": {"type": "integer", "minimum": 2}}},
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_what_comes_out_is_valid(name):
    assert check(TABLE[name]) >= 3


def random_schema(chance, depth=3):
    """Schemas in which much can be asked for at a time."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum"]
    kind = chance.choice(kinds + (["object", "array", "anyOf"] * 2 if depth else []))
    if kind == "enum":
        return {"enum": chance.sample(["x", "yy", 1, 2.5, None, True, [], {"a": 1}], 3)}
    if kind == "anyOf":
        return {"anyOf": [random_schema(chance, depth - 1) for _ in range(chance.randint(1, 3))]}
    found = {"type": kind}
    if kind == "string" and chance.random() < 0.6:
        low = chance.randint(0, 4)
        found |= {"minLength": low, "maxLength": low + chance.randint(0, 5)}
        if chance.random() < 0.4:
            found["pattern"] = chance.choice(["^[a-z]*$", "a", "^x?", r"\d|[^b]$", "^.*[é日]?"])
    if kind in ("integer", "number") and chance.random() < 0.7:
        low = chance.choice([chance.randint(-200, 200), round(chance.uniform(-9, 9), 3)])
        found[chance.choice(["minimum", "exclusiveMinimum"])] = low
        found[chance.choice(["maximum", "exclusiveMaximum"])] = low + chance.randint(2, 300)
    if kind == "object":
        names = chance.sample(["a", "bb", "c d", 'e"', "é", "f"], chance.randint(0, 4))
        found["properties"] = {n: random_schema(chance, depth - 1) for n in names}
        found["required"] = [n for n in names if chance.random() < 0.5]
        if chance.random() < 0.4:
            found["additionalProperties"] = chance.choice([True, False, {"type": "null"}])
    if kind == "array":
        low = chance.randint(0, 2)
        found |= {"items": random_schema(chance, depth - 1), "minItems": low,
                  "maxItems": low + chance.randint(0, 2)}  # fmt: skip
    return found


def test_random_schemas():
    ended = sum(check(random_schema(random.Random(seed)), 4, seed) for seed in range(150))
    assert ended > 450


def test_json_itself():
    """Any object, which is how `json=True` asks."""
    make = Expressions()
    constraint = Constraint(schemas.any_object(make), make, TREE, [END])
    chance, ended = np.random.default_rng(0), 0
    for _ in range(40):
        text, complete = drawn(constraint, chance)
        if complete:
            ended += 1
            assert isinstance(json.loads(text), dict)
    assert ended > 20


def test_what_people_write_is_accepted():
    constraint = made(TABLE["tree"])
    for text, wanted in (
        ('{"value": 3}', True),
        ('{\n  "value": 3,\n  "children": [\n    {"value":1}\n  ]\n}', True),
        ('{"children": [], "value": 3}', False),  # another order
        ('{"value": 3, "other": 1}', False),
        ('{"value": 3', False),
    ):
        assert accepts(constraint, text) == wanted, text
    assert accepts(made({"type": "string"}), '"é日𝄞\\n\\"\\\\\\u0001"')
    for text in ('"\\u00e9"', '"\n"', '"\\ud800"'):  # written otherwise, not at all, no character
        assert not accepts(made({"type": "string"}), text)
    open_one = made(TABLE["open"])
    assert accepts(open_one, '{"a":null,"b":1}') and accepts(open_one, '{"a": null, "aa": 1}')
    assert not accepts(open_one, '{"a":null,"a":1}')  # a's own schema asks for null


@pytest.mark.parametrize("bounds", [(-37, 205), (0, 9), (10, 10), (-9, -9), (99, 1001)])
def test_bounds_are_exact(bounds):
    low, high = bounds
    constraint = made({"type": "integer", "minimum": low, "maximum": high})
    found = [n for n in range(low - 30, high + 30) if accepts(constraint, str(n))]
    assert found == list(range(low, high + 1))
    tenths = made({"type": "number", "minimum": low / 10, "exclusiveMaximum": high / 10 + 0.1})
    found = [n for n in range(low - 30, high + 30) if accepts(tenths, repr(n / 10))]
    assert found == list(range(low, high + 1))


def test_patterns_mean_what_re_means():
    """Strings of a small alphabet: those that `re` finds are those that can be written."""
    some = [""]
    for _ in range(4):
        some += [s + c for s in some[-(4 ** (len(some[-1]))) :] for c in "ab1-"]
    for source in ("^a*b?$", "ab|^1", "(a|b1)+$", "^[^a-]+$", r"\d{2}", r"^\w\W", "^(?:a|){2}-$",
                   r"^\x61[\-1]*", "^.{1,3}?$", "(?<name>ab?)1", "", "a{0}b"):  # fmt: skip
        constraint = made({"type": "string", "pattern": source})
        expected = source.replace("(?<", "(?P<")
        for text in some[:180]:
            wanted = re.search(expected, text) is not None
            assert accepts(constraint, f'"{text}"') == wanted, (source, text)


REFUSED = [
    (3, "is int; expected a schema"),
    ({"type": "strin"}, "type is 'strin'; expected object"),
    ({"minLenght": 3}, "'minLenght' is not supported"),
    ({"not": {}}, "'not' is not supported"),
    ({"type": "object", "properties": {"a": {"if": {}}}}, r"\$.a: 'if' is not supported"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "items": [{}]}, "write prefixItems"),
    ({"type": "object", "properties": []}, r"properties is \[\]"),
    ({"type": "object", "required": "a"}, "required is 'a'"),
    ({"type": "object", "minProperties": 1}, "minProperties is 1"),
    ({"enum": 3}, "enum is 3; expected a list"),
    ({"type": "object", "additionalProperties": None}, "additionalProperties is None; expected a"),
    ({"type": "object", "required": [3]}, "required has 3; expected a list of names"),
    ({"type": [{}]}, r"type is \{\}; expected object"),
    ({"type": "string", "maxLength": True}, "maxLength is True; expected a whole number"),
    ({"type": "array", "minItems": 2, "maxItems": 1}, "no value satisfies it"),
    ({"properties": {"a": {"$ref": "#/$defs/b", "nt": 1}}, "$defs": {"b": {}}}, "'nt' is not"),
    ({"properties": {"a": {"$ref": "#/$defs/b", "maximum": 3}}, "$defs": {"b": {"multipleOf": 0}}},
     r"\$.a: multipleOf is 0"),
    ({"enum": []}, "no value satisfies it"),
    ({"anyOf": []}, "expected a list of schemas"),
    ({"const": float("inf")}, "cannot be written as JSON"),
    ({"type": "string", "minLength": -1}, "minLength is -1"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "no value satisfies it"),
    ({"type": "string", "pattern": "^ab$", "minLength": 3}, "no value satisfies it"),
    ({"type": "string", "pattern": "(a"}, "a '\\(' is not closed"),
    ({"type": "string", "pattern": "a)"}, "closes nothing"),
    ({"type": "string", "pattern": "(?=a)"}, "only groups"),
    ({"type": "string", "pattern": r"(a)\1"}, "is not understood"),
    ({"type": "string", "pattern": "a^b"}, "at the beginning of the pattern"),
    ({"type": "string", "pattern": "[b-a]"}, "a range"),
    ({"type": "string", "pattern": "a{99999}"}, "more than 10000 times"),
    ({"type": "string", "pattern": "a**"}, "put it into a group"),
    ({"type": "string", "pattern": "*a"}, "repeats nothing"),
    ({"type": "string", "pattern": "[a"}, "is not closed"),
    ({"type": "string", "pattern": "\\"}, "is not understood"),
    ({"type": "string", "pattern": "(" * 99}, "nest deeper"),
    ({"type": "string", "pattern": 3}, "pattern is 3; expected text"),
    ({"type": "string", "format": "duration"}, "format 'duration' is not supported"),
    ({"type": "integer", "minimum": "3"}, "minimum is '3'; expected a number"),
    ({"type": "integer", "minimum": 3, "exclusiveMaximum": 3}, "no value satisfies it"),
    ({"type": "number", "multipleOf": 0.1}, "multipleOf is 0.1"),
    ({"type": "integer", "maximum": 10**900}, "more than 400 digits"),
    ({"$ref": "other.json"}, "a place in this schema"),
    ({"$ref": "#/$defs/a"}, "there is no 'a'|there is no '\\$defs'"),
    ({"$ref": "#"}, "no value satisfies it"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"nt": 1}}},
     "#/\\$defs/b: 'nt' is not supported"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no value"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "may hold for one value"),
    ({"oneOf": [{"type": "object"}, ADDRESS]}, "may hold for one value"),
    ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "pattern is asked for twice"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "no value satisfies it"),
]  # fmt: skip


@pytest.mark.parametrize("schema, words", REFUSED)
def test_what_is_not_supported_is_refused(schema, words):
    with pytest.raises(ArgumentError, match=words):
        made(schema)


def test_schemas_that_nest_without_end():
    deep: dict = {}
    for _ in range(3000):
        deep = {"items": deep, "type": "array"}
    with pytest.raises(ArgumentError, match="nests deeper than 64"):
        made(deep)
    with pytest.raises(ArgumentError, match="circle|deeper"):
        made({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {}]}}})


def test_misuse_of_states():
    state = made({"const": "a"}).start()
    with pytest.raises(ArgumentError, match="not allowed here"):
        state.advance(ord("a"))
    with pytest.raises(ArgumentError, match="not allowed here"):
        state.advance(END)
    with pytest.raises(ArgumentError, match="not allowed here"):
        state.advance(END - 1)  # a token of no bytes
    with pytest.raises(ArgumentError, match="is no id"):
        state.advance(len(PIECES))
    for c in '"a"':
        assert not state.complete
        state = state.advance(ord(c))
    assert state.complete and state.finished and np.flatnonzero(state.allowed()).tolist() == [END]
    over = state.advance(END)
    assert over.finished and not over.allowed().any()


def test_a_vocabulary_without_all_bytes_writes_what_it_can():
    pieces = [c.encode() for c in '{}[]":,0123456789.-+eEtrufalsn xyzé'] + [b"xyz", None]
    assert _alphabet(pieces) != _alphabet(PIECES)
    make = Expressions()
    text = schemas.expression({"type": "array", "items": {"type": "string"}, "minItems": 3,
                               "maxItems": 9}, make, _alphabet(pieces))  # fmt: skip
    constraint = Constraint(text, make, TokenTree(pieces), [len(pieces) - 1])
    chance = np.random.default_rng(0)
    for _ in range(20):
        state, said = constraint.start(), b""
        while not state.finished and len(said) < 500:
            token = int(chance.choice(np.flatnonzero(state.allowed())))
            state, said = state.advance(token), said + (pieces[token] or b"")
        assert not state.finished or len(json.loads(said)) >= 3


def test_counts_that_no_token_ends_are_one_mask():
    constraint = made({"type": "string", "maxLength": 2000, "minLength": 900})
    state = constraint.start().advance(ord('"'))
    for _ in range(1500):
        assert state.allowed()[ord("a")]
        state = state.advance(ord("a"))
    assert len(constraint._masks) < 40
    left = [state := state.advance(ord("a")) for _ in range(500)][-1]
    assert np.flatnonzero(left.allowed()).tolist() == [ord('"'), PIECES.index(b'",')][:1]


@pytest.mark.parametrize("schema", [
    {"type": "string", "pattern": "^((a{0,1000}){0,1000}){0,1000}$"},
    {"type": "string", "pattern": "(.*a){50}"},
    {"type": "string", "pattern": "^(a|b)*a(a|b){60}$"},
    {"type": "string", "pattern": "^([a-z]|b)*a.{200}$", "maxLength": 1000},
    {"type": "integer", "multipleOf": 9973, "minimum": 10**12, "maximum": 10**13},
    {"enum": [f"{i} words" for i in range(3000)]},
    {"type": "object", "properties": {f"k{i}": {"type": "integer"} for i in range(300)}},
    {"type": "object", "properties": {f"k{i}": {"type": "integer"} for i in range(600)}},
])  # fmt: skip
def test_intricate_schemas_do_not_explode(schema):
    """Whose naive automata have more states than would be visited in a lifetime."""
    start = time.thread_time()
    try:
        drawn(made(schema), np.random.default_rng(0), 20)
    except ArgumentError as error:
        assert "no value" in str(error) or "at most" in str(error)
    assert time.thread_time() - start < 60  # a slow machine takes 6 s, an explosion hours


def test_a_space_that_is_dropped_at_the_beginning():
    """SentencePiece's first token may begin with a space that is no part of the text."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581", "\u2581{",
             '{"', '":', "\u2581\u2581", "\u2581[", "ab", '"', "[", "]", "}", ",", "1"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(names) - 259)]
    tokenizer = Tokenizer.from_gguf(gguf.GGUF(gguf.Metadata({
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.scores": np.zeros(len(names), np.float32)}), {}))  # fmt: skip
    assert tokenizer.space_prefix
    schema = {"anyOf": [{"type": "array", "items": {"enum": ["ab", 1]}, "maxItems": 3}, ADDRESS]}
    chance, spaced = np.random.default_rng(0), 0
    for _ in range(60):
        state, ids = json_constraint(tokenizer, schema).start(), []
        while not state.finished and len(ids) < 200:
            token = int(chance.choice(np.flatnonzero(state.allowed())))
            ids, state = [*ids, token], state.advance(token)
        spaced += names[ids[0]].startswith("\u2581")
        if state.finished:
            jsonschema.validate(json.loads(tokenizer.decode(ids)), schema)
            assert tokenizer.decode(ids)[0] in "[{"
    assert spaced > 5


def test_many_threads_use_one_constraint():
    constraint, wrong = made(TABLE["tree"]), []

    def run(seed):
        text, complete = drawn(constraint, np.random.default_rng(seed), 60)
        if complete and "value" not in json.loads(text):
            wrong.append(text)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- the real vocabulary and model ---------------------------------------------------------------


def test_a_step_is_quick_once_a_state_was_met(smollm):
    tokenizer = Tokenizer.from_gguf(smollm)
    constraint = json_constraint(tokenizer, TABLE["tree"])
    assert constraint is json_constraint(tokenizer, TABLE["tree"])
    ids = tokenizer.encode('{"value": 3, "children": [{"value": 4}]}')
    for _ in range(2):
        state, start = constraint.start(), time.thread_time()
        for token in ids:
            assert state.allowed()[token]
            state = state.advance(token)
        each = (time.thread_time() - start) / len(ids)
    assert state.complete and each < 1e-3
    assert state.allowed()[list(tokenizer.stops)].all()


@pytest.mark.slow
def test_a_model_answers_in_json(smollm):
    model = llm.load(smollm, context=256)
    asked = [{"role": "user", "content": "Describe a cat named Tom as JSON."}]
    schema = {"type": "object", "additionalProperties": False, "required": ["name", "age", "color"],
              "properties": {"name": {"type": "string", "maxLength": 12},
                             "age": {"type": "integer", "minimum": 1, "maximum": 20},
                             "color": {"enum": ["black", "white", "red"]}}}  # fmt: skip
    for how in ({}, {"temperature": 1.5, "seed": 1}):
        pieces = list(model.chat(asked, json_schema=schema, max_tokens=60, **how))
        value = json.loads("".join(p.text for p in pieces))
        jsonschema.validate(value, schema)
        assert pieces[-1].finish == "stop"
    found = model.complete("A cat: ", json=True, max_tokens=40, temperature=0.7, seed=2)
    assert found.startswith("{")
    flag = list(model.generate("Is water wet? ", json_schema={"type": "boolean"}))
    assert "".join(p.text for p in flag) in ("true", "false") and flag[-1].finish == "stop"


def test_options(tmp_path):
    model = llm.load(write_speaking(tmp_path / "m.gguf"))
    for seed in range(3):
        found = list(model.generate("A: ", json_schema=TABLE["optional ones"], temperature=1.0,
                                    seed=seed))  # fmt: skip
        assert json.loads("".join(p.text for p in found))["c"] < 10 and found[-1].finish == "stop"
    assert model.complete("A: ", json=True, max_tokens=9).startswith("{")
    for given, words in (
        ({"json_schema": {"type": "magic"}}, "type is 'magic'"),
        ({"json_schema": {}, "json": True}, "give one of"),
        ({"json": "yes"}, "json is 'yes'; expected True or False"),
        ({"constraint": 3}, "constraint is 3"),
        ({"constraint": made({})}, "tokens, and the model has 258"),
    ):
        with pytest.raises(ArgumentError, match=words):
            model.generate("hi", **given)
