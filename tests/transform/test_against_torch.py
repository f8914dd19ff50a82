"""The oracle: torch.autograd and torch.func on random compositions and on an LSTM."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from transform_checks import leaf, leaves, or_zeros, run

from muladd.ir import Body, Node, ScanArg, const, make, ops, toposort
from muladd.ir import dtype as dt
from muladd.transform import build as b
from muladd.transform import gradient, join_scans, jvp, scan_checkpointed, vectorize

torch.set_num_threads(1)
SHAPE = (3, 4)


# --- random compositions: each step is (ours, torch's) -------------------------------------




UNARY = [
    (b.sin, torch.sin),
    (lambda x: b.exp2(b.scale(b.sin(x), 0.5)), lambda x: torch.exp2(torch.sin(x) * 0.5)),
    (lambda x: b.sqrt(b.add(b.mul(x, x), b.like(1, x))), lambda x: torch.sqrt(x * x + 1)),
    (lambda x: b.log2(b.add(b.mul(x, x), b.like(1, x))), lambda x: torch.log2(x * x + 1)),
    (lambda x: b.flip(x, [0]), lambda x: x.flip(0)),
    (
        lambda x: b.permute(b.reshape(b.permute(x, (1, 0)), (3, 4)), (0, 1)),
        lambda x: x.t().reshape(3, 4),
    ),
    (lambda x: b.spread(b.sum_axes(x, (1,)), (1,), SHAPE), lambda x: x.sum(1, True).expand(3, 4)),
    (
        lambda x: b.spread(make(ops.AMAX, (x,), (0,)), (0,), SHAPE),
        lambda x: x.amax(0, True).expand(3, 4),
    ),
    (
        lambda x: b.pad(b.slice_(x, [(0, 2, 2), (1, 3, 1)]), [(0, 1, 0), (1, 0, 0)]),
        lambda x: torch.nn.functional.pad(x[::2, 1:], (1, 0, 0, 1)),
    ),
]
BINARY = [
    (b.add, torch.add),
    (b.mul, torch.mul),
    (b.sub, torch.sub),
    (b.maximum, torch.maximum),
    (
        lambda x, y: b.div(x, b.add(b.mul(y, y), b.like(1, y))),
        lambda x, y: x / (y * y + 1),
    ),
    (
        lambda x, y: b.where(b.less(x, y), b.sin(x), b.mul(x, y)),
        lambda x, y: torch.where(x < y, torch.sin(x), x * y),
    ),
]


def random_program(seed: int, steps: int = 9):
    """The same random function for our nodes and for torch's tensors, of two arguments."""
    rng = np.random.default_rng(seed)
    plan = []
    for i in range(steps):
        arity = int(rng.integers(1, 3))
        table = UNARY if arity == 1 else BINARY
        plan.append((int(rng.integers(len(table))), arity, rng.integers(0, i + 2, arity).tolist()))

    def apply(which: int, *arguments):
        values = list(arguments)
        for row, arity, picks in plan:
            f = (UNARY if arity == 1 else BINARY)[row][which]
            values.append(f(*[values[p] for p in picks]))
        total = values[-1]
        for v in values[2:-1]:
            total = total + v if which else b.add(total, v)
        return total.sin() if which else b.sin(total)

    return lambda *xs: apply(0, *xs), lambda *xs: apply(1, *xs)


@pytest.mark.parametrize("seed", range(40))
def test_random_compositions(seed):
    ours, theirs = random_program(seed)
    rng = np.random.default_rng(seed + 1000)
    arrays = [rng.standard_normal(SHAPE) for _ in range(2)]
    ways = [rng.standard_normal(SHAPE) for _ in range(2)]
    cot = rng.standard_normal(SHAPE)
    tx, tt = [torch.tensor(a) for a in arrays], [torch.tensor(w) for w in ways]
    inputs, tangents, seed_node = leaves(arrays), leaves(ways), leaf(SHAPE)
    y = ours(*inputs)
    gs = [or_zeros(g, x) for g, x in zip(gradient([y], inputs, [seed_node]), inputs)]
    pushed = or_zeros(jvp([y], inputs, tangents)[0], y)
    value, pull = torch.func.vjp(theirs, *tx)
    pulled = pull(torch.tensor(cot))
    _, along = torch.func.jvp(theirs, tuple(tx), tuple(tt))
    every = [*inputs, *tangents, seed_node], [*arrays, *ways, cot]
    got = run([y, *gs, pushed], *every)
    for a, c in zip(got, [value, *pulled, along]):
        np.testing.assert_allclose(a, c.numpy(), rtol=1e-9, atol=1e-9)

    # second order: reverse over reverse, and forward over reverse
    def first(*xs):
        return torch.func.vjp(theirs, *xs)[1](torch.tensor(cot))

    _, twice = torch.func.vjp(first, *tx)
    again = [or_zeros(g, x) for g, x in zip(gradient(gs, inputs, tangents), inputs)]
    over = [or_zeros(t, x) for t, x in zip(jvp(gs, inputs, tangents), inputs)]
    for a, c in zip(run([*again, *over], *every), [*twice(tuple(tt))] * 2):
        np.testing.assert_allclose(a, c.numpy(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", range(10))
def test_jacobian_by_vectorized_gradient(seed):
    """vmap of a gradient over unit cotangents is the Jacobian, as torch.func.jacrev says."""
    ours, theirs = random_program(seed, 6)
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(SHAPE) for _ in range(2)]
    inputs, cot = leaves(arrays), leaf(SHAPE)
    y = ours(*inputs)
    gs = [or_zeros(g, x) for g, x in zip(gradient([y], inputs, [cot]), inputs)]
    units = leaf((12, *SHAPE))
    rows = vectorize(gs, [cot], [units], [0])
    got = run(rows, [*inputs, units], [*arrays, np.eye(12).reshape(12, *SHAPE)])
    want = torch.func.jacrev(theirs, argnums=(0, 1))(*[torch.tensor(a) for a in arrays])
    for a, c in zip(got, want):
        np.testing.assert_allclose(a, c.numpy().reshape(12, *SHAPE), rtol=1e-9, atol=1e-9)
    x = leaf(SHAPE)  # and the gradient of a vectorised function
    batch = rng.standard_normal((5, *SHAPE))
    (values,) = leaves([batch])
    (many,) = vectorize([ours(x, inputs[1])], [x], [values], [0])
    tb = torch.tensor(batch, requires_grad=True)
    ty = torch.tensor(arrays[1], requires_grad=True)
    out = torch.func.vmap(theirs, in_dims=(0, None))(tb, ty)
    want = torch.autograd.grad(out.sum(), [tb, ty], allow_unused=True)
    found = gradient([many], [values, inputs[1]], [b.like(1, many)])
    for g, c, v in zip(found, want, (values, inputs[1])):
        (a,) = run([or_zeros(g, v)], [values, *inputs], [batch, *arrays])
        np.testing.assert_allclose(a, 0 if c is None else c.numpy(), rtol=1e-9, atol=1e-9)


# --- an LSTM -------------------------------------


def matmul(x: Node, w: Node) -> Node:
    """x (B, K) times w (K, N), as the language says it: spread, multiply, sum."""
    rows, k = x.shape
    n = w.shape[1]
    left = b.expand(b.reshape(x, (rows, k, 1)), (rows, k, n))
    return b.sum_axes(b.mul(left, b.expand(w, (rows, k, n))), (1,))


def sigmoid(x: Node) -> Node:
    one = b.like(1, x)
    return b.div(one, b.add(one, b.exp2(b.scale(x, -1 / np.log(2)))))


def tanh(x: Node) -> Node:
    return b.sub(b.scale(sigmoid(b.scale(x, 2.0)), 2.0), b.like(1, x))


def lstm_step(h, c, x, wi, wh, bias):
    size = h.shape[1]
    gates = b.add(matmul(x, wi), matmul(h, wh))
    gates = b.add(gates, b.expand(bias, gates.shape))
    i, f, g, o = (
        b.slice_(gates, [(0, h.shape[0], 1), (k * size, size, 1)]) for k in range(4)
    )
    new_c = b.add(b.mul(sigmoid(f), c), b.mul(sigmoid(i), tanh(g)))
    new_h = b.mul(sigmoid(o), tanh(new_c))
    return new_h, new_c, new_h


STEPS, BATCH, WIDTH, HIDDEN = 50, 2, 3, 4


def lstm_arrays():
    rng = np.random.default_rng(0)
    shapes = [(BATCH, HIDDEN)] * 2 + [(STEPS, BATCH, WIDTH), (WIDTH, 4 * HIDDEN),
              (HIDDEN, 4 * HIDDEN), (4 * HIDDEN,)]  # fmt: skip
    return [rng.standard_normal(s) * 0.5 for s in shapes]


def torch_lstm_gradients(arrays):
    h, c, x, wi, wh, bias = [torch.tensor(a, requires_grad=True) for a in arrays]
    zero = torch.zeros_like(bias)
    out, hn, cn = torch.lstm(
        x, (h[None], c[None]), [wi.t(), wh.t(), bias, zero], True, 1, 0.0, True, False, False
    )
    loss = (out * out).sum() + (hn * cn).sum()
    return torch.autograd.grad(loss, [h, c, x, wi, wh, bias])


@pytest.mark.parametrize("how", ["plain", "checkpointed", "recompute"])
def test_lstm_over_fifty_steps(how):
    arrays = lstm_arrays()
    inputs = leaves(arrays)
    params = b.params([*inputs[:2], leaf((BATCH, WIDTH)), *inputs[3:]])
    body = Body(tuple(lstm_step(*params)), params, "lstm", recompute=how == "recompute")
    arg = ScanArg(body, STEPS, 2, 1)
    h, c, out = (scan_checkpointed if how == "checkpointed" else b.scans)(arg, inputs)
    loss = b.add(b.sum_axes(b.mul(out, out), (0, 1, 2)), b.sum_axes(b.mul(h, c), (0, 1)))
    gs = [or_zeros(g, x) for g, x in zip(gradient([loss], inputs, [const(1, dt.float64)]), inputs)]
    got = run(join_scans([loss, *gs]), inputs, arrays)[1:]
    for a, c in zip(got, torch_lstm_gradients(arrays)):
        np.testing.assert_allclose(a, c.numpy(), rtol=1e-8, atol=1e-10)


def test_gradient_accumulation_as_a_scan():
    """A scan over micro-batches whose body holds a gradient gives the whole batch's gradient."""
    rng = np.random.default_rng(1)
    data, weight = rng.standard_normal((6, 5, 3)), rng.standard_normal((3, 2))
    w, x = leaf((3, 2)), leaf((6, 5, 3))
    total, xb, wb = params = b.params([w, leaf((5, 3)), w])
    y = b.sin(matmul(xb, wb))
    (g,) = gradient([y], [wb], [y])
    assert g is not None
    body = Body((b.add(total, g),), params, "micro")
    summed = b.scan(ScanArg(body, 6, 1, 1), (b.zeros(w), x, w), 0)
    tw = torch.tensor(weight, requires_grad=True)
    loss = (torch.sin(torch.tensor(data.reshape(30, 3)) @ tw) ** 2).sum() / 2
    (want,) = torch.autograd.grad(loss, [tw], create_graph=True)
    (got,) = run([summed], [x, w], [data, weight])
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-10)
    (second,) = gradient([summed], [w], [b.like(1, summed)])  # and through it
    (hessian,) = torch.autograd.grad(want.sum(), [tw])
    (got,) = run([second], [x, w], [data, weight])
    np.testing.assert_allclose(got, hessian.numpy(), rtol=1e-9)


def test_residuals_of_an_lstm_are_few():
    """The step's stacked residuals: gates and carried values, no products."""
    inputs = leaves(lstm_arrays())
    params = b.params([*inputs[:2], leaf((BATCH, WIDTH)), *inputs[3:]])
    body = Body(tuple(lstm_step(*params)), params, "lstm")
    h = b.scan(ScanArg(body, STEPS, 2, 1), inputs, 0)
    gs = gradient([h], inputs, [b.like(1, h)])
    back = next(n for n in toposort([g for g in gs if g]) if n.op is ops.SCAN and n.arg.reverse)
    first = back.arg.carries
    stacked = back.srcs[first : first + back.arg.stacked]
    per_step = sum(int(np.prod(s.shape[1:])) for s in stacked)
    assert per_step <= BATCH * (14 * HIDDEN + WIDTH), [s.shape for s in stacked]
    assert all(s.ndim <= 3 for s in stacked)


def test_an_lstm_sums_its_weights_gradients_after_the_scan():
    """Backwards it carries the cotangents of h and c only: the weights wait for one product."""
    inputs = leaves(lstm_arrays())
    params = b.params([*inputs[:2], leaf((BATCH, WIDTH)), *inputs[3:]])
    body = Body(tuple(lstm_step(*params)), params, "lstm")
    h = b.scan(ScanArg(body, STEPS, 2, 1), inputs, 0)
    gs = [or_zeros(g, x) for g, x in zip(gradient([h], inputs, [b.like(1, h)]), inputs)]
    back = next(n for n in toposort(gs) if n.op is ops.SCAN and n.arg.reverse)
    assert back.arg.carries == 2
    body = Body(body.outs, params, "lstm", recompute=True)  # where memory matters more, they do not
    h = b.scan(ScanArg(body, STEPS, 2, 1), inputs, 0)
    gs = [or_zeros(g, x) for g, x in zip(gradient([h], inputs, [b.like(1, h)]), inputs)]
    back = next(n for n in toposort(gs) if n.op is ops.SCAN and n.arg.reverse)
    assert back.arg.carries == 5


@pytest.mark.parametrize("how", [False, True])
def test_second_order_through_an_lstm(how):
    """A Hessian-vector product through deferred sums, and forward over reverse."""
    steps = 4
    arrays = lstm_arrays()
    arrays[2] = arrays[2][:steps]
    inputs = leaves(arrays)
    rng = np.random.default_rng(2)
    ways = [rng.standard_normal(a.shape) for a in arrays]
    tangents = leaves(ways)
    params = b.params([*inputs[:2], leaf((BATCH, WIDTH)), *inputs[3:]])
    body = Body(tuple(lstm_step(*params)), params, "lstm", recompute=how)
    h, c, out = b.scans(ScanArg(body, steps, 2, 1, True), inputs)
    loss = b.add(b.sum_axes(b.mul(out, out), (0, 1, 2)), b.sum_axes(b.mul(h, c), (0, 1)))
    gs = [or_zeros(g, x) for g, x in zip(gradient([loss], inputs, [const(1, dt.float64)]), inputs)]
    again = [or_zeros(g, x) for g, x in zip(gradient(gs, inputs, tangents), inputs)]
    over = [or_zeros(t, x) for t, x in zip(jvp(gs, inputs, tangents), inputs)]

    def theirs(h, c, x, wi, wh, bias):
        outs = []
        for t in reversed(range(steps)):
            i, f, g, o = (x[t] @ wi + h @ wh + bias).split(HIDDEN, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outs.append(h)
        return sum((o * o).sum() for o in outs) + (h * c).sum()

    at = tuple(torch.tensor(a) for a in arrays)
    first = torch.func.grad(theirs, argnums=tuple(range(6)))
    _, want = torch.func.jvp(first, at, tuple(torch.tensor(w) for w in ways))
    got = run(join_scans([*again, *over]), [*inputs, *tangents], [*arrays, *ways])
    for a, c in zip(got, [*want, *want]):
        np.testing.assert_allclose(a, c.numpy(), rtol=1e-8, atol=1e-9)


# --- random bodies: a scan and a call against the same steps written out ----------------------


@pytest.mark.parametrize("seed", range(25))
def test_random_scans_against_unrolled_steps(seed):
    rng = np.random.default_rng(seed)
    one, two = random_program(seed * 2, 5)[0], random_program(seed * 2 + 1, 5)[0]
    reverse, recompute, segment = seed % 2 == 1, seed % 5 == 2, seed % 3 == 0
    arrays = [rng.standard_normal(s) for s in (SHAPE, SHAPE, (3, *SHAPE), SHAPE)]
    ways = [rng.standard_normal(a.shape) for a in arrays]
    inputs, tangents = leaves(arrays), leaves(ways)

    def step(h, c, x, w):
        new = one(h, w)
        return new, two(c, b.mul(new, x)), b.mul(one(x, c), w)

    h, c, x, w = inputs
    pieces = []
    for t in reversed(range(3)) if reverse else range(3):
        slab = b.slice_(x, [(t, 1, 1), (0, 3, 1), (0, 4, 1)])
        h, c, piece = step(h, c, b.reshape(slab, SHAPE), w)
        pieces.append((t, piece))
    unrolled = [h, c, b.total([piece for _, piece in sorted(pieces, key=lambda p: p[0])])]
    params = b.params([leaf(SHAPE)] * 4)
    arg = ScanArg(Body(tuple(step(*params)), params, "step", recompute=recompute), 3, 2, 1, reverse)
    h, c, stacked = scan_checkpointed(arg, inputs, 2) if segment else b.scans(arg, inputs)
    scanned = join_scans([h, c, b.sum_axes(stacked, (0,))])
    both = [], []
    for found, outs in zip(both, (unrolled, scanned)):
        cots = [b.sin(o) for o in outs]
        gs = [or_zeros(g, x) for g, x in zip(gradient(outs, inputs, cots), inputs)]
        again = [or_zeros(g, x) for g, x in zip(gradient(gs, inputs, tangents), inputs)]
        over = [or_zeros(t, x) for t, x in zip(jvp(gs, inputs, tangents), inputs)]
        batch = vectorize(gs, [inputs[3]], [b.expand(inputs[3], (2, *SHAPE))], [0])
        found += [*outs, *gs, *again, *over, *batch]
    got = run([*both[0], *both[1]], [*inputs, *tangents], [*arrays, *ways])
    for a, c in zip(got[: len(both[0])], got[len(both[0]) :]):
        np.testing.assert_allclose(c, a, rtol=1e-7, atol=1e-7 * max(1, float(np.abs(a).max())))


def test_nothing_is_kept_alive():
    import gc

    from muladd.ir.node import interned

    counts = []
    for _ in range(3):  # the first round fills the cache of constants
        test_gradient_accumulation_as_a_scan()
        test_second_order_through_an_lstm(False)
        gc.collect()
        counts.append(interned())
    assert counts[2] <= counts[0]
