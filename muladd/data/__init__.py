"""The data shipped with muladd: handwritten digits and a novel. Sources: README.md beside this."""
from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Digits:
    """Images (N, 28, 28) and labels (N,), one byte each; pixel 0 is paper and 255 is ink."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def digits() -> Digits:
    """4,200 handwritten digits to learn from and 800 to be tested on (a part of MNIST)."""
    with np.load(_FOLDER / "digits.npz", allow_pickle=False) as archive:
        return Digits(**{name: archive[name] for name in archive.files})


def shifted(images: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    """Each image moved by up to `most` pixels each way, at random; what enters is 0.

    Moves bytes only: a cheap way to see more digits than there are.
    """
    n, height, width = images.shape
    padded = np.pad(images, ((0, 0), (most, most), (most, most)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    down, right = random.integers(0, 2 * most + 1, (2, n))
    return windows[np.arange(n), down, right]


def novel() -> str:
    """Jane Austen's Persuasion (1817), 467 kB of English."""
    return gzip.decompress((_FOLDER / "persuasion.txt.gz").read_bytes()).decode()
