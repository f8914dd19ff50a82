"""Activations, softmax and attention: torch.nn.functional's, as methods."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from muladd.errors import ShapeError
from muladd.ir import Node
from muladd.ir import dtype as dt
from muladd.tensor import graph as g
from muladd.tensor import normal, precision, special
from muladd.tensor.attention import attend
from muladd.tensor.handle import Handle
from muladd.tensor.operands import floating, one_device, scalar_as_vector, widened
from muladd.tensor.reduce import UNSET, chosen

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Activation(Handle):
    """Functions between layers. 16-bit floats are computed in float32."""

    __slots__ = ()

    def relu(self) -> Tensor:
        """x where positive, else 0 (+0.0 also of -0.0); the derivative at 0 is 0."""
        return self._result(relu(self.node))

    def relu6(self) -> Tensor:
        """relu, at most 6."""
        return self.hardtanh(0.0, 6.0)

    def leaky_relu(self, negative_slope: float = 0.01) -> Tensor:
        """x where positive, else negative_slope * x."""
        return (self > 0).where(self, self * negative_slope)

    def prelu(self, weight: Tensor) -> Tensor:
        """leaky_relu with a slope per channel (axis 1), or one for all."""
        if weight.numel() != 1:
            weight = weight.reshape((-1, *[1] * (self.ndim - 2)))
        return (self > 0).where(self, self * weight)

    def rrelu(
        self, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False
    ) -> Tensor:
        """leaky_relu with slopes drawn from lower..upper while training, else their middle."""
        if not training:
            return self.leaky_relu((lower + upper) / 2)
        slope = self.rand_like() * (upper - lower) + lower
        return (self > 0).where(self, self * slope)

    def elu(self, alpha: float = 1.0) -> Tensor:
        """x where positive, else alpha * (exp(x) - 1)."""
        return (self > 0).where(self, self.clamp(max=0).expm1() * alpha)

    def celu(self, alpha: float = 1.0) -> Tensor:
        """x where positive, else alpha * (exp(x / alpha) - 1)."""
        return (self > 0).where(self, (self.clamp(max=0) / alpha).expm1() * alpha)

    def selu(self) -> Tensor:
        """Self-normalising elu (Klambauer et al., 2017)."""
        return self.elu(1.6732632423543772) * 1.0507009873554805

    def gelu(self, approximate: str = "none") -> Tensor:
        """x times the normal distribution function; 'tanh' is the usual approximation."""
        if approximate == "tanh":
            return self._real(normal.gelu_tanh)
        if approximate != "none":
            raise ShapeError(f"gelu: approximate={approximate!r}, expected 'none' or 'tanh'")
        return self._real(normal.gelu)

    def quick_gelu(self) -> Tensor:
        """x * sigmoid(1.702 x)."""
        return self._real(lambda x: g.mul(x, special.sigmoid(g.mul(x, 1.702))))

    def sigmoid(self) -> Tensor:
        """1 / (1 + exp(-x))."""
        return self._real(special.sigmoid)

    def logsigmoid(self) -> Tensor:
        """log(sigmoid(x)) without underflow."""
        return self._real(lambda x: g.neg(softplus(g.neg(x))))

    def hardsigmoid(self) -> Tensor:
        """relu6(x + 3) / 6."""
        return (self + 3).relu6() / 6

    def silu(self) -> Tensor:
        """x * sigmoid(x)."""
        return self._real(normal.silu)

    def swish(self) -> Tensor:
        """The same as silu."""
        return self.silu()

    def hardswish(self) -> Tensor:
        """x * relu6(x + 3) / 6."""
        return self * (self + 3).relu6() / 6

    def mish(self) -> Tensor:
        """x * tanh(softplus(x))."""
        return self._real(lambda x: g.mul(x, special.tanh(softplus(x))))

    def softplus(self, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
        """log(1 + exp(beta x)) / beta; x itself where beta x exceeds the threshold."""
        scaled = self * beta
        return (scaled > threshold).where(self, scaled._real(softplus) / beta)

    def softsign(self) -> Tensor:
        """x / (1 + |x|)."""
        return self / (self.abs() + 1)

    def hardtanh(self, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
        """clamp; the derivative at the ends is 0."""
        if not self.dtype.is_float and int(min_val) == min_val and int(max_val) == max_val:
            return self.clamp(int(min_val), int(max_val))
        inside = (self > min_val) & (self < max_val)
        x = self.detach().clamp(min_val, max_val)
        return (inside | self.isnan()).where(self, x)

    def hardshrink(self, lambd: float = 0.5) -> Tensor:
        """x where |x| > lambd, else 0."""
        return ((self >= -lambd) & (self <= lambd)).where(0.0, self)

    def softshrink(self, lambd: float = 0.5) -> Tensor:
        """x moved towards 0 by lambd, 0 in between."""
        inside = (self >= -lambd) & (self <= lambd)
        return inside.where(0.0, (self > 0).where(self - lambd, self + lambd))

    def tanhshrink(self) -> Tensor:
        """x - tanh(x)."""
        return self - self.tanh()

    def threshold(self, threshold: float, value: float) -> Tensor:
        """x where above the threshold, else value."""
        return (self > threshold).where(self, value)

    def glu(self, dim: int = -1) -> Tensor:
        """The first half along an axis times the sigmoid of the second."""
        a = g.axis_of("glu", dim, self.ndim)
        if self.shape[a] % 2:  # type: ignore[operator]
            raise ShapeError(f"glu: axis {dim} of {list(self.shape)} has an odd size")
        left, right = self.chunk(2, a)
        return left * right.sigmoid()

    # --- along an axis ----------------------------------------------------------------------------

    @scalar_as_vector
    def softmax(self, dim: Any = UNSET, dtype: Any = None, *, axis: Any = UNSET) -> Tensor:
        """exp(x) divided by its sum along an axis (default the last)."""
        a = g.axis_of("softmax", chosen("softmax", axis, dim, -1), self.ndim)
        x = floating(precision.raised(self)) if dtype is None \
            else g.cast(self.node, dt.dtype(dtype))  # fmt: skip
        return self._result(g.cast(softmax(widened(x), a), x.dtype))

    @scalar_as_vector
    def log_softmax(self, dim: Any = UNSET, dtype: Any = None, *, axis: Any = UNSET) -> Tensor:
        """log(softmax(x)) without underflow."""
        a = g.axis_of("log_softmax", chosen("log_softmax", axis, dim, -1), self.ndim)
        x = floating(precision.raised(self)) if dtype is None \
            else g.cast(self.node, dt.dtype(dtype))  # fmt: skip
        return self._result(g.cast(log_softmax(widened(x), a), x.dtype))

    def softmin(self, dim: Any = UNSET, *, axis: Any = UNSET) -> Tensor:
        """softmax(-x)."""
        return (-self).softmax(chosen("softmin", axis, dim, -1))

    def gumbel_softmax(
        self, tau: float = 1.0, hard: bool = False, dim: int = -1
    ) -> Tensor:
        """softmax of (x + Gumbel noise) / tau; `hard` is one-hot with the soft gradient."""
        noise = -(-(self.rand_like().clamp(1e-20).log())).log()
        soft = ((self + noise) / tau).softmax(dim)
        if not hard:
            return soft
        a = g.axis_of("gumbel_softmax", dim, self.ndim)
        index = soft.argmax(a)
        picked = index.one_hot(self.shape[a]).movedim(-1, a).cast(self.dtype)  # type: ignore
        return picked - soft.detach() + soft

    def normalize(self, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
        """Divided by the p-norm along an axis."""
        return self / self.norm(p, dim, keepdim=True).clamp(min=eps)

    # --- attention --------------------------------------------------------------------------------

    def scaled_dot_product_attention(
        self, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        """softmax(q k^T * scale + mask) v; q is (..., L, E), k (..., S, E), v (..., S, Ev).

        attn_mask is bool (True takes part) or added to the scores. With enable_gqa, k and v may
        have fewer heads (axis -3), each shared by several heads of q.
        """
        if self.ndim < 2 or key.shape[-1] != self.shape[-1] or key.shape[-2] != value.shape[-2]:
            raise ShapeError(
                f"scaled_dot_product_attention: q {list(self.shape)}, k {list(key.shape)} and v "
                f"{list(value.shape)} do not fit: q and k share the last axis, k and v the one "
                "before it"
            )
        if is_causal and attn_mask is not None:
            raise ShapeError("scaled_dot_product_attention: give attn_mask or is_causal, not both")
        if enable_gqa:
            groups = self.shape[-3] // key.shape[-3]  # type: ignore[operator]
            key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
        factor = 1 / math.sqrt(self.shape[-1]) if scale is None else scale  # type: ignore[arg-type]
        d = self.dtype
        if dropout_p == 0 and not (attn_mask is not None and attn_mask.requires_grad):
            result = _attended(self, key, value, attn_mask, is_causal, factor)
            return self._result(g.cast(result, d))
        q, k, v = (self._result(widened(t.node)) for t in (self, key, value))
        scores = (q * factor).matmul(k.transpose(-2, -1))
        masked = attn_mask is not None  # then a row may have nothing to attend to
        if is_causal:
            attn_mask = self.ones(*scores.shape[-2:], dtype=dt.bool_, device=self.device)
            attn_mask = attn_mask.tril()
        if attn_mask is not None:
            if attn_mask.dtype is dt.bool_:
                scores = attn_mask.where(scores, -math.inf)
            else:
                scores = scores + attn_mask
        scores = precision.raised(scores)
        weights = scores._result(softmax(scores.node, scores.ndim - 1, masked))
        if dropout_p:
            weights = weights.dropout(dropout_p)
        return weights.matmul(v).cast(d)


# --- on nodes -------------------------------------------------------------------------------------


def _attended(
    q: Handle, k: Handle, v: Handle, mask: Handle | None, causal: bool, factor: float
) -> Node:
    """Attention without dropout, batch axes made equal."""
    who = "scaled_dot_product_attention"
    one_device(who, (q, k, v) if mask is None else (q, k, v, mask))
    shapes = [t.shape[:-2] for t in (q, k, v)]
    if mask is not None:
        shapes.append(mask.shape[:-2])
    lead = g.broadcast_shapes(who, *shapes)
    nodes = [
        g.expand(widened(precision.lowered(t).node), (*lead, *t.shape[-2:])) for t in (q, k, v)
    ]
    extra = None
    if mask is not None:
        extra = g.reshape(mask.node, (*[1] * (2 - mask.ndim), *mask.shape))
        extra = extra if mask.dtype is dt.bool_ else g.cast(extra, nodes[0].dtype)
    return attend(nodes[0], nodes[1], nodes[2], extra, causal, factor)


def relu(x: Node) -> Node:
    if not x.dtype.is_float:
        return g.maximum(x, 0)
    # the test is against the least positive number so that x = 0 takes the constant, and NaN passes
    least = 2.0 ** (2 - (1 << (x.dtype.exponent - 1)) - x.dtype.mantissa)
    return g.where(g.lt(x, least), 0.0, x)


def softplus(x: Node) -> Node:
    top = g.where(g.lt(x, 0.0), 0.0, x)
    return g.add(top, special.log1p(g.exp(g.neg(special.distance(x)))))


def _shifted(x: Node, axis: int, masked: bool = False) -> Node:
    """x minus its maximum along an axis (a constant for the derivative, as it cancels out)."""
    top = g.stop(g.greatest(x, (axis,)))
    if masked:  # a row may be -inf throughout
        top = g.where(g.eq(top, -math.inf), 0.0, top)
    return g.sub(x, g.expand(g.keep(top, x.shape, (axis,)), x.shape))


def softmax(x: Node, axis: int, masked: bool = False) -> Node:
    e = g.exp(_shifted(x, axis, masked))
    total = g.total(e, (axis,))
    if masked:
        total = g.where(g.eq(total, 0.0), 1.0, total)
    return g.div(e, g.expand(g.keep(total, x.shape, (axis,)), x.shape))


def log_softmax(x: Node, axis: int) -> Node:
    shifted = _shifted(x, axis)
    total = g.log(g.total(g.exp(shifted), (axis,)))
    return g.sub(shifted, g.expand(g.keep(total, x.shape, (axis,)), x.shape))
