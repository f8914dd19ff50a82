"""A GPT over characters: trains on Jane Austen's Persuasion, then writes on its own.

The defaults are small enough for two cores and a few minutes; the usual first GPT is
`--layers 6 --width 384 --heads 6 --time 256`.
"""
from __future__ import annotations

import argparse
import time

import numpy as np

from muladd import Tensor, data, jit, nn
from muladd.tensor import no_grad


class GPT(nn.Module):
    """(batch, time) characters to (batch, time, vocabulary) scores for the next one."""

    def __init__(self, vocabulary: int, time: int, width: int, layers: int, heads: int) -> None:
        self.time = time
        self.characters = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(time, width)
        self.blocks = nn.ModuleList(
            nn.TransformerBlock(width, heads, causal=True) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        x = self.characters(text) + self.places(Tensor.arange(text.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Characters:
    """Text as numbers and back."""

    def __init__(self, text: str) -> None:
        self.alphabet = sorted(set(text))
        self.number = {c: i for i, c in enumerate(self.alphabet)}

    def encode(self, text: str) -> np.ndarray:
        return np.array([self.number[c] for c in text], np.int64)

    def decode(self, numbers: np.ndarray) -> str:
        return "".join(self.alphabet[i] for i in numbers)


def batch(text: np.ndarray, size: int, time: int, random: np.random.Generator) -> Tensor:
    """(size, time + 1) numbers: random pieces of the text."""
    starts = random.integers(0, len(text) - time - 1, size)
    return Tensor(text[starts[:, None] + np.arange(time + 1)])


def write(
    model: GPT, characters: Characters, start: str, count: int, temperature: float,
    random: np.random.Generator,
) -> str:  # fmt: skip
    """`count` characters after `start`, each drawn from what the network expects."""
    text = list(characters.encode(start))
    window = np.zeros((1, model.time), np.int64)

    @jit
    def expect(window: Tensor) -> Tensor:
        return model(window)[0].softmax(-1)

    model.eval()
    for _ in range(count):
        recent = text[-model.time :]
        window[0, : len(recent)] = recent  # what follows cannot be seen: attention is causal
        with no_grad():
            chances = expect(Tensor(window)).numpy()[len(recent) - 1].astype(np.float64)
        chances = chances ** (1 / temperature)
        text.append(int(random.choice(len(chances), p=chances / chances.sum())))
    model.train()
    return characters.decode(np.array(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--time", type=int, default=64, help="characters seen at once")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--write", type=int, default=400, help="characters to write at the end")
    given = parser.parse_args()

    random = np.random.default_rng(0)
    novel = data.novel()
    characters = Characters(novel)
    text = characters.encode(novel)
    learned, held = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    model = GPT(len(characters.alphabet), given.time, given.width, given.layers, given.heads)
    rate = nn.schedule.cosine(given.rate, given.steps, warmup=min(100, given.steps // 10 + 1))
    optimizer = nn.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(text):,} characters")

    def surprise(piece: Tensor) -> Tensor:
        scores = model(piece[:, :-1])
        return scores.flatten(0, 1).cross_entropy(piece[:, 1:].flatten())

    @jit
    def step(piece: Tensor) -> Tensor:
        loss = surprise(piece)
        optimizer.zero_grad()
        loss.backward()
        nn.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    started = time.perf_counter()
    for number in range(given.steps):
        loss = step(batch(learned, given.batch, given.time, random))
        if number % max(given.steps // 20, 1) == 0 or number == given.steps - 1:
            with no_grad():
                unseen = surprise(batch(held, 4 * given.batch, given.time, random)).item()
            speed = (number + 1) * given.batch * given.time / (time.perf_counter() - started)
            print(f"step {number:5}  loss {loss.item():.3f}  on unseen pages {unseen:.3f}  "
                  f"{speed:,.0f} characters/s", flush=True)  # fmt: skip
    if given.write:
        print("\n" + write(model, characters, "Anne ", given.write, 0.8, random))


if __name__ == "__main__":
    main()
