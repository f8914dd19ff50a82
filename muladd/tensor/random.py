"""Random numbers as graphs: Threefry-2x32 with 20 rounds, counted, the same on every device.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). Element i of a draw is the
cipher of (counter + i) under the seed. The counter is state: outside of tracing it is known on the
host, inside it is a tensor, so that a compiled function draws anew each time it is called.
"""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from muladd import config
from muladd.errors import ArgumentError, DTypeError, ShapeError
from muladd.ir import Dim, Node, Shape, iota, make, ops, sym
from muladd.ir import dtype as dt
from muladd.tensor import backend
from muladd.tensor import graph as g
from muladd.tensor.creation import shape_of, size_of, storage_node
from muladd.tensor.handle import Handle, no_grad
from muladd.tensor.operands import is_number
from muladd.tensor.special import PI

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


class Generator:
    """A stream of random numbers: a seed and a counter, held per device as uint32[4].

    `tensors` maps a device to the state (seed low, seed high, counter low, counter high) while the
    host does not know the counter. A compiled function asks for `state(device)` before each run,
    takes it as an input and assigns its last value to that tensor; drawing outside reads it back.
    """

    def __init__(self, seed: int) -> None:
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> None:
        """Start again from a whole number."""
        self.seed, self.counter = int(seed) & ((1 << 64) - 1), 0
        self.tensors: dict[str, Tensor] = {}

    def _words(self) -> np.ndarray:
        words = (self.seed, self.seed >> 32, self.counter, self.counter >> 32)
        return np.array([w & 0xFFFFFFFF for w in words], np.uint32)

    def state(self, device: str) -> Tensor:
        """The state as a tensor on a device."""
        from muladd.tensor.tensor import Tensor

        if device not in self.tensors:
            self.tensors[device] = Tensor._of(storage_node(self._words(), dt.uint32, device),
                                              device)  # fmt: skip
        return self.tensors[device]

    def take(self, count: Dim, device: str) -> Node:
        """The state from which to draw `count` pairs of words; the counter moves on."""
        now = backend.frame.get()
        return self.advance(count, device) if now is None else now.draw(self, count, device)

    def advance(self, count: Dim, device: str) -> Node:
        """take(), of what runs as it stands: once for each time it is written."""
        if backend.is_tracing() or not isinstance(count, int):
            state = self.state(device)
            node = state._value()
            with no_grad():
                state.assign(state._of(_moved_on(node, count), device))
            return node
        self._return_to_host(device)
        node = storage_node(self._words(), dt.uint32, device)
        self.counter += count
        return node

    def _return_to_host(self, device: str) -> None:
        """Read back what a traced function left on the device."""
        if device in self.tensors:
            words = [int(w) for w in self.tensors.pop(device).numpy()]
            self.seed, self.counter = words[0] | words[1] << 32, words[2] | words[3] << 32


def advanced(state: Node, steps: Node) -> Node:
    """States (n, 4) whose counters stand `steps` (n, int64) beyond that of one state."""
    n = steps.shape[0]
    key0, key1, low, high = (g.expand(g.cut(state, 0, i, 1), (n,)) for i in range(4))
    new_low = g.add(low, g.cast(g.mod(steps, 1 << 32), dt.uint32))
    carry = g.cast(g.lt(new_low, low), dt.uint32)
    new_high = g.add(g.add(high, g.cast(g.div(steps, 1 << 32), dt.uint32)), carry)
    return g.concatenate([g.reshape(x, (n, 1)) for x in (key0, key1, new_low, new_high)], 1)


def _moved_on(state: Node, count: Dim) -> Node:
    return g.reshape(advanced(state, g.number(count, dt.int64, (1,))), state.shape)


_default: list[Generator] = []


def default_generator() -> Generator:
    """The stream that tensors draw from; it starts from the setting SEED."""
    if not _default:
        _default.append(Generator(config.get("SEED")))
    return _default[0]


# --- the cipher -----------------------------------------------------------------------------------


def threefry(x0: Node, x1: Node, k0: Node, k1: Node) -> tuple[Node, Node]:
    """Threefry-2x32-20 of two uint32 words under a key of two."""
    k2 = _xor(_xor(k0, k1), g.like(k0, 0x1BD11BDA))
    keys = (k0, k1, k2)
    x0, x1 = g.add(x0, k0), g.add(x1, k1)
    for i in range(5):
        for r in ROTATIONS[i % 2]:
            x0 = g.add(x0, x1)
            x1 = _xor(_rotated(x1, r), x0)
        x0 = g.add(x0, keys[(i + 1) % 3])
        x1 = g.add(g.add(x1, keys[(i + 2) % 3]), i + 1)
    return x0, x1


def _xor(a: Node, b: Node) -> Node:
    return make(ops.XOR, (a, b))


def _rotated(x: Node, r: int) -> Node:
    return g.add(g.mul(x, 1 << r), g.div(x, 1 << (32 - r)))


def word_pairs(state: Node, count: Dim) -> tuple[Node, Node]:
    """`count` pairs of random uint32 words."""
    key0, key1, low, high = (
        g.expand(g.cut(state, 0, i, 1), (count,)) for i in range(4)
    )  # fmt: skip
    i = iota(count, dt.uint32)
    first = g.add(low, i)
    carry = g.cast(g.lt(first, low), dt.uint32)
    return threefry(first, g.add(high, carry), key0, key1)


def words(shape: Shape, device: str) -> Node:
    """Random uint32 words, one of each pair: fused into what uses it, the cipher runs once each."""
    return g.reshape(_pairs(shape, device)[0], shape)


def _pairs(shape: Shape, device: str) -> tuple[Node, Node]:
    count = sym.product(shape)
    return word_pairs(default_generator().take(count, device), count)


def uniform(shape: Shape, d: dt.DType, device: str) -> Node:
    """0 <= x < 1, in steps of 2^-24 (float64: 2^-53; 16-bit floats: as many as they hold)."""
    if d is dt.float64:
        a, b = _pairs(shape, device)
        high = g.cast(g.div(a, 1 << 5), d)  # 27 bits
        low = g.cast(g.div(b, 1 << 6), d)  # 26 bits
        line = g.mul(g.add(g.mul(high, float(1 << 26)), low), 2.0**-53)
        return g.reshape(line, shape)
    return g.cast(_unit(words(shape, device), min(d.mantissa + 1, 24)), d)


def _unit(word: Node, bits: int) -> Node:
    """The upper bits of uint32 words as float32, 0 <= x < 1."""
    return g.mul(g.cast(g.div(word, 1 << (32 - bits)), dt.float32), 2.0**-bits)


def normal(shape: Shape, d: dt.DType, device: str) -> Node:
    """Mean 0, deviation 1, by Box and Muller (1958): two uniforms give one number."""
    if d is dt.float64:
        u, v = (uniform(shape, d, device) for _ in range(2))
    else:
        u, v = (g.reshape(_unit(w, 24), shape) for w in _pairs(shape, device))
    radius = g.sqrt(g.mul(g.log(g.sub(1.0, u)), -2.0))
    return g.cast(g.mul(radius, g.sin(g.mul(v, 2 * PI))), d)


def _float(dtype: Any, who: str) -> dt.DType:
    d = dt.dtype(dtype or dt.float32)
    if not d.is_float:
        raise DTypeError(f"{who}: draws floats, got dtype {d.name}; use randint for integers")
    return d


class Random(Handle):
    """Drawing. Equal seeds give equal numbers on every device."""

    __slots__ = ()

    @classmethod
    def manual_seed(cls, seed: int = 0) -> None:
        """Start the stream of random numbers again."""
        default_generator().manual_seed(seed)

    @classmethod
    def _drawn(cls, node: Node, device: str, requires_grad: bool) -> Tensor:
        made = cls._of(node, device)
        return made.requires_grad_() if requires_grad else made

    @classmethod
    def rand(
        cls, *shape: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False
    ) -> Tensor:
        """Uniform, 0 <= x < 1."""
        name = backend.device_name(device)
        node = uniform(shape_of(shape, "rand"), _float(dtype, "rand"), name)
        return cls._drawn(node, name, requires_grad)

    @classmethod
    def randn(
        cls, *shape: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False
    ) -> Tensor:
        """Normal, mean 0 and deviation 1."""
        name = backend.device_name(device)
        node = normal(shape_of(shape, "randn"), _float(dtype, "randn"), name)
        return cls._drawn(node, name, requires_grad)

    @classmethod
    def uniform(
        cls, *shape: Any, low: float = 0.0, high: float = 1.0, dtype: Any = None,
        device: Any = None, requires_grad: bool = False,
    ) -> Tensor:  # fmt: skip
        """Uniform, low <= x < high."""
        made = cls.rand(*shape, dtype=dtype, device=device) * (high - low) + low
        return made.requires_grad_() if requires_grad else made

    @classmethod
    def normal(
        cls, *shape: Any, mean: float = 0.0, std: float = 1.0, dtype: Any = None,
        device: Any = None, requires_grad: bool = False,
    ) -> Tensor:  # fmt: skip
        """Normal with a mean and a deviation."""
        made = cls.randn(*shape, dtype=dtype, device=device) * std + mean
        return made.requires_grad_() if requires_grad else made

    @classmethod
    def randint(
        cls, low: int, high: Any = None, size: Any = None, dtype: Any = None, device: Any = None
    ) -> Tensor:
        """Whole numbers, low <= x < high (int64); `randint(high, size)` starts from 0."""
        if size is None:
            low, high, size = 0, low, high
        if isinstance(high, list | tuple):
            low, high, size = 0, low, high
        if size is None:
            raise ShapeError("randint: needs a size, as in randint(0, 10, (3, 4))")
        span = high - low
        if not 0 < span <= 1 << 32:
            raise ShapeError(
                f"randint: needs low < high <= low + 2**32, got low={low} and high={high}"
            )
        name = backend.device_name(device)
        shape = shape_of((size,) if isinstance(size, list | tuple) else (size,), "randint")
        wide = g.cast(words(shape, name), dt.uint64)
        drawn = g.cast(g.div(g.mul(wide, span), 1 << 32), dt.int64)
        return cls._of(g.cast(g.add(drawn, low), dt.dtype(dtype or dt.int64)), name)

    @classmethod
    def randperm(cls, n: int, dtype: Any = None, device: Any = None) -> Tensor:
        """0 .. n-1 in random order."""
        from muladd.tensor.sorting import order

        name = backend.device_name(device)
        node = order(words((size_of(n, "randperm"),), name), 0, False)
        return cls._of(g.cast(node, dt.dtype(dtype or dt.int64)), name)

    def rand_like(self, dtype: Any = None) -> Tensor:
        """Uniform numbers in this tensor's shape."""
        return self.rand(*self.shape, dtype=dtype or self.dtype, device=self.device)

    def randn_like(self, dtype: Any = None) -> Tensor:
        """Normal numbers in this tensor's shape."""
        return self.randn(*self.shape, dtype=dtype or self.dtype, device=self.device)

    def randint_like(self, low: int, high: Any = None, dtype: Any = None) -> Tensor:
        """Whole numbers in this tensor's shape and dtype."""
        low, high = (0, low) if high is None else (low, high)
        return self.randint(low, high, self.shape, dtype or self.dtype, self.device)

    def bernoulli(self, p: float | None = None) -> Tensor:
        """1 with the probability that each element names (or p), else 0."""
        d = self.dtype if self.dtype.is_float else dt.float32
        chance: Any = self.detach() if p is None else p
        return (self.rand_like(d) < chance).cast(d)

    def dropout(self, p: float = 0.5, training: bool = True) -> Tensor:
        """Each element 0 with probability p, else divided by 1 - p; unchanged unless training."""
        return _dropped(self, self.shape, p, training)

    def alpha_dropout(self, p: float = 0.5, training: bool = True) -> Tensor:
        """Dropout that keeps mean and variance of selu (Klambauer et al., 2017)."""
        if probability("alpha_dropout", p) == 0 or not training:
            return self  # type: ignore[return-value]
        low = -1.7580993408473766
        a = ((1 - p) * (1 + p * low * low)) ** -0.5
        kept = self.rand_like(dt.float32) >= p
        return kept.where(self, low) * a + (-a * low * p)

    def dropout1d(self, p: float = 0.5, training: bool = True) -> Tensor:
        """Whole channels (N, C) dropped."""
        return _dropped(self, (*self.shape[:2], *[1] * (self.ndim - 2)), p, training)

    def dropout2d(self, p: float = 0.5, training: bool = True) -> Tensor:
        """Whole channels (N, C) dropped."""
        return self.dropout1d(p, training)

    def dropout3d(self, p: float = 0.5, training: bool = True) -> Tensor:
        """Whole channels (N, C) dropped."""
        return self.dropout1d(p, training)

    def multinomial(self, num_samples: int, replacement: bool = False) -> Tensor:
        """Indices (int64) drawn with these weights, per row of the last axis."""
        if self.ndim not in (1, 2):
            raise ShapeError(f"multinomial: expected 1 or 2 axes, got {list(self.shape)}")
        weights = self.detach().float()
        if not replacement:
            if num_samples > self.shape[-1]:  # type: ignore[operator]
                raise ShapeError(
                    f"multinomial: {num_samples} of {self.shape[-1]} categories without replacement"
                )
            # the order of exponential waiting times is a draw without replacement
            waiting = -((1 - weights.rand_like()).log()) / weights
            return waiting.topk(num_samples, -1, largest=False).indices
        edges = weights.cumsum(-1)
        total = edges[..., -1:]
        drawn = self.rand(*self.shape[:-1], num_samples, device=self.device) * total
        index = (edges.unsqueeze(-2) <= drawn.unsqueeze(-1)).sum(-1)
        return index.clamp(max=self.shape[-1] - 1)  # type: ignore[operator]

    # --- initialisers -----------------------------------------------------------------------------

    @classmethod
    def kaiming_uniform(
        cls, *shape: Any, a: float = 0.01, dtype: Any = None, device: Any = None,
        requires_grad: bool = False,
    ) -> Tensor:  # fmt: skip
        """Uniform with bound sqrt(6 / ((1 + a^2) fan_in)) (He et al., 2015)."""
        fan_in, _ = _fans(shape_of(shape, "kaiming_uniform"))
        bound = math.sqrt(6 / ((1 + a * a) * fan_in))
        return cls.uniform(*shape, low=-bound, high=bound, dtype=dtype, device=device,
                           requires_grad=requires_grad)  # fmt: skip

    @classmethod
    def kaiming_normal(
        cls, *shape: Any, a: float = 0.01, dtype: Any = None, device: Any = None,
        requires_grad: bool = False,
    ) -> Tensor:  # fmt: skip
        """Normal with deviation sqrt(2 / ((1 + a^2) fan_in)) (He et al., 2015)."""
        fan_in, _ = _fans(shape_of(shape, "kaiming_normal"))
        return cls.normal(*shape, std=math.sqrt(2 / ((1 + a * a) * fan_in)), dtype=dtype,
                          device=device, requires_grad=requires_grad)  # fmt: skip

    @classmethod
    def xavier_uniform(
        cls, *shape: Any, gain: float = 1.0, dtype: Any = None, device: Any = None,
        requires_grad: bool = False,
    ) -> Tensor:  # fmt: skip
        """Uniform with bound gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
        bound = gain * math.sqrt(6 / sum(_fans(shape_of(shape, "xavier_uniform"))))
        return cls.uniform(*shape, low=-bound, high=bound, dtype=dtype, device=device,
                           requires_grad=requires_grad)  # fmt: skip

    @classmethod
    def xavier_normal(
        cls, *shape: Any, gain: float = 1.0, dtype: Any = None, device: Any = None,
        requires_grad: bool = False,
    ) -> Tensor:  # fmt: skip
        """Normal with deviation gain * sqrt(2 / (fan_in + fan_out))."""
        std = gain * math.sqrt(2 / sum(_fans(shape_of(shape, "xavier_normal"))))
        return cls.normal(*shape, std=std, dtype=dtype, device=device, requires_grad=requires_grad)

    def uniform_(self, low: float = 0.0, high: float = 1.0) -> Any:
        """Overwrite with uniform numbers."""
        return self.copy_(self.rand_like() * (high - low) + low)

    def normal_(self, mean: float = 0.0, std: float = 1.0) -> Any:
        """Overwrite with normal numbers."""
        return self.copy_(self.randn_like() * std + mean)


def probability(who: str, p: Any) -> float:
    """p, if it is a number in 0..1; else ArgumentError."""
    if not is_number(p) or not 0 <= p <= 1:
        raise ArgumentError(f"{who}: p is a probability in 0..1, got {p!r}")
    return p


def _dropped(x: Any, shape: Shape, p: float, training: bool) -> Any:
    if probability("dropout", p) == 0 or not training:
        return x
    if p == 1:
        return x * 0
    kept = type(x)._of(uniform(shape, dt.float32, x.device), x.device) >= p
    return kept.where(x * (1 / (1 - p)), 0.0)


def _fans(shape: Shape) -> tuple[int, int]:
    """(inputs, outputs) of one unit of a weight (out, in, *kernel)."""
    if len(shape) < 2:
        raise ShapeError(f"initialiser: a weight has at least 2 axes, got {list(shape)}")
    field = math.prod(shape[2:])  # type: ignore[arg-type]
    return shape[1] * field, shape[0] * field  # type: ignore[operator, return-value]
