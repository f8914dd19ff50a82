"""A million nodes, and chains 50,000 deep: built, rewritten, differentiated, without recursion."""
import pytest

from muladd.ir import Storage, const, make, ops, toposort
from muladd.ir import dtype as dt
from muladd.rewrite.canonical import canonicalise
from muladd.transform import gradient

LEAF = make(ops.INPUT, (), Storage((4,), dt.float32))
OTHER = make(ops.INPUT, (), Storage((4,), dt.float32))
ONE = const(1.0, dt.float32, (4,))


def lattice(nodes):
    """Every node used twice; half of them on one chain."""
    a, b = LEAF, OTHER
    for i in range(nodes // 2):
        a, b = make(ops.ADD, (a, b)), make(ops.MUL, (b, LEAF if i % 3 else a))
    return make(ops.ADD, (a, b))


@pytest.mark.parametrize(
    "nodes", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow, id="a million")]
)
def test_many_nodes(nodes):
    graph = lattice(nodes)
    assert len(toposort([graph])) > nodes
    assert canonicalise((graph,))[0].shape == (4,)
    (slope,) = gradient([graph], [LEAF], [ONE])
    assert len(toposort([slope])) < 5 * nodes


@pytest.mark.slow
def test_a_chain_50_000_deep():
    x = LEAF
    for _ in range(50_000):
        x = make(ops.SQRT, (make(ops.ADD, (x, ONE)),))
    (again,) = canonicalise((x,))
    (slope,) = gradient([again], [LEAF], [ONE])
    assert canonicalise((slope,))[0].shape == (4,)
