"""`muladd bench embeddings FOLDER`: sentence embeddings beside the model's own runtime."""
from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from muladd import config, data
from muladd.llm.embeddings import EmbeddingModel, load
from muladd.options import command, positive


def main(arguments: Sequence[str]) -> int:
    """`muladd bench embeddings`; gives the exit code."""
    given = _bench_parser().parse_args(arguments)
    out = sys.stderr if given.json else sys.stdout
    with config.threads(given.threads):
        model = load(given.model)
        theirs = _sentence_transformers(given.model, given.threads or config.get("THREADS"))
        rows = [_measured(name, texts, model, theirs, given.repeat)
                for name, texts in _texts(given.count).items()]  # fmt: skip
    for row in rows:
        beside = "" if theirs is None else (
            f"  sentence-transformers {row['theirs_tok_s']:9,.0f}  ratio {row['ratio']:.2f}  "
            f"cosine {row['cosine']:.7f}")  # fmt: skip
        print(f"{row['name']:10} {row['texts']:4} texts {row['tokens']:6} tokens  "
              f"{row['tok_s']:9,.0f} tokens/s{beside}", file=out)  # fmt: skip
    if given.json:
        print(json.dumps({"file": given.model, "threads": given.threads, "rows": rows}))
    return 0


Embed = Callable[[Sequence[str]], np.ndarray]


def _measured(
    name: str, texts: list[str], model: EmbeddingModel, theirs: Embed | None, repeat: int
) -> dict[str, Any]:
    """Both in turn, the median of each, after two runs that compile."""
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for i in range(repeat + 2):
        start = time.perf_counter()
        found = model.read(texts)
        middle = time.perf_counter()
        other = None if theirs is None else theirs(texts)
        if i >= 2:
            times["ours"].append(middle - start)
            times["theirs"].append(time.perf_counter() - middle)
    ours = float(np.median(times["ours"]))
    row = {"name": name, "texts": len(texts), "tokens": found.tokens, "tok_s": found.tokens / ours}
    if other is not None:
        beside = float(np.median(times["theirs"]))
        norms = np.linalg.norm(other, axis=1) * np.linalg.norm(found.vectors, axis=1)
        row |= {"theirs_tok_s": found.tokens / beside, "ratio": beside / ours,
                "cosine": float(((other * found.vectors).sum(1) / norms).min())}  # fmt: skip
    return row


def _texts(count: int) -> dict[str, list[str]]:
    """Sentences of a novel, passages of it, and one sentence by itself."""
    novel = data.novel()
    sentences = [s for s in " ".join(novel[3000:].split()).split(". ") if s]
    passages = [novel[i : i + 3000] for i in range(10000, 10000 + 3000 * max(1, count // 16), 3000)]
    return {"sentences": sentences[:count], "passages": passages, "one": sentences[1:2]}


def _sentence_transformers(folder: str, threads: int) -> Embed | None:
    """The package's own `encode`, if it is installed."""
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    if threads:
        torch.set_num_threads(threads)
    model = SentenceTransformer(folder, device="cpu")
    return lambda texts: np.asarray(model.encode(list(texts), show_progress_bar=False))


def _bench_parser() -> argparse.ArgumentParser:
    parser = command(
        "bench embeddings",
        "Tokens per second of sentence embeddings, beside sentence-transformers where "
        "it is installed.",
    )  # fmt: skip
    parser.add_argument("model", help="a folder as sentence-transformers saves it")
    parser.add_argument("--count", type=positive, default=256, help="sentences")
    parser.add_argument("--repeat", type=positive, default=3, help="runs, whose median counts")
    parser.add_argument("--threads", type=positive, default=0,
                        help="threads of both (default: as the settings say)")  # fmt: skip
    return parser
