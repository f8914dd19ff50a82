"""What a model's files hold, whichever format they have: the one place that chooses the reader."""
from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from muladd.formats import gguf
from muladd.llm import hub, hugging_face, sources
from muladd.llm.model import Config
from muladd.llm.tokenizer import Tokenizer
from muladd.llm.weights import Stored


class Opened(NamedTuple):
    """What a model's files hold: weights by name, not yet read; `file` where it is a GGUF file."""

    config: Config
    tensors: dict[str, Stored]
    tokenizer: Tokenizer | None
    file: gguf.GGUF | None


def opened(path: str | os.PathLike[str]) -> Opened:
    """A GGUF file, or a folder with config.json and safetensors; hub:OWNER/NAME/FILE is downloaded
    if it is not there. Raises as `load` and `hub.download` do."""
    path = hub.located(path)
    if Path(path).is_dir():
        config, tensors = hugging_face.from_folder(path)
        has = (Path(path) / "tokenizer.json").exists()
        return Opened(config, tensors, Tokenizer.from_file(path) if has else None, None)
    config, tensors, file = sources.from_gguf(path)
    has = "tokenizer.ggml.model" in file.metadata
    return Opened(config, tensors, Tokenizer.from_gguf(file) if has else None, file)
