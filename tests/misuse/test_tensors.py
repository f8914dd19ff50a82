"""Misuse of tensors: one clear exception each, which names who was asked, and what was given."""
import numpy as np
import pytest

from muladd import Tensor, config, int64, jit, vmap
from muladd.errors import ArgumentError, DTypeError, IndexingError, ShapeError


def zeros(*shape, **named):
    return Tensor.zeros(*shape, **named)


X = (3, 4)
N = {"x": {0: ("n", 1, 64)}}

MISUSE = {
    # sizes that do not fit
    "add": (lambda: zeros(3, 4) + zeros(5), ShapeError, r"add.*\[3, 4\].*\[5\]"),
    "matmul": (lambda: zeros(2, 3) @ zeros(4, 5), ShapeError, r"matmul.*\[2, 3\].*\[4, 5\]"),
    "matmul of a scalar": (lambda: zeros() @ zeros(3), ShapeError, "matmul"),
    "reshape": (lambda: zeros(*X).reshape(5, 2), ShapeError, r"reshape.*\[3, 4\]"),
    "cat": (lambda: zeros(3, 4).cat(zeros(3, 5)), ShapeError, r"cat.*\[3, 5\]"),
    "stack": (lambda: zeros(3).stack(zeros(4)), ShapeError, r"stack.*\[4\]"),
    "conv2d": (lambda: zeros(1, 3, 8, 8).conv2d(zeros(4, 2, 3, 3)), ShapeError, "conv2d"),
    "conv2d of less": (lambda: zeros(1, 3, 2, 2).conv2d(zeros(4, 3, 3, 3)), ShapeError, "conv2d"),
    "einsum": (lambda: Tensor.einsum("ij,jk", zeros(2, 3), zeros(4, 5)), ShapeError, "einsum"),
    "split": (lambda: zeros(5).split([2, 2]), ShapeError, "split"),
    "expand": (lambda: zeros(3).expand(4), ShapeError, "expand"),
    "assign": (lambda: zeros(3).assign(zeros(4)), ShapeError, r"assign.*\[4\].*\[3\]"),
    "in place": (lambda: zeros(3).add_(zeros(2, 3)), ShapeError, "add_"),
    "setitem": (lambda: zeros(3, 4).__setitem__(0, zeros(5)), ShapeError, r"setitem.*\[5\]"),
    "loss": (lambda: zeros(3, 1).mse_loss(zeros(3)), ShapeError, r"mse_loss.*\[3, 1\].*\[3\]"),
    "targets": (lambda: zeros(3, 4).cross_entropy(zeros(5, dtype=int64)), ShapeError, "nll_loss"),
    "item": (lambda: zeros(3).item(), ShapeError, r"item.*\[3\]"),
    "truth": (lambda: bool(zeros(3)), ShapeError, "neither true nor false"),
    "the maximum of nothing": (lambda: zeros(0, 3).max(), ShapeError, r"amax.*\[0, 3\]"),
    # axes that do not exist
    "sum over axis 2": (lambda: zeros(*X).sum(2), ShapeError, "sum.*axis 2"),
    "softmax": (lambda: zeros(*X).softmax(-3), ShapeError, "softmax.*axis -3"),
    "transpose": (lambda: zeros(*X).transpose(0, 2), ShapeError, "transpose.*2"),
    "permute": (lambda: zeros(*X).permute(0, 0), ShapeError, "permute"),
    "axis twice": (lambda: zeros(*X).sum((0, -2)), ShapeError, "sum"),
    "squeeze": (lambda: zeros(*X).squeeze(5), ShapeError, "squeeze.*5"),
    "axis and dim": (lambda: zeros(*X).sum(0, axis=1), ShapeError, "axis=1 and dim=0"),
    "axis 1 of a scalar": (lambda: zeros().sum(1), ShapeError, "sum.*axis 1.*-1 <= axis < 1"),
    "select of a scalar": (lambda: zeros().select(0, 0), ShapeError, "axis 0.*a scalar has none"),
    "reshape of a symbolic size": (
        lambda: jit(lambda x: x.reshape(-1, 7), symbolic=N)(zeros(7, 3)), ShapeError,
        r"reshape: n\*3 elements of shape \[n, 3\] cannot be arranged as \[-1, 7\]"),
    "cumsum over a symbolic axis": (
        lambda: jit(lambda x: x.cumsum(0), symbolic=N)(zeros(7, 3)), ShapeError,
        "cumsum.*the symbolic size n; leave this axis out of jit's symbolic="),
    "topk over a symbolic axis": (
        lambda: jit(lambda x: x.topk(1, 0).values, symbolic=N)(zeros(7, 3)), ShapeError,
        "topk.*the symbolic size n"),
    "cut off more than there is": (lambda: zeros(3).pad((-5, 1)), ShapeError, r"^pad: \(-5, 1\)"),
    "a number of repetitions": (
        lambda: zeros(3).repeat_interleave(-1), ShapeError, "^repeat_interleave"),
    "bits of another width": (lambda: zeros(3).bitcast("float64"), DTypeError, "^bitcast: float32"),
    "dropout": (lambda: zeros(3).dropout(2), ArgumentError, r"^dropout: p is a probab.*got 2"),
    "dropout by a word": (lambda: zeros(3).dropout("a"), ArgumentError, "^dropout.*got 'a'"),
    # element types
    "full of a word": (lambda: Tensor.full((2,), "a"), DTypeError, "full: expected a number.*'a'"),
    "full_like of a list": (lambda: zeros(2).full_like([1]), DTypeError, r"full_like.*\[1\]"),
    "cat of a number": (lambda: Tensor.cat([zeros(2), 1]), DTypeError, "cat.*number 1 at place 1"),
    "bits of floats": (lambda: zeros(3) & 1, DTypeError, "bitwise_and.*float32"),
    "not of floats": (lambda: ~zeros(3), DTypeError, "bitwise_not.*float32"),
    "mean of integers": (lambda: zeros(3, dtype=int64).mean(), DTypeError, "mean.*int64"),
    "condition": (lambda: zeros(3).where(1, 2), DTypeError, "where.*float32"),
    "store a float": (lambda: zeros(3, dtype=int64).add_(0.5), DTypeError, "add_.*float32.*int64"),
    "words": (lambda: zeros(3) + "a", DTypeError, "add.*str"),
    "no such type": (lambda: zeros(3).cast("float128"), DTypeError, "float128"),
    "index by floats": (lambda: zeros(3)[zeros(2)], IndexingError, "float32"),
    "negative power": (lambda: zeros(3, dtype=int64) ** -1, DTypeError, "pow.*-1"),
    # places outside
    "3 of 3": (lambda: zeros(3)[3], IndexingError, "3 is outside axis 0 of size 3"),
    "-5 of 4": (lambda: zeros(3, 4)[0, -5], IndexingError, "-5 is outside axis 1 of size 4"),
    "too many": (lambda: zeros(3)[0, 0], IndexingError, r"2 indices.*\[3\]"),
    "a list": (lambda: zeros(3)[[0, 7]], IndexingError, "holds 7.*size 3"),
    "an array": (lambda: zeros(3)[np.array([-4])], IndexingError, "holds -4.*size 3"),
    "a tensor": (lambda: zeros(3, 4)[:, Tensor([1, 4])], IndexingError, "holds 4.*size 4"),
    "writing": (lambda: zeros(3).__setitem__(Tensor([3]), 1.0), IndexingError, "holds 3"),
    "gather": (lambda: zeros(3).gather(0, Tensor([5])), IndexingError, "gather.*holds 5.*size 3"),
    "select": (lambda: zeros(3).index_select(0, Tensor([5])), IndexingError, "index_select.*5"),
    "take": (lambda: zeros(3, 2).take(Tensor([6])), IndexingError, "take.*holds 6.*size 6"),
    "scatter": (lambda: zeros(3).scatter(0, Tensor([9]), 1.0), IndexingError, "scatter.*holds 9"),
    "index_add": (lambda: zeros(3).index_add(0, Tensor([4]), zeros(1)), IndexingError, "index_add"),
    "embedding": (lambda: Tensor([7]).embedding(zeros(5, 2)), IndexingError, "embedding.*7.*0..4"),
    "negative token": (lambda: Tensor([-1]).embedding(zeros(5, 2)), IndexingError, "holds -1"),
    "one_hot": (lambda: Tensor([4]).one_hot(4), IndexingError, "one_hot.*holds 4.*0..3"),
    "class": (lambda: zeros(2, 3).cross_entropy(Tensor([0, 3])), IndexingError, "holds 3.*size 3"),
    "mask": (lambda: zeros(3)[Tensor([True, False])], IndexingError, r"mask.*\[2\].*\[3\]"),
    "step 0": (lambda: zeros(3)[::0], IndexingError, "step"),
    "two ellipses": (lambda: zeros(3)[..., ...], IndexingError, "only one"),
    "a word": (lambda: zeros(3)["a"], IndexingError, "'a' is not an index"),
    "narrow": (lambda: zeros(3).narrow(0, 2, 2), (IndexingError, ShapeError), "narrow"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name, device):
    function, kind, message = MISUSE[name]
    everything = device != "CPU"  # elsewhere, indices are looked at only when that is asked for
    with config.context(CHECK=everything), pytest.raises(kind, match=message):
        function()


# --- indices that are not known at the call -------------------------------------------------------


def test_an_index_computed_later_reads_zero_and_writes_nothing(device):
    x = Tensor([1.0, 2.0, 3.0])
    far = Tensor([0, 4, 1]) + 1  # 1, 5, 2: nothing has run yet
    with config.context(CHECK=0):
        assert x[far].tolist() == [2, 0, 3]
        y = x.clone()
        y[far] = 9.0
        assert y.tolist() == [1, 9, 9]


def test_the_setting_check_computes_every_index_and_looks(device):
    x = Tensor([1.0, 2.0, 3.0])
    with config.context(CHECK=1):
        with pytest.raises(IndexingError, match=r"index.*shape \[3\] holds 5.*size 3"):
            x[Tensor([0, 4, 1]) + 1]
        assert x[Tensor([0, 1]) - 3].tolist() == [1, 2]


def test_a_traced_or_mapped_index_is_not_looked_at(device):
    x = Tensor([1.0, 2.0, 3.0])
    taken = jit(lambda i: x[i] * 1)
    assert [taken(Tensor([k, 1])).tolist() for k in (0, 1, -1)] == [[1, 2], [2, 2], [3, 2]]
    assert taken(Tensor([0, 7])).tolist() == [1, 0]
    assert vmap(lambda i: x[i])(Tensor([[0], [8]])).tolist() == [[1], [0]]


def test_ignored_classes_may_be_anything():
    loss = zeros(2, 3).cross_entropy(Tensor([-100, 1]))
    np.testing.assert_allclose(loss.item(), np.log(3), rtol=1e-6)


# --- casts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "int32", "int64", "uint8", "uint32", "bool"])
def test_casts_of_what_is_no_number_are_defined(kind, device):
    """NaN becomes 0 (of bool: true), what is too great becomes the greatest, on every device."""
    x = Tensor(np.array([np.nan, np.inf, -np.inf, 1e30, -1e30], np.float32)).cast(kind)
    if kind == "bool":
        assert x.tolist() == [True] * 5
        return
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    assert x.tolist() == [0, high, low, high, low]


@pytest.mark.parametrize(("kind", "greatest"), [
    ("float16", np.inf), ("bfloat16", np.inf), ("float8_e5m2", np.inf), ("float8_e4m3", np.nan),
])  # fmt: skip
def test_casts_to_narrow_floats_overflow_to_what_the_type_has(kind, greatest, device):
    x = Tensor(np.array([np.nan, 3e38 if kind != "bfloat16" else 3.4e38], np.float32)).cast(kind)
    found = x.numpy()
    assert np.isnan(found[0])
    np.testing.assert_equal(float(found[1]), greatest)
