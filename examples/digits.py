"""Handwritten digits in a few lines: data, network, compiled step, test."""
from __future__ import annotations

import argparse

import numpy as np

from muladd import Tensor, data, jit, nn
from muladd.tensor import no_grad


def network() -> nn.Sequential:
    """(batch, 1, 28, 28) to (batch, 10) scores."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 7 * 7, 10),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=50)
    given = parser.parse_args()

    digits, random = data.digits(), np.random.default_rng(0)
    model = network()
    optimizer = nn.optim.AdamW(model.parameters(), lr=3e-3)

    def scores(images: Tensor) -> Tensor:
        return model(images.cast("float32").unsqueeze(1) / 255)

    @jit
    def step(images: Tensor, labels: Tensor) -> Tensor:
        loss = scores(images).cross_entropy(labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    for epoch in range(given.epochs):
        losses = []
        order = random.permutation(len(digits.train_labels))
        for chosen in order[: len(order) // given.batch * given.batch].reshape(-1, given.batch):
            images, labels = digits.train_images[chosen], digits.train_labels[chosen]
            losses.append(step(Tensor(images), Tensor(labels.astype(np.int64))).item())
        with no_grad():
            named = scores(Tensor(digits.test_images)).argmax(-1).numpy()
        accuracy = (named == digits.test_labels).mean()
        print(f"epoch {epoch + 1}  loss {np.mean(losses):.4f}  test accuracy {accuracy:.2%}")


if __name__ == "__main__":
    main()
