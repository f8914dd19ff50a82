"""Recurrent networks as one `scan` a layer and direction: compiled once, whatever the length.

Weights, names and gate order are torch's. The products with the input are made for all steps at
once; only the products with the state stay inside the scan.
"""
from __future__ import annotations

from math import sqrt
from typing import Any

from muladd.errors import ArgumentError, ShapeError
from muladd.nn import init
from muladd.nn.layers import linear
from muladd.nn.module import Module, Parameter
from muladd.tensor import Tensor
from muladd.tensor.functional import scan

State = tuple[Tensor, ...]


class _Recurrent(Module):
    """What all share: stacking, two directions, and the order of axes.

    x is (time, batch, in), or (batch, time, in) with batch_first. The result is the last layer's
    states over time (..., hidden * directions), and the final state of every layer and direction
    (layers * directions, batch, hidden).
    """

    gates = 1  # blocks of rows in each weight
    states = 1  # tensors that are carried

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        if num_layers < 1 or not 0 <= dropout <= 1:
            raise ArgumentError(
                f"{type(self).__name__}: needs num_layers >= 1 and 0 <= dropout <= 1, got "
                f"{num_layers} and {dropout}"
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.has_bias = batch_first, dropout, bias
        self.directions = 2 if bidirectional else 1
        bound = 1 / sqrt(hidden_size)
        rows = self.gates * hidden_size
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * self.directions
            for direction in range(self.directions):
                tail = _tail(layer, direction)
                shapes: dict[str, tuple[int, ...]] = {
                    "weight_ih": (rows, width), "weight_hh": (rows, hidden_size),
                }  # fmt: skip
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                for name, shape in shapes.items():
                    value = Parameter(init.uniform(shape, bound, **options))
                    setattr(self, f"{name}_{tail}", value)

    def cell(self, given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
        """The next state: given (batch, gates * hidden) is the input's share of the gates."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if x.ndim != 3 or x.shape[-1] != self.input_size:
            order = "(batch, time, " if self.batch_first else "(time, batch, "
            raise ShapeError(
                f"{type(self).__name__}: takes {order}{self.input_size}), got {list(x.shape)}"
            )
        x = x.transpose(0, 1) if self.batch_first else x
        given = self._given_state(x, state)
        finals: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                x = x.dropout(self.dropout, training=True)
            outputs = []
            for direction in range(self.directions):
                place = layer * self.directions + direction
                start = tuple(s[place] for s in given)
                out, final = self._run(x, start, layer, direction)
                outputs.append(out)
                finals.append(final)
            x = outputs[0] if len(outputs) == 1 else Tensor.cat(*outputs, dim=-1)
        x = x.transpose(0, 1) if self.batch_first else x
        last = tuple(Tensor.stack(*parts, dim=0) for parts in zip(*finals))
        return x, last[0] if self.states == 1 else last

    def _given_state(self, x: Tensor, state: Any) -> State:
        shape = (self.num_layers * self.directions, x.shape[1], self.hidden_size)
        if state is None:
            return (Tensor.zeros(*shape, dtype=x.dtype, device=x.device),) * self.states
        given = (state,) if isinstance(state, Tensor) else tuple(state)
        if len(given) != self.states or any(tuple(s.shape) != shape for s in given):
            raise ShapeError(
                f"{type(self).__name__}: takes {self.states} initial state(s) of {list(shape)}, "
                f"got {[list(s.shape) for s in given]}"
            )
        return given

    def _run(self, x: Tensor, start: State, layer: int, direction: int) -> tuple[Tensor, State]:
        tail = _tail(layer, direction)
        weight = getattr(self, f"weight_hh_{tail}")
        bias = getattr(self, f"bias_hh_{tail}") if self.has_bias else None
        bias_in = getattr(self, f"bias_ih_{tail}") if self.has_bias else None
        given = linear(x, getattr(self, f"weight_ih_{tail}"), bias_in)  # (time, batch, gates * h)

        def body(carried: State, slices: Tensor) -> tuple[State, Tensor]:
            new = self.cell(slices, carried, weight, bias)
            return new, new[0]

        final, out = scan(body, start, given, reverse=direction == 1)
        return out, final

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"


def _tail(layer: int, direction: int) -> str:
    return f"l{layer}" + ("_reverse" if direction else "")


class RNN(_Recurrent):
    """h = tanh(W_ih x + b_ih + W_hh h + b_hh). Elman, 1990."""

    def cell(self, given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
        return ((given + linear(state[0], weight, bias)).tanh(),)


class LSTM(_Recurrent):
    """Long short-term memory; the state is (h, c). Hochreiter and Schmidhuber, 1997."""

    gates = 4
    states = 2

    def cell(self, given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
        h, c = state
        i, f, g, o = (given + linear(h, weight, bias)).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class GRU(_Recurrent):
    """Gated recurrent unit, with the reset gate after the product, as torch has it.
    Cho et al., 2014."""

    gates = 3

    def cell(self, given: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
        (h,) = state
        given_r, given_z, given_n = given.chunk(3, dim=-1)
        own_r, own_z, own_n = linear(h, weight, bias).chunk(3, dim=-1)
        r, z = (given_r + own_r).sigmoid(), (given_z + own_z).sigmoid()
        n = (given_n + r * own_n).tanh()
        return (n + z * (h - n),)
