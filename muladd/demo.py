"""`muladd demo`: train a small convolutional network on real handwritten digits, in seconds.

It reads as a newcomer's own training script would: data, network, step, loop, test.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from muladd import compile as compiler
from muladd import data, jit, nn
from muladd.formats import safetensors
from muladd.progress import Bar
from muladd.tensor import Tensor, no_grad

EPOCHS, BATCH, PEAK_RATE = 10, 100, 1e-2  # 4,200 digits are 42 whole batches
PASSING = 0.975


class DigitNet(nn.Module):
    """(batch, 28, 28) bytes to (batch, 10) scores, through three convolutions; 8,962 parameters."""

    def __init__(self) -> None:
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 3 * 3, 10),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images.cast("float32").unsqueeze(1) / 255)


def batches(
    digits: data.Digits, size: int, random: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the training digits in random order, each moved by up to two pixels."""
    order = random.permutation(len(digits.train_labels))
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        images = data.shifted(digits.train_images[chosen], 2, random)
        yield Tensor(images), Tensor(digits.train_labels[chosen].astype(np.int64))


def test_accuracy(model: DigitNet, digits: data.Digits) -> float:
    """The part of the test digits that the network names correctly."""
    model.eval()
    with no_grad():
        named = model(Tensor(digits.test_images)).argmax(-1)
        correct = (named == Tensor(digits.test_labels.astype(np.int64))).sum().item()
    model.train()
    return correct / len(digits.test_labels)


def run(
    output: Path, epochs: int | None = None, seed: int = 0, quiet: bool = False
) -> dict[str, Any]:
    """Train, test and save; returns the figures. Prints as it goes unless quiet."""
    started = time.perf_counter()
    epochs = epochs or EPOCHS
    digits, random = data.digits(), np.random.default_rng(seed)
    Tensor.manual_seed(seed)
    model = DigitNet()
    steps = epochs * (len(digits.train_labels) // BATCH)
    rate = nn.schedule.one_cycle(PEAK_RATE, steps, up=0.2)
    optimizer = nn.optim.AdamW(model.parameters(), lr=rate)

    @jit
    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        scores = model(images)
        loss = scores.cross_entropy(labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach(), (scores.argmax(-1) == labels).sum()

    bar = Progress(steps, sys.stderr if quiet else sys.stdout)
    with compiler.profile() as kernels:
        for _ in range(epochs):
            for images, labels in batches(digits, BATCH, random):
                loss, correct = step(images, labels)
                bar.advance(loss, correct, BATCH)
        trained = bar.seconds
        accuracy = test_accuracy(model, digits)
    safetensors.save(model.state_dict(), output, {"format": "muladd", "network": "DigitNet"})
    seconds = time.perf_counter() - started
    passed = accuracy >= PASSING or epochs < EPOCHS
    if not quiet:
        print(f"\n{kernels.table()}\n")
        print(f"test accuracy  {accuracy:.2%} of {len(digits.test_labels)} digits never seen before"
              + ("" if passed else f", expected at least {PASSING:.1%}"))  # fmt: skip
        print(f"time           {seconds:.1f} s in all, {trained:.1f} s of it training")
        print(f"weights        {output.resolve()}")
    return {
        "accuracy": accuracy, "passed": passed, "seconds": round(seconds, 3), "steps": steps,
        "images_per_second": round(steps * BATCH / trained, 1),
        "parameters": sum(prod(nn.module.static_shape(p)) for p in model.parameters()),
        "weights": str(output.resolve()),
    }  # fmt: skip


class Progress:
    """Steps as they are done, with running averages of their loss and accuracy."""

    def __init__(self, steps: int, out: TextIO) -> None:
        self.steps, self.bar = steps, Bar(out)
        self.done, self.started = 0, time.perf_counter()
        self.loss = self.accuracy = float("nan")

    def advance(self, loss: Tensor, correct: Tensor, images: int) -> None:
        """One step more."""
        self.done += 1
        step_loss, step_accuracy = loss.item(), correct.item() / images
        kept = 0.95 if self.done > 1 else 0.0
        self.loss = kept * self.loss + (1 - kept) * step_loss if kept else step_loss
        self.accuracy = kept * self.accuracy + (1 - kept) * step_accuracy if kept else step_accuracy
        speed = self.done * images / max(time.perf_counter() - self.started, 1e-9)
        self.bar(self.done, self.steps, f"step {self.done}/{self.steps}  loss {self.loss:.3f}  "
                 f"accuracy {self.accuracy:.1%}  {speed:,.0f} images/s")  # fmt: skip

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started
