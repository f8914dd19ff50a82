"""Linear algebra: factorisations, systems of equations, determinants, singular values.

Each walks over columns or pairs of columns of matrices of static size, vectorised over all leading
axes; they are meant for the sizes that training meets (optimisers, whitening), not for thousands.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from muladd.errors import ShapeError
from muladd.ir import dtype as dt
from muladd.tensor import graph as g
from muladd.tensor.handle import Handle
from muladd.tensor.operands import check_floating

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class QR(NamedTuple):
    """Orthonormal columns and an upper triangle."""

    Q: Tensor
    R: Tensor


class SignLogarithm(NamedTuple):
    """What slogdet returns."""

    sign: Tensor
    logabsdet: Tensor


class SVD(NamedTuple):
    """U, the singular values in descending order, and the transpose of V."""

    U: Tensor
    S: Tensor
    Vh: Tensor


class Decomposition(Handle):
    """Differentiable, because the steps are (svd: where the singular values are distinct)."""

    __slots__ = ()

    def cholesky(self, upper: bool = False) -> Tensor:
        """The lower triangle L with L L^T = self, for symmetric positive definite matrices.

        NaN where the matrix is not positive definite.
        """
        n = _square("cholesky", self)
        x: Any = self
        rows = _positions(x, n)
        done: Any = None
        for j in range(n):
            column = x[..., :, j]
            if done is not None:
                column = column - (done * done[..., j : j + 1, :]).sum(-1)
            root = column[..., j : j + 1].sqrt()
            column = (rows >= j).where(column / root, 0.0).unsqueeze(-1)
            done = column if done is None else done.cat(column, dim=-1)
        return done.mT if upper else done

    def qr(self, mode: str = "reduced") -> QR:
        """Householder's factorisation: Q with orthonormal columns, R upper triangular."""
        check_floating("qr", self)
        if self.ndim < 2 or mode not in ("reduced", "complete", "r"):
            raise ShapeError(f"qr: mode={mode!r} of {list(self.shape)}; expected a matrix and "
                             "'reduced', 'complete' or 'r'")  # fmt: skip
        m, n = (int(v) for v in self.shape[-2:])  # type: ignore[arg-type]
        r: Any = self.clone()
        q: Any = self.eye(m, dtype=self.dtype, device=self.device)
        q = q.expand((*self.shape[:-2], m, m))
        rows = _positions(r, m)
        for j in range(min(m - 1, n)):
            column = (rows >= j).where(r[..., :, j], 0.0)
            length = column.norm(2, -1, keepdim=True)
            head = column[..., j : j + 1]
            sign = (head < 0).where(-1.0, head.ones_like())
            v = column + (rows == j).where(sign * length, 0.0)
            square = (v * v).sum(-1, keepdim=True)
            empty = square == 0
            factor = empty.where(0.0, 2.0 / empty.where(1.0, square)).unsqueeze(-1)
            v = v.unsqueeze(-1)
            r = r - v * factor * (v * r).sum(-2, keepdim=True)
            q = q - (q.matmul(v)) * factor * v.mT
        k = m if mode == "complete" else min(m, n)
        return QR(q[..., :, :k], r[..., :k, :].triu())

    def lu_solve_with(self, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(solution X of self X = other, log |det|, sign of det) by Gauss-Jordan with pivoting."""
        n = _square("solve", self)
        a, b = self, other
        rows = _positions(self, n)
        logarithm: Any = None
        sign: Any = None
        for j in range(n):
            column = a[..., :, j]
            candidates = (rows >= j).where(column.detach().abs(), -1.0)
            pivot = candidates.argmax(-1, keepdim=True)  # (..., 1)
            here, there = rows == j, rows == pivot
            a, b = (_swapped(x, here, there) for x in (a, b))
            value = a[..., j : j + 1, j : j + 1]
            magnitude = value.abs().log()[..., 0, 0]
            flips = (pivot[..., 0] != j) != (value[..., 0, 0] < 0)
            step = flips.where(-1.0, magnitude.ones_like()) * (value[..., 0, 0] != 0)
            logarithm = magnitude if logarithm is None else logarithm + magnitude
            sign = step if sign is None else sign * step
            top, right = a[..., j : j + 1, :] / value, b[..., j : j + 1, :] / value
            factor = here.unsqueeze(-1).where(0.0, a[..., :, j : j + 1])
            a = here.unsqueeze(-1).where(top, a - factor * top)
            b = here.unsqueeze(-1).where(right, b - factor * right)
        return b, logarithm, sign

    def solve(self, other: Tensor) -> Tensor:
        """X with self @ X = other, for square matrices (inf or NaN where singular)."""
        n = _square("solve", self)
        vector = other.ndim == 1 or other.shape == self.shape[:-1] and other.ndim > 1
        right = other.unsqueeze(-1) if vector else other
        if right.shape[-2] != n:
            raise ShapeError(
                f"solve: {list(self.shape)} and {list(other.shape)}: expected {n} rows on the right"
            )
        lead = g.broadcast_shapes("solve", self.shape[:-2], right.shape[:-2])
        a = self.expand((*lead, n, n))
        right = right.expand((*lead, *right.shape[-2:]))
        result = a.lu_solve_with(right)[0]
        return result.squeeze(-1) if vector else result

    def triangular_solve(
        self, other: Tensor, upper: bool = True, unitriangular: bool = False
    ) -> Tensor:
        """X with self @ X = other, where self is triangular; the other triangle is not read."""
        n = _square("triangular_solve", self)
        rows = _positions(self, n).unsqueeze(-1)
        x: Any = other
        for j in range(n - 1, -1, -1) if upper else range(n):
            row = x[..., j : j + 1, :]
            if not unitriangular:
                row = row / self[..., j : j + 1, j : j + 1]
            rest = (rows < j) if upper else (rows > j)
            x = (rows == j).where(row, x - rest.where(self[..., :, j : j + 1], 0.0) * row)
        return x

    def inverse(self) -> Tensor:
        """The matrix X with self @ X = 1."""
        n = _square("inverse", self)
        eye: Any = self.eye(n, dtype=self.dtype, device=self.device)
        return self.lu_solve_with(eye.expand(self.shape))[0]

    def det(self) -> Tensor:
        """The determinant: the product of the pivots."""
        n = _square("det", self)
        a: Any = self
        rows = _positions(self, n)
        result: Any = None
        for j in range(n):
            candidates = (rows >= j).where(a[..., :, j].detach().abs(), -1.0)
            pivot = candidates.argmax(-1, keepdim=True)
            a = _swapped(a, rows == j, rows == pivot)
            value = a[..., j, j]
            step = (pivot[..., 0] != j).where(-value, value)
            result = step if result is None else result * step
            safe = (value == 0).where(1.0, value)
            top = a[..., j : j + 1, :] / safe.unsqueeze(-1).unsqueeze(-1)
            below = (rows > j).unsqueeze(-1).where(a[..., :, j : j + 1], 0.0)
            a = a - below * top
        if result is None:
            return self.sum((-2, -1)) + 1
        return result

    def slogdet(self) -> SignLogarithm:
        """(sign, logarithm of the magnitude) of the determinant."""
        n = _square("slogdet", self)
        eye: Any = self.eye(n, dtype=self.dtype, device=self.device)
        _, logarithm, sign = self.lu_solve_with(eye.expand(self.shape)[..., :, :1])
        return SignLogarithm(sign, logarithm)

    def logdet(self) -> Tensor:
        """The logarithm of the determinant; NaN where it is negative."""
        sign, logarithm = self.slogdet()
        return (sign < 0).where(float("nan"), logarithm)

    def svd(self, full_matrices: bool = False, sweeps: int | None = None) -> SVD:
        """Singular values by one-sided Jacobi rotations (Hestenes, 1958).

        All pairs of columns are rotated once per sweep, n/2 of them at a time. full_matrices is
        not offered.
        """
        check_floating("svd", self)
        if self.ndim < 2 or full_matrices:
            raise ShapeError(
                f"svd: expected a matrix and full_matrices=False, got {list(self.shape)}; the "
                "complete factor is not offered"
            )
        m, n = (int(v) for v in self.shape[-2:])  # type: ignore[arg-type]
        if m < n:
            u, s, vh = self.mT.svd(False, sweeps)
            return SVD(vh.mT, s, u.mT)
        return _jacobi(self, m, n, sweeps)

    def svdvals(self) -> Tensor:
        """The singular values in descending order."""
        return self.svd().S

    def pinverse(self, rcond: float = 1e-6) -> Tensor:
        """The pseudo-inverse; singular values below rcond times the greatest count as 0."""
        u, s, vh = self.svd()
        small = s <= s.amax(-1, keepdim=True) * rcond
        inverse = small.where(0.0, 1 / small.where(1.0, s))
        return (vh.mT * inverse.unsqueeze(-2)).matmul(u.mT)


def _square(who: str, x: Handle) -> int:
    check_floating(who, x)
    n = x.shape[-1] if x.ndim else None
    if x.ndim < 2 or x.shape[-2] != n or not isinstance(n, int):
        raise ShapeError(f"{who}: expected square matrices of static size, got {list(x.shape)}")
    return n


def _positions(x: Any, n: int) -> Any:
    return type(x).arange(n, dtype=dt.int64, device=x.device)


def _swapped(x: Any, here: Any, there: Any) -> Any:
    """Two rows exchanged; here (n,) and there (..., n) mark one row each."""
    mark_here, mark_there = here.unsqueeze(-1), there.unsqueeze(-1)
    first = mark_here.where(x, 0.0).sum(-2, keepdim=True)
    second = mark_there.where(x, 0.0).sum(-2, keepdim=True)
    return mark_here.where(second, mark_there.where(first, x))


def _jacobi(x: Any, m: int, n: int, sweeps: int | None) -> SVD:
    width = n + n % 2
    a = x if width == n else x.pad((0, 1))
    v = type(x).eye(width, dtype=x.dtype, device=x.device).expand((*x.shape[:-2], width, width))
    rounds = 10 if x.dtype is dt.float64 else 7
    half = width // 2
    # a tournament: position 0 stays, the others move round, and i meets width - 1 - i
    turn = [0, width - 1, *range(1, width - 1)]
    for _ in range((sweeps or rounds) * max(width - 1, 1)):
        a, v = _rotated(a, v, half)
        a, v = (t[..., turn] if width > 2 else t for t in (a, v))
    s = a.norm(2, -2)
    order = s.argsort(-1, descending=True)[..., :n]
    s = s.gather(-1, order)
    columns = order.unsqueeze(-2)
    u = a.gather(-1, columns.expand((*x.shape[:-2], m, n)))
    v = v.gather(-1, columns.expand((*x.shape[:-2], width, n)))[..., :n, :]
    zero = s == 0
    u = u / zero.where(1.0, s).unsqueeze(-2)
    return SVD(u, s, v.mT)


def _rotated(a: Any, v: Any, half: int) -> tuple[Any, Any]:
    """Columns i and width-1-i made orthogonal, for all i < width/2 at once."""
    p, q = a[..., :half], a[..., half:].flip(-1)
    alpha, beta = (p * p).sum(-2, keepdim=True), (q * q).sum(-2, keepdim=True)
    gamma = (p * q).sum(-2, keepdim=True)
    still = gamma == 0
    zeta = (beta - alpha) / (still.where(1.0, gamma) * 2)
    sign = (zeta < 0).where(-1.0, zeta.ones_like())
    tangent = sign / (zeta.abs() + (zeta * zeta + 1).sqrt())
    tangent = still.where(0.0, tangent)
    cosine = (tangent * tangent + 1).rsqrt()
    sine = cosine * tangent

    def turned(x: Any) -> Any:
        left, right = x[..., :half], x[..., half:].flip(-1)
        new_left, new_right = left * cosine - right * sine, left * sine + right * cosine
        return new_left.cat(new_right.flip(-1), dim=-1)

    return turned(a), turned(v)
