"""The networks that are measured, written for muladd and, with the same parameters, for PyTorch.

Twins list their parameters in the same order, so that weights are copied by position.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import muladd
from muladd import Tensor, nn
from muladd.bench.case import BenchmarkError

VOCABULARY = 65
Step = Callable[..., Any]


class GPT(nn.Module):
    """(batch, time) characters to (batch, time, vocabulary) scores for the next one."""

    def __init__(self, layers: int = 6, width: int = 384, heads: int = 6, time: int = 256) -> None:
        self.sizes = (layers, width, heads, time)
        self.characters = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(time, width)
        self.blocks = nn.ModuleList(
            nn.TransformerBlock(width, heads, causal=True) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        x = self.characters(text) + self.places(Tensor.arange(text.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def cnn() -> Any:
    """The network of the MNIST-like step: images 1x28x28 to 10 scores."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5), nn.ReLU(), nn.Conv2d(32, 32, 5), nn.ReLU(), nn.BatchNorm2d(32),
        lambda x: x.max_pool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.BatchNorm2d(64),
        lambda x: x.max_pool2d(2), nn.Flatten(), nn.Linear(576, 10),
    )  # fmt: skip


def mlp(depth: int = 10, width: int = 16) -> Any:
    """Layers of width to width, each followed by relu."""
    return nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())))


class Bottleneck(nn.Module):
    """Three convolutions beside a short cut: (batch, channels, h, w) to 4 * width channels.

    The stride is at the 3x3, as everybody has it since the paper. He et al., 2015.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        out = 4 * width
        self.conv1, self.norm1 = _convolution(channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = _convolution(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.norm3 = _convolution(width, out, 1), nn.BatchNorm2d(out)
        self.short = (
            None if channels == out
            else nn.Sequential(_convolution(channels, out, 1, stride), nn.BatchNorm2d(out))
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        y = self.norm3(self.conv3(y))
        return (y + (x if self.short is None else self.short(x))).relu()


class ResNet(nn.Module):
    """Images (batch, 3, h, w) to scores of 1000 classes; (3, 4, 6, 3) blocks are ResNet-50."""

    def __init__(self, blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64) -> None:
        self.conv, self.norm = _convolution(3, width, 7, 2), nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList()
        channels = width
        for stage, count in enumerate(blocks):
            for i in range(count):
                stride = 2 if stage and not i else 1
                self.blocks.append(Bottleneck(channels, width << stage, stride))
                channels = 4 * width << stage
        self.head = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().max_pool2d(3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def _convolution(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Without bias, as a batch norm follows; kept at the scale of its input (He et al., 2015)."""
    layer = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def resnet(blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64) -> ResNet:
    """A network for inference, its running statistics those of some training."""
    model = ResNet(blocks, width)
    for name, value in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            value.assign(Tensor.rand(*value.shape) * 0.2 + (0.9 if "var" in name else -0.1))
    model.eval()
    return model


def bert(layers: int = 12, width: int = 768, heads: int = 12) -> Any:
    """The encoder of BERT (Devlin et al., 2018): (batch, time, width) to the same."""
    blocks = (nn.TransformerBlock(width, heads, norm_first=False, eps=1e-12) for _ in range(layers))
    return nn.Sequential(*blocks).eval()


def text_batch(batch: int = 8, time: int = 256) -> np.ndarray:
    """(batch, time + 1) characters."""
    return np.random.default_rng(0).integers(0, VOCABULARY, (batch, time + 1), dtype=np.int64)


def image_batch(batch: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """(batch, 1, 28, 28) images and their labels."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, 1, 28, 28), dtype=np.float32)
    return images, rng.integers(0, 10, (batch,), dtype=np.int64)


def training_step(model: Any, optimizer: Any, loss_of: Callable[..., Tensor]) -> Step:
    """A compiled step: loss, gradients, update."""

    @muladd.jit
    def step(*batch: Tensor) -> Tensor:
        loss = loss_of(model, *batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def gpt_loss(model: Any, text: Tensor) -> Tensor:
    return model(text[:, :-1]).flatten(0, 1).cross_entropy(text[:, 1:].flatten())


def mixed_gpt_loss(model: Any, text: Tensor) -> Tensor:
    """Products in bfloat16 with sums in float32; weights, norms and the loss stay float32."""
    with nn.amp.autocast("bfloat16"):
        return gpt_loss(model, text)


def class_loss(model: Any, images: Tensor, labels: Tensor) -> Tensor:
    return model(images).cross_entropy(labels)


def gpt_step(
    layers: int = 6, width: int = 384, heads: int = 6, loss: Callable[..., Tensor] = gpt_loss
) -> tuple[GPT, Step]:
    """The GPT of the training benchmark and its compiled step."""
    model = GPT(layers, width, heads)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    return model, training_step(model, nn.optim.AdamW(model.parameters(), lr=3e-4), loss)


# --- the same for PyTorch ------------------------------------------------------------------------


def torch_gpt(
    torch: Any, layers: int = 6, width: int = 384, heads: int = 6, time: int = 256
) -> Any:
    """GPT as PyTorch's users write it: fused attention, one product for query, key and value."""
    tnn, functional = torch.nn, torch.nn.functional

    class Block(tnn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.project, self.out = tnn.Linear(width, 3 * width), tnn.Linear(width, width)
            self.linear1, self.linear2 = tnn.Linear(width, 4 * width), tnn.Linear(4 * width, width)
            self.norm1, self.norm2 = tnn.LayerNorm(width), tnn.LayerNorm(width)

        def forward(self, x: Any) -> Any:
            b, t, _ = x.shape
            parts = self.project(self.norm1(x)).view(b, t, 3, heads, width // heads)
            q, k, v = parts.permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, width))
            return x + self.linear2(functional.gelu(self.linear1(self.norm2(x))))

    class Net(tnn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.characters = tnn.Embedding(VOCABULARY, width)
            self.places = tnn.Embedding(time, width)
            self.blocks = tnn.ModuleList([Block() for _ in range(layers)])
            self.norm, self.head = tnn.LayerNorm(width), tnn.Linear(width, VOCABULARY, bias=False)

        def forward(self, text: Any) -> Any:
            x = self.characters(text) + self.places(torch.arange(text.shape[1]))
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    return Net()


def torch_cnn(torch: Any) -> Any:
    n = torch.nn
    return n.Sequential(
        n.Conv2d(1, 32, 5), n.ReLU(), n.Conv2d(32, 32, 5), n.ReLU(), n.BatchNorm2d(32),
        n.MaxPool2d(2), n.Conv2d(32, 64, 3), n.ReLU(), n.Conv2d(64, 64, 3), n.ReLU(),
        n.BatchNorm2d(64), n.MaxPool2d(2), n.Flatten(), n.Linear(576, 10),
    )  # fmt: skip


def torch_mlp(torch: Any, depth: int = 10, width: int = 16) -> Any:
    n = torch.nn
    return n.Sequential(*(m for _ in range(depth) for m in (n.Linear(width, width), n.ReLU())))


def torch_bert(torch: Any, layers: int = 12, width: int = 768, heads: int = 12) -> Any:
    """PyTorch's own encoder, which has a fused path for inference."""
    layer = torch.nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", layer_norm_eps=1e-12,
        batch_first=True,
    )  # fmt: skip
    return torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()


def torch_step(torch: Any, optimizer: Any, loss_of: Callable[..., Any]) -> Step:
    """A step as in PyTorch's tutorials."""

    def step(inputs: Any, targets: Any) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(inputs, targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def torch_gpt_step(
    torch: Any, model: GPT, text: np.ndarray, compiled: bool = False, mixed: bool = False
) -> Callable[[], float]:
    """A call of the twin's training step, from our weights.

    compiled: through torch.compile; mixed: with its autocast to bfloat16.
    """
    twin = torch_gpt(torch, *model.sizes)
    copy_weights(torch, model, twin)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=3e-4, weight_decay=0.01)

    def loss(inputs: Any, targets: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return torch.nn.functional.cross_entropy(twin(inputs).flatten(0, 1), targets)

    whole = torch.from_numpy(text)
    inputs, targets = whole[:, :-1].contiguous(), whole[:, 1:].reshape(-1)
    step = torch_step(torch, optimizer, torch.compile(loss) if compiled else loss)
    return lambda: step(inputs, targets)


def copy_weights(torch: Any, model: Any, twin: Any) -> None:
    """PyTorch's twin gets our parameters, by position."""
    ours, theirs = model.parameters(), list(twin.parameters())
    if [tuple(p.shape) for p in ours] != [tuple(p.shape) for p in theirs]:
        raise BenchmarkError("bench: the twin networks do not list the same parameters")
    with torch.no_grad():
        for p, q in zip(ours, theirs):
            q.copy_(torch.from_numpy(np.array(p.detach().numpy())))
