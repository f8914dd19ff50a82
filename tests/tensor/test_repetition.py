"""vmap and scan: long recurrences, checkpoints in O(sqrt n) memory, accumulation, and what a
function that runs once for many cannot do."""
import numpy as np
import pytest
import torch

from muladd import Tensor, grad, jit, nn, no_grad, scan, vmap
from muladd.compile import compile_graph, parameters
from muladd.errors import ArgumentError, ShapeError, TraceError
from muladd.tensor import backend


def program(*tensors):
    roots, _ = backend.expand([t.node for t in tensors], "CPU")
    graph, _ = parameters(tuple(roots))
    return compile_graph(graph, "CPU")


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_thousand_steps_beside_torch(kind):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 2, 5)).astype(np.float32)
    theirs = getattr(torch.nn, kind)(5, 6)
    ours = getattr(nn, kind)(5, 6)
    state = {name: value.detach().numpy() for name, value in theirs.named_parameters()}
    ours.load_state_dict({name: Tensor(value) for name, value in state.items()})
    mine, other = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    out, expected = ours(mine)[0], theirs(other)[0]
    np.testing.assert_allclose(out.numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    (out[-1] * out[-1]).sum().backward()
    (expected[-1] * expected[-1]).sum().backward()
    np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-3, atol=1e-5)
    for name, p in theirs.named_parameters():
        found = dict(ours.named_parameters())[name].grad.numpy()
        np.testing.assert_allclose(found, p.grad.numpy(), rtol=1e-3, atol=1e-4, err_msg=name)


def chain(length, checkpoint):
    """The gradient of a loss after `length` steps of a layer of 64 x 64."""
    w = Tensor(np.eye(64, dtype=np.float32) * 0.9, requires_grad=True)
    x = Tensor(np.ones((16, 64), np.float32))
    h, _ = scan(lambda h, _: ((h @ w).tanh() + x, None), x, length=length, checkpoint=checkpoint)
    (h * h).sum().backward()
    return w.grad


def test_a_checkpointed_gradient_takes_the_root_of_the_memory():
    step = 16 * 64 * 4
    peaks = {n: program(chain(n, True)).peak_bytes() for n in (64, 1024)}
    plain = program(chain(1024, False)).peak_bytes()
    assert plain > 1024 * step
    assert peaks[1024] < 0.2 * plain
    assert peaks[1024] < 5 * peaks[64]  # 16 times the steps
    np.testing.assert_allclose(chain(100, True).numpy(), chain(100, False).numpy(), rtol=1e-4)
    np.testing.assert_allclose(chain(100, 7).numpy(), chain(100, False).numpy(), rtol=1e-4)


def test_the_kernels_do_not_depend_on_the_count():
    kernels = [{k.kernel.key() for k in program(chain(n, False)).kernels()} for n in (16, 4096)]
    assert len(kernels[0]) == len(kernels[1])


def test_gradients_accumulate_inside_one_graph():
    rng = np.random.default_rng(1)
    x, y = (Tensor(rng.standard_normal((8, 4, 3)).astype(np.float32)) for _ in range(2))
    w = Tensor(rng.standard_normal((3, 3)).astype(np.float32))

    def loss(w, x, y):
        return ((x @ w - y) ** 2).mean()

    @jit
    def accumulated(w, x, y):
        def part(total, batch):
            return total + grad(loss)(w, *batch), None

        return scan(part, w.zeros_like(), (x, y))[0] / 8

    whole = grad(loss)(w, x.reshape(32, 3), y.reshape(32, 3))
    for _ in range(3):
        np.testing.assert_allclose(accumulated(w, x, y).numpy(), whole.numpy(), rtol=1e-5)


def test_a_scan_under_vmap_under_jit():
    def total(start, xs):
        return scan(lambda h, x: (h * 0.5 + x, h), start, xs)

    start, xs = np.array([1.0, 2.0], np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    mapped = jit(vmap(total))
    for _ in range(3):
        last, seen = mapped(Tensor(start), Tensor(xs))
    for i in range(2):
        h = start[i]
        for j in range(3):
            assert seen.numpy()[i, j] == pytest.approx(h)
            h = h * 0.5 + xs[i, j]
        assert last.numpy()[i] == pytest.approx(h)
    slope = vmap(grad(lambda s, xs: total(s, xs)[0]))(Tensor(start), Tensor(xs))
    np.testing.assert_allclose(slope.numpy(), [0.125, 0.125])


# --- a function that runs once for many -----------------------------------------------------------

ROWS = np.array([[-2.0, -1.0], [0.0, 1.0], [2.0, 3.0]], np.float32)
WEIGHT = Tensor([1.0, 2.0])
LOOKS = {
    "item": lambda x: x * x.sum().item(),
    "if": lambda x: x if x.sum() > 0 else -x,
    "int": lambda x: x * int(x[0]),
    "numpy": lambda x: Tensor(x.numpy()),
    "mask": lambda x: x[x > 0],
    "unique": lambda x: x.unique(),
    "nonzero": lambda x: x.nonzero(),
    "in a jitted function": jit(lambda x: x * x.sum().item()),
    "under grad": grad(lambda x: (x * x.sum().item()).sum()),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_value_that_differs_cannot_be_looked_at(look, device):
    with pytest.raises(TraceError, match="vmap of .*from example to example"):
        vmap(look)(Tensor(ROWS))
    with pytest.raises(TraceError, match="scan of .*from step to step"):
        scan(lambda h, x: (h, look(x)), Tensor(0.0), Tensor(ROWS))
    with pytest.raises(TraceError, match="scan of .*from step to step"):
        scan(lambda h, _: (look(h), None), Tensor(ROWS[2]), length=2)
    with pytest.raises(TraceError, match="vmap of"):
        grad(lambda xs: vmap(look)(xs).sum())(Tensor(ROWS))


def test_a_value_that_all_runs_share_may_be_looked_at(device):
    want = (ROWS * 3).tolist()
    assert vmap(lambda x: x * WEIGHT.sum().item())(Tensor(ROWS)).tolist() == want
    shared = vmap(lambda x, w: x * w.sum().item() if w[0] > 0 else x, in_axes=(0, None))
    assert shared(Tensor(ROWS), WEIGHT).tolist() == want
    last, _ = scan(lambda h, x: (h + x * WEIGHT.sum().item(), None), Tensor(0.0), Tensor([1.0, 2]))
    assert last.item() == 9
    assert vmap(lambda x: x + len(repr(WEIGHT)))(Tensor(ROWS)).shape == (3, 2)


def test_a_tensor_kept_beyond_the_call_has_no_value(device):
    kept = []
    assert vmap(lambda x: (kept.append(x * 2), x)[1])(Tensor(ROWS)).tolist() == ROWS.tolist()
    with pytest.raises(TraceError, match="return it to have it outside"):
        kept[0].numpy()
    assert (Tensor([1.0]) + 1).tolist() == [2]


@pytest.mark.parametrize("write", [
    lambda w, x: w.add_(x),
    lambda w, x: w.assign(x),
    lambda w, x: w[:1].fill_(7),
    lambda w, x: w.__setitem__(0, 3.0),
    lambda w, x: w.zero_(),
], ids=["add_", "assign", "view", "setitem", "zero_"])  # fmt: skip
@pytest.mark.parametrize("compiled", [False, True])
def test_writing_to_what_stands_outside_is_refused(write, compiled, device):
    w = Tensor([1.0, 2.0])

    def f(x):
        write(w, x)
        return x * 1

    f = jit(f) if compiled else f
    with pytest.raises(TraceError, match="vmap of .*from outside.*return the new value"):
        vmap(f)(Tensor(ROWS))
    with pytest.raises(TraceError, match="scan of .*from outside.*into the carry"):
        scan(lambda h, x: (h, f(x)), Tensor(0.0), Tensor(ROWS))
    assert w.tolist() == [1, 2]


def test_running_statistics_are_refused_and_fixed_ones_used(device):
    norm, x = nn.BatchNorm1d(2), Tensor(np.ones((3, 4, 2), np.float32))
    with pytest.raises(TraceError, match="running statistic"):
        vmap(norm)(x)
    with pytest.raises(TraceError, match="running statistic"):
        scan(lambda h, batch: (h, norm(batch)), Tensor(0.0), x)
    assert norm.running_mean.tolist() == [0, 0]
    norm.eval()
    want = norm(x.reshape(12, 2)).reshape(3, 4, 2)
    np.testing.assert_allclose(vmap(norm)(x).numpy(), want.numpy())


def test_an_argument_that_is_written_to_must_be_returned(device):
    def lost(x):
        x += 1
        return x.sum()

    def returned(x):
        x += 1
        return x

    with pytest.raises(TraceError, match="writes to an argument"):
        vmap(lost)(Tensor(ROWS))
    assert vmap(returned)(Tensor(ROWS)).tolist() == (ROWS + 1).tolist()

    def step(h, x):
        with no_grad():
            h.assign(h * 0.5 + x)
        return h, h

    last, seen = scan(step, Tensor(0.0), Tensor([1.0, 2.0]))
    assert last.item() == 2.5 and seen.tolist() == [1, 2.5]
    slope = grad(lambda xs: scan(step, Tensor(0.0), xs)[0] + xs.sum())(Tensor([1.0, 2.0]))
    assert slope.tolist() == [1, 1]  # through what no_grad wrote, none


def test_tensors_made_inside_are_written_to_at_will(device):
    def f(x):
        total = Tensor.zeros(2)
        with no_grad():
            total += x
        total[0] = x[1]
        leaf = (x * 2).requires_grad_()
        (leaf * leaf).sum().backward()
        return total, leaf.grad

    total, slope = vmap(f)(Tensor(ROWS))
    assert total.tolist() == ROWS[:, [1, 1]].tolist()
    assert slope.tolist() == (4 * ROWS).tolist()


# --- random numbers -------------------------------------------------------------------------------


def test_random_numbers_of_many_runs_are_those_of_one_draw(device):
    def numbers(function):
        Tensor.manual_seed(3)
        drawn = function()
        after = Tensor.rand(1).item()
        return np.reshape(drawn.tolist(), 6).tolist(), after

    draw = lambda *_: Tensor.rand(2)  # noqa: E731
    one = lambda *_: Tensor.rand(1)[0]  # noqa: E731
    plain = numbers(lambda: Tensor.rand(6))
    rows, compiled = Tensor(ROWS), jit(vmap(draw, randomness="different"))
    assert numbers(lambda: vmap(draw, randomness="different")(rows)) == plain
    nested = vmap(vmap(one, randomness="different"), randomness="different")
    assert numbers(lambda: nested(rows)) == plain
    assert numbers(lambda: scan(lambda h, x: (h, draw()), Tensor(0.0), length=3)[1]) == plain
    for _ in range(3):
        assert numbers(lambda: compiled(rows)) == plain


def test_vmap_wants_to_know_which_random_numbers(device):
    drop = nn.Dropout(0.5)
    with pytest.raises(TraceError, match="randomness='different'"):
        vmap(drop)(Tensor(ROWS))
    same = vmap(lambda x: x * 0 + Tensor.randn(2), randomness="same")(Tensor(ROWS)).tolist()
    assert same[0] == same[1] == same[2]
    ones = vmap(drop, randomness="different")(Tensor.ones(2, 64)).numpy()
    assert set(ones.reshape(-1)) == {0, 2} and (ones[0] != ones[1]).any()
    with pytest.raises(ArgumentError, match="'sometimes'"):
        vmap(drop, randomness="sometimes")


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_scan_of_no_steps_gives_the_carry_back(checkpoint, device):
    f = lambda h, x: (h * x.sum(), h + x)  # noqa: E731
    last, seen = scan(f, Tensor(3.0), Tensor.zeros(0, 2), checkpoint=checkpoint)
    assert last.item() == 3 and seen.shape == (0, 2) and seen.tolist() == []
    assert scan(lambda h, _: (h + 1, None), 3.0, length=0)[0].item() == 3
    slope = grad(lambda h: scan(f, h, Tensor.zeros(0, 2), checkpoint=checkpoint)[0])
    assert slope(Tensor(3.0)).item() == 1


def test_misuse_is_told_in_the_words_of_the_caller(device):
    rows = Tensor(ROWS)
    with pytest.raises(ShapeError, match="vmap: argument 1 has 2 examples, argument 0 has 3"):
        vmap(lambda x, y: x)(rows, WEIGHT)
    with pytest.raises(ShapeError, match="vmap: argument 0: axis 5"):
        vmap(lambda x: x, in_axes=5)(rows)
    with pytest.raises(ShapeError, match="vmap: out_axes: axis 5"):
        vmap(lambda x: x, out_axes=5)(rows)
    with pytest.raises(ShapeError, match="vmap: no argument has a tensor"):
        vmap(lambda x: x)(2.0)
    with pytest.raises(ShapeError, match=r"scan: tensor 0 .* float32\[\] .* float32\[2\]"):
        scan(lambda h, x: (x, None), Tensor(0.0), rows)
