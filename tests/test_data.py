"""The shipped data is what its notes say."""
from __future__ import annotations

import numpy as np

from muladd import data


def test_digits():
    digits = data.digits()
    assert digits.train_images.shape == (4200, 28, 28) and digits.test_images.shape == (800, 28, 28)
    assert digits.train_images.dtype == np.uint8 == digits.train_labels.dtype
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    assert (np.bincount(labels) == 500).all()
    assert digits.train_images.min() == 0 and digits.train_images.max() == 255


def test_no_digit_is_in_both_parts():
    digits = data.digits()
    train = {image.tobytes() for image in digits.train_images}
    assert not any(image.tobytes() in train for image in digits.test_images)


def test_shifting_moves_and_keeps():
    images = np.zeros((200, 5, 5), np.uint8)
    images[:, 2, 2] = 7
    moved = data.shifted(images, 2, np.random.default_rng(0))
    assert (moved.sum((1, 2)) == 7).all()
    places = {tuple(np.argwhere(image)[0]) for image in moved}
    assert places == {(i, j) for i in range(5) for j in range(5)}


def test_novel():
    text = data.novel()
    assert len(text) == 466_854
    assert len(set(text)) == 75
    assert text.startswith("Persuasion") and "Kellynch Hall" in text


def test_sources_and_licences_are_written_down():
    notes = (data._FOLDER / "README.md").read_text()
    shipped = {p.name for p in data._FOLDER.iterdir() if p.suffix in (".npz", ".gz")}
    assert all(name in notes for name in shipped)
    assert "Licence" in notes and "Source" in notes
