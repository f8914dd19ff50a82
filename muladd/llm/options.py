"""Options that several commands of language models have."""
from __future__ import annotations

import argparse
from typing import Any

from muladd.llm.generate import CACHES
from muladd.llm.weights import ARITHMETICS
from muladd.options import positive

_SHARED: dict[str, dict[str, Any]] = {
    "model": {"help": "a GGUF file, a folder with config.json, or hub:OWNER/NAME/FILE"},
    "--adapter": {"metavar": "FOLDER", "help": "a folder that muladd finetune wrote"},
    "--context": {"type": positive, "help": "tokens of a conversation (default: at most 4096)"},
    "--cache": {"choices": CACHES, "help": "dtype of keys and values (default: %(default)s)"},
    "--arithmetic": {
        "choices": ARITHMETICS, "default": "int8",
        "help": "of products with quantised weights: int8 is several times as fast, float32 more "
        "precise (default: %(default)s)",
    },
    "--threads": {
        "type": positive, "default": 0, "help": "threads (default: as the settings say)",
    },
}  # fmt: skip


def share(parser: argparse.ArgumentParser, *names: str, **others: Any) -> None:
    """Give a command options of these names; `others` is what it says otherwise of one."""
    for name in names:
        parser.add_argument(name, **(_SHARED[name] | others))
