"""`muladd embed MODEL [TEXT...]`: vectors of texts, or which are most like another."""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from muladd.errors import ArgumentError
from muladd.llm.embeddings import EmbeddingModel, load
from muladd.options import command, lines


def main(arguments: Sequence[str]) -> int:
    """`muladd embed`; gives the exit code."""
    given = _parser().parse_args(arguments)
    texts = given.text or list(lines())
    if not texts:
        raise ArgumentError("embed: no texts; give some, or lines on standard input")
    model = load(given.model)
    found = model.read(texts)
    if given.query is not None:
        alike = _cosines(model, given.query, found.vectors)
        order = np.argsort(-alike, kind="stable")
        if not given.json:
            for i in order.tolist():
                print(f"{alike[i]:7.4f}  {texts[i]}")
            return 0
        told: dict[str, Any] = {"order": order.tolist(), "cosines": alike.tolist()}
    else:
        told = {"embeddings": found.vectors.tolist()}
        if not given.json:
            for vector in told["embeddings"]:
                print(json.dumps(vector))
            return 0
    print(json.dumps({**told, "tokens": found.tokens}))
    return 0


def _cosines(model: EmbeddingModel, query: str, vectors: np.ndarray) -> np.ndarray:
    one = model.embed(query)
    norms = np.sqrt(np.square(vectors).sum(-1) * np.square(one).sum())
    return (vectors * one).sum(-1) / np.maximum(norms, 1e-12)


def _parser() -> argparse.ArgumentParser:
    parser = command(
        "embed", "Vectors of texts, whose cosine says how alike they are.",
        "examples:\n  muladd embed folder 'A cat sat.' 'A dog ran.'   one JSON list a text\n"
        "  muladd embed folder --query 'pets' < lines.txt    lines in order of likeness",
    )  # fmt: skip
    parser.add_argument("model", help="a folder as sentence-transformers saves it, or "
                        "hub:OWNER/NAME")
    parser.add_argument("text", nargs="*", help="texts (default: the lines of standard input)")
    parser.add_argument("--query", default=None, help="say how alike each text is to this one")
    return parser
