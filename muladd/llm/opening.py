"""What a model's files hold, whichever format they have: the one place that chooses the reader."""
from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from muladd.formats import checkpoint, gguf
from muladd.llm import hub, hugging_face, sources
from muladd.llm.model import Config
from muladd.llm.tokenizer import Tokenizer
from muladd.llm.weights import Stored


class Opened(NamedTuple):
    """What a model's files hold: weights by name, not yet read; `file` is what lies at the path."""

    path: Path
    config: Config
    tensors: dict[str, Stored]
    tokenizer: Tokenizer | None
    file: gguf.GGUF | checkpoint.Checkpoint


def opened(path: str | os.PathLike[str]) -> Opened:
    """A GGUF file, or a folder with config.json and safetensors; hub:OWNER/NAME/FILE is downloaded
    if it is not there. Raises as `load` and `hub.download` do."""
    here = hub.located(path)
    if here.is_dir():
        config, tensors, folder = hugging_face.from_folder(here)
        has = (here / "tokenizer.json").exists()
        return Opened(here, config, tensors, Tokenizer.from_file(here) if has else None, folder)
    config, tensors, file = sources.from_gguf(here)
    has = "tokenizer.ggml.model" in file.metadata
    return Opened(here, config, tensors, Tokenizer.from_gguf(file) if has else None, file)
