"""Text to ids and back, and conversations to text, as a model's file says."""
from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from muladd.errors import ArgumentError, FormatError
from muladd.formats import gguf
from muladd.formats.checkpoint import read_json
from muladd.llm import tokenizer_gguf, tokenizer_json
from muladd.llm.extras import wanted
from muladd.llm.stream import Stream, text_of
from muladd.llm.template import Message, Template
from muladd.llm.vocabulary import Vocabulary

# Tokens after which a model has nothing more to say, in files that do not mark them so.
STOPS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<turn|>",
    "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<end_of_utterance>", "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip
_LETTERS = 16  # characters that few texts have so many of in a token


class Tokenizer:
    """A model's vocabulary and chat template.

    `bos`, `eos`, ... are ids or None; `stops` are the ids after which a model has finished.
    """

    def __init__(
        self, found: Vocabulary, template: str | None = None,
        templates: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._vocabulary = found
        first = {} if template is None else {"default": template}
        self._sources = {**first, **(templates or {})}
        self._templates: dict[str, Template] = {}
        marks = found.marks
        self.bos, self.eos, self.unk = marks.get("bos"), marks.get("eos"), marks.get("unk")
        self.pad, self.sep = marks.get("pad"), marks.get("sep")
        named = [self.id(name) for name in STOPS]
        ends = [marks.get(mark) for mark in ("eos", "eot", "eom")]
        self.stops: frozenset[int] = frozenset(i for i in (*named, *ends) if i is not None)

    # --- from files -------------------------------------------------------------------------------

    @classmethod
    def from_gguf(cls, given: gguf.GGUF | str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer in a GGUF file (a path, or the file as `gguf.load` gives it).

        Raises FormatError naming the key that is missing or wrong, MissingPackage without the
        packages of the extra `llm`.
        """
        if not isinstance(given, gguf.GGUF):
            try:
                return cls.from_gguf(gguf.load(given))
            except FormatError as error:
                where = os.fspath(given)
                raise FormatError(
                    str(error) if where in str(error) else f"{where}: {error}"
                ) from None
        model = given
        templates = {
            key.removeprefix("tokenizer.chat_template."): value
            for key, value in model.metadata.items()
            if key.startswith("tokenizer.chat_template.") and isinstance(value, str)
        }
        template = model.metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise FormatError(f"tokenizer: tokenizer.chat_template is {type(template).__name__}; "
                              "expected text")  # fmt: skip
        return cls(tokenizer_gguf.load(model.metadata), template, templates)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer in a tokenizer.json, or in a folder that has one. What stands beside it in
        tokenizer_config.json and chat_template.jinja counts too. Raises FormatError naming the file
        that is missing or damaged, MissingPackage as from_gguf."""
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        beside = file.with_name("tokenizer_config.json")
        settings = read_json(beside, "tokenizer") if beside.exists() else {}
        found = tokenizer_json.load(file, settings)
        templates = tokenizer_json.templates(file, settings)
        return cls(found, templates.pop("default", None), templates)

    # --- text to ids and back ---------------------------------------------------------------------

    def encode(self, text: str, *, marks: bool = True, ends: bool | None = None) -> list[int]:
        """The ids of a text.

        `marks`: names of control tokens in the text (<|im_end|>, ...) become these tokens, as in
        what `chat` gives; False takes them as the letters they are: do so with what strangers
        wrote. `ends`: whether the tokens that the model wants around a text (BOS, EOS, ...) are
        added; None adds them unless the text begins with BOS already. Raises ArgumentError for
        what is not text that has an encoding.
        """
        self._check_text(text)
        engine = self._engine if marks else self._plain
        try:
            ids = self._vocabulary.ids(engine.encode(text, add_special_tokens=False))
        except Exception as error:  # the library's own, over a vocabulary without what it needs
            raise FormatError(f"encode: the vocabulary cannot write this text: {error}") from None
        if ends is None:
            ends = not (marks and ids and self.bos is not None and ids[0] == self.bos)
        return [*self._vocabulary.prefix, *ids, *self._vocabulary.suffix] if ends else ids

    def encode_up_to(self, text: str, most: int) -> tuple[list[int], bool]:
        """(ids, whether these are all of the text's): as `encode`, but a text of far more than
        `most` ids is known by its beginning, which has more than twice as many."""
        size = _LETTERS * most
        ids = self.encode(text[:size])
        while size < len(text) and len(ids) <= 2 * most:
            size *= 4
            ids = self.encode(text[:size])
        return ids, size >= len(text)

    def decode(self, ids: Iterable[int], *, marks: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD. `marks`: control tokens are
        written by name, otherwise left out. Raises IndexingError for what is no id."""
        return text_of(self._vocabulary, ids, marks)

    def stream(self, *, marks: bool = False) -> Stream:
        """What gives text for ids one at a time, each character once it is whole."""
        return Stream(self._vocabulary, marks)

    def id(self, name: str) -> int | None:
        """The id of a token by its name in the file, or None."""
        found = self._engine.token_to_id(name)
        return self._vocabulary.moved.get(found, found) if found is not None else None

    @property
    def pieces(self) -> list[bytes]:
        """By id, the bytes that it stands for inside a text (a control token's name)."""
        return self._vocabulary.pieces

    @property
    def control(self) -> frozenset[int]:
        """Ids that are marks, and no text."""
        return self._vocabulary.control

    @property
    def space_prefix(self) -> bool:
        """Whether a space at the beginning of a text's ids is no part of the text."""
        return self._vocabulary.space_prefix

    def __len__(self) -> int:
        return len(self.pieces)

    def __repr__(self) -> str:
        return f"Tokenizer({len(self)} tokens, bos={self.bos}, eos={self.eos})"

    # --- conversations ----------------------------------------------------------------------------

    def chat(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True, *, template: str = "default", **more: Any,
    ) -> str:  # fmt: skip
        """A conversation as the text that the model was trained on: `encode` it with its marks.

        messages are {'role': 'user', 'content': 'Hi'}, ...; tools are functions described as
        OpenAI's API does; `more` are names that some templates know (enable_thinking=False);
        `template` chooses among several. Raises ArgumentError if there is no template, or if it
        refuses the messages; FormatError if it is damaged.
        """
        if tools and template == "default" and "tool_use" in self._sources:
            template = "tool_use"
        if template not in self._templates:
            if template not in self._sources:
                known = ", ".join(self._sources) or "it has none"
                raise ArgumentError(f"chat: the model has no template {template!r} ({known}); "
                                    "write the prompt yourself, or use another model")  # fmt: skip
            self._templates[template] = Template(self._sources[template], self._names())
        return self._templates[template].render(messages, tools, add_generation_prompt, **more)

    @property
    def knows_tools(self) -> bool:
        """Whether the model's template says anything of tools."""
        return "tool_use" in self._sources or "tools" in self._sources.get("default", "")

    def _names(self) -> dict[str, str]:
        marks = self._vocabulary.marks.items()
        return {"bos_token": "", "eos_token": "",
                **{f"{mark}_token": self.pieces[i].decode("utf-8", "replace") for mark, i in marks}}

    # --- inside -----------------------------------------------------------------------------------

    @property
    def _engine(self) -> Any:
        return self._vocabulary.engine

    @cached_property
    def _plain(self) -> Any:
        """A second engine, to which the names of marks are letters."""
        engine = wanted("tokenizers").Tokenizer.from_str(self._engine.to_str())
        engine.encode_special_tokens = True
        return engine

    def _check_text(self, text: Any) -> None:
        if not isinstance(text, str):
            raise ArgumentError(f"encode: expected text, got {type(text).__name__}")
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ArgumentError(
                    f"encode: character {error.start} is {text[error.start]!a}, half of a "
                    "surrogate pair, which has no encoding; decode the text's source as UTF-16 or "
                    "replace it"
                ) from None
