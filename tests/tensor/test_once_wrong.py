"""Operator cases that once differed from torch, found by comparing some thousands of calls."""
import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from oracle import compare

from muladd import Tensor, bool_, int64
from muladd.errors import DTypeError, ShapeError

rng = np.random.default_rng(11)
inf, nan = np.inf, np.nan
SPECIAL = np.array([0, -0.0, inf, -inf, nan, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, 20.5, 100, -100],
                   np.float32)  # fmt: skip


def floats(*shape):
    return rng.standard_normal(shape).astype(np.float32)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_cosine_and_tangent_of_large_angles(kind):
    x = np.array([0, 1, np.pi / 2, 100.3, 1e4, -1e6, 3e12, 1e30], kind)
    exact = np.cos(x.astype(np.longdouble))
    found = Tensor(x).cos().numpy()
    few = 4 * np.finfo(kind).eps
    np.testing.assert_allclose(found, exact, rtol=few, atol=0.0)
    np.testing.assert_allclose(Tensor(x).tan().numpy(), np.tan(x.astype(np.longdouble)), rtol=few)
    t = Tensor(x, requires_grad=True)
    t.cos().sum().backward()
    np.testing.assert_allclose(t.grad.numpy(), -np.sin(x.astype(np.longdouble)), rtol=few)


@pytest.mark.parametrize("name", ["hypot", "atan2", "pow"])
def test_every_pair_of_special_values(name):
    a, b = SPECIAL[:, None], SPECIAL[None]
    oracle = getattr(torch, name)
    compare(lambda x, y: getattr(x, name)(y), a, b, oracle=oracle, gradient=False, rtol=2e-6)


@pytest.mark.parametrize("name", [
    "acosh", "digamma", "lgamma", "hardshrink", "softshrink", "cos", "sign", "floor",
])  # fmt: skip
def test_special_values(name):
    oracle = getattr(torch, name, None) or getattr(functional, name)
    compare(lambda x: getattr(x, name)(), SPECIAL, oracle=oracle, gradient=False)


def test_division_by_infinity_leaves_the_number():
    x, y = np.array([3, -3, inf, 2.5], np.float32), np.array([inf, inf, inf, -inf], np.float32)
    compare(lambda a, b: (a.fmod(b), a % b), x, y, gradient=False)


def test_a_bound_that_is_not_a_number_passes_on():
    compare(lambda x, low: x.clamp(min=low), floats(3), np.array([nan, 0, -9], np.float32),
            gradient=False)  # fmt: skip
    assert np.isnan(Tensor([1.0]).clamp(min=nan).numpy()).all()


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_integers_stay_integers(kind):
    x = np.array([-3, 0, 4, 9], kind)
    compare(lambda t: (t.hardtanh(-2, 5), t.relu6()), x,
            oracle=lambda t: (functional.hardtanh(t, -2, 5), functional.relu6(t)))  # fmt: skip


def test_bool_squares_and_shifts_as_a_number():
    x = np.array([True, False])
    compare(lambda t: (t**2, t.square(), t >> 1, 5 & t), x)
    assert (Tensor(x) ** 2).dtype is int64


def test_a_number_may_be_shifted_by_a_tensor():
    compare(lambda n: (1 << n, 1000 >> n), np.array([0, 3, 5]))


def test_bool_adds_up_to_or():
    x, y = np.array([[True, False, False]]), np.array([[False, True, False]])
    index = np.array([[0, 2, 2]])
    compare(lambda a, b, i: a.scatter_add(1, i, b), x, y, index)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [
    lambda x: x.floor(), lambda x: x.ceil(), lambda x: x.round(), lambda x: x.trunc(),
    lambda x: x.sign(), lambda x: x**0, lambda x: x.norm(0), lambda x: x[:, :0].prod(1),
    lambda x: x.div(x + 9, rounding_mode="floor"),
], ids=["floor", "ceil", "round", "trunc", "sign", "power 0", "norm 0", "empty product", "div"])
def test_functions_of_steps_have_the_gradient_zero(function):
    ours, theirs = Tensor(floats(3, 4), requires_grad=True), torch.ones(3, 4, requires_grad=True)
    function(ours).sum().backward()
    function(theirs).sum().backward()
    assert theirs.grad is None or not theirs.grad.any()
    assert ours.grad.shape == (3, 4) and not ours.grad.numpy().any()


def test_a_comparison_is_no_way_to_a_leaf():
    x = Tensor(floats(3), requires_grad=True)
    assert not (x > 0).float().requires_grad
    assert not x.detach().floor().requires_grad


def test_among_equals_the_one_found_takes_the_gradient():
    x = np.array([[1, 3, 3, 0, 3]], np.float32)
    compare(lambda t: (t.max(1).values, t.min(1, True).values), x)
    compare(lambda t: t.amax(1), x)


def test_no_spread_has_no_gradient():
    compare(lambda t: (t.std(), t.std(0), t.norm()), np.zeros((3, 2), np.float32))


def test_certain_predictions_have_finite_gradients():
    p = Tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    loss = p.binary_cross_entropy(Tensor([0.0, 1.0, 1.0, 0.0]), reduction="none")
    np.testing.assert_allclose(loss.numpy(), [0, 0, 100, 100])
    loss.sum().backward()
    assert np.isfinite(p.grad.numpy()).all()


# --- places ---------------------------------------------------------------------------------------


def test_a_scalar_index_tensor_counts_as_a_number():
    x, i = floats(3, 4, 5), np.array([1, 0, 2])
    compare(lambda t, k: (t[k[0], :, k], t[:, k[0], k], t[k[0]], t[k, k[0], k]), x, i)


def test_the_diagonal_is_a_view():
    def cleared(t):
        t = t.clone()
        t.diagonal(1, 0, 2).fill_(7.0)
        t.diagonal().mul_(2)
        return t

    compare(cleared, floats(3, 3, 4))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("scale", [1.3, (0.5, 1.7), 2.5])
def test_places_computed_through_floats_compile(mode, scale):
    compare(lambda t: t.interpolate(scale_factor=scale, mode=mode), floats(1, 2, 5, 6),
            oracle=lambda t: functional.interpolate(t, scale_factor=scale, mode=mode))  # fmt: skip


def test_running_totals_of_a_scalar():
    compare(lambda t: (t.cumprod(0), t.cumsum(0), t.logcumsumexp(-1)), floats())
    with pytest.raises(DTypeError, match="logcumsumexp"):
        Tensor([1, 2]).logcumsumexp(0)


def test_the_median_of_nothing():
    assert np.isnan(Tensor(np.zeros(0, np.float32)).median().item())
    with pytest.raises(ShapeError, match="no elements"):
        Tensor(np.zeros((2, 0), np.float32)).median(1)


def test_bool_minus_bool_is_refused():
    with pytest.raises(DTypeError, match="bool minus bool"):
        Tensor([True]) - Tensor([False], dtype=bool_)


# --- names that are compositions ------------------------------------------------------------------

COMPOSED = {
    "logaddexp2": lambda F, x, y: F.logaddexp2(x, y), "entr": lambda F, x, y: F.entr(x.abs()),
    "ldexp": lambda F, x, y: F.ldexp(x, y),
    "ndtr": lambda F, x, y: F.ndtr(x), "mvlgamma": lambda F, x, y: F.mvlgamma(x.abs() + 3, 2),
    "dist": lambda F, x, y: F.dist(x, y, 3), "renorm": lambda F, x, y: F.renorm(x, 2, 0, 1.0),
    "float_power": lambda F, x, y: F.float_power(x.abs(), y),
    "nanmedian": lambda F, x, y: tuple(F.nanmedian((x / (x > 0.3)).log(), 1)),
    "isin": lambda F, x, y: F.isin(x.round(), y.round()),
    "unique_consecutive": lambda F, x, y: F.unique_consecutive(
        x.detach().round(), return_inverse=True, return_counts=True),
    "cov": lambda F, x, y: F.cov(x), "corrcoef": lambda F, x, y: F.corrcoef(x),
    "trapezoid": lambda F, x, y: (F.trapezoid(x), F.trapezoid(x, dx=0.5, dim=0),
                                  F.cumulative_trapezoid(x), F.trapezoid(x, y[0])),
    "pdist": lambda F, x, y: F.pdist(x), "atleast": lambda F, x, y: (
        F.atleast_1d(x[0, 0]), F.atleast_2d(x[0]), F.atleast_3d(x[0]), F.atleast_3d(x)),
    "stacks": lambda F, x, y: (F.column_stack([x[0], y[0]]), F.dstack([x, y]),
                               F.row_stack([x, y[:1]])),
    "splits": lambda F, x, y: (*F.hsplit(x, 2), *F.vsplit(x, 3), *F.dsplit(x[None], [1, 2])),
    "block_diag": lambda F, x, y: F.block_diag(x, y[0], y[1, 1]),
    "cartesian_prod": lambda F, x, y: F.cartesian_prod(x[0], y[:, 0]),
    "products": lambda F, x, y: (F.ger(x[0], y[0]), F.vdot(x[0], y[0]), F.adjoint(x)),
    "scatters": lambda F, x, y: (
        F.select_scatter(x, y[0], 0, 1), F.slice_scatter(x, y[:, :2], 1, 0, 4, 2),
        F.diagonal_scatter(x, y[0, :3], 1)),
    "bilinear": lambda F, x, y: F.bilinear(x, y, x.reshape(1, 3, 4).mT @ y[None]),
}  # fmt: skip


class Torch:
    """Looks a name up where torch has it."""

    def __getattr__(self, name):
        places = (torch, functional, torch.special, torch.linalg)
        return next(getattr(p, name) for p in places if hasattr(p, name))


@pytest.mark.parametrize("name", COMPOSED)
def test_compositions(name):
    x, y = floats(3, 4), floats(3, 4)
    compare(lambda a, b: COMPOSED[name](Tensor, a, b), x, y,
            oracle=lambda a, b: COMPOSED[name](Torch(), a, b), rtol=2e-5, atol=1e-5)  # fmt: skip


def test_compositions_without_gradients():
    for n, periodic in ((1, True), (5, True), (6, False)):
        for name in ("hann_window", "hamming_window", "blackman_window"):
            np.testing.assert_allclose(getattr(Tensor, name)(n, periodic).numpy(),
                                       getattr(torch, name)(n, periodic).numpy(), atol=1e-6)
    for name in ("tril_indices", "triu_indices"):
        np.testing.assert_array_equal(getattr(Tensor, name)(3, 4, 1).numpy(),
                                      getattr(torch, name)(3, 4, 1).numpy())  # fmt: skip
    x = floats(2, 3, 4)
    for order in ("fro", "nuc", 1, -1, 2, -2, inf, -inf):
        compare(lambda t, p=order: t.matrix_norm(p), x, gradient=False,
                oracle=lambda t, p=order: torch.linalg.matrix_norm(t, p))  # fmt: skip
    compare(lambda t, i: t.multilabel_margin_loss(i), floats(2, 4),
            np.array([[3, 0, -1, 1], [2, -1, 0, 0]]),
            oracle=lambda t, i: functional.multilabel_margin_loss(t, i))  # fmt: skip


ALONG = {
    "softmax": lambda t: t.softmax(-1), "log_softmax": lambda t: t.log_softmax(0),
    "sum": lambda t: t.sum(-1), "sum, kept": lambda t: t.sum(0, keepdim=True),
    "mean": lambda t: t.mean(0), "prod": lambda t: t.prod(-1), "amax": lambda t: t.amax(-1),
    "max": lambda t: t.max(-1).values, "min": lambda t: t.min(0).indices,
    "argmax": lambda t: t.argmax(-1), "argmin": lambda t: t.argmin(0, keepdim=True),
    "any": lambda t: t.any(-1), "logsumexp": lambda t: t.logsumexp(-1),
    "norm": lambda t: t.norm(2, -1), "flip": lambda t: t.flip(-1), "sort": lambda t: t.sort(-1)[1],
    "topk": lambda t: t.topk(1, -1)[0], "kthvalue": lambda t: t.kthvalue(1, -1).values,
    "median": lambda t: t.median(-1).values, "nanmedian": lambda t: t.nanmedian(0).values,
    "mode": lambda t: t.mode(-1).indices, "quantile": lambda t: t.quantile(0.5, -1),
    "cumsum": lambda t: t.cumsum(-1), "cummax": lambda t: t.cummax(0).indices,
    "squeeze": lambda t: t.squeeze(-1), "transpose": lambda t: t.transpose(0, -1),
    "movedim": lambda t: t.movedim(0, -1), "gather": lambda t: t.gather(0, (t * 0).long()),
    "index_select": lambda t: t.index_select(-1, (t * 0).long()),
    "scatter_add": lambda t: t.scatter_add(0, (t * 0).long(), t),
    "index_add": lambda t: t.index_add(0, (t * 0).long(), t),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONG)
def test_a_scalar_may_be_asked_for_axis_0_or_minus_1(name):
    compare(ALONG[name], np.array(2.5, np.float32))


def test_equality_with_what_is_no_operand_is_false():
    x = Tensor([1.0, 2.0])
    assert (x == None) is False and (x != None) is True  # noqa: E711
    assert (x == "a") is False and None not in [x] and None not in x and 2 in x


@pytest.mark.parametrize("d", ["uint8", "int16", "int32", "int64"])
def test_powers_of_integers_wrap(d):
    x = torch.tensor([2, 3, 5, 7, 0, 1], dtype=getattr(torch, d))
    for n in (64, 65, 100, 127):
        for exponent in (n, Tensor([n], dtype=d)):
            found, wanted = Tensor(x.numpy()) ** exponent, x ** torch.tensor(n, dtype=x.dtype)
            np.testing.assert_array_equal(found.numpy(), wanted.numpy())


@pytest.mark.parametrize("n", [float("inf"), -float("inf"), float("nan")])
def test_powers_and_whole_quotients_of_numbers_that_are_not_finite(n):
    x = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, float("inf"), -float("inf"), float("nan")])
    np.testing.assert_array_equal((Tensor(x.numpy()) ** n).numpy(), (x**n).numpy())
    np.testing.assert_array_equal((Tensor(x.numpy()) // n).numpy(), (x // n).numpy())
    np.testing.assert_array_equal((Tensor(x.numpy()) // 2.0).numpy(), (x // 2.0).numpy())


def test_nothing_has_no_differences_and_no_diagonal():
    assert Tensor.zeros(3, 0).diff().shape == (3, 0)
    assert Tensor.zeros(3, 0).diagonal().shape == (0,)
    assert Tensor(1.5).nonzero().shape == (1, 0) and Tensor(0.0).nonzero().shape == (0, 0)
