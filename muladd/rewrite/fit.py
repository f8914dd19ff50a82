"""Where the polynomials of `transcendental.py` come from: `python -m muladd.rewrite.fit`.

So do those of `tensor/special.py` and `tensor/normal.py` that say so. Each is a weighted
least-squares fit at Chebyshev points in 60 digits, which comes within a factor of two of the best
possible greatest error. Coefficients are rounded to the element type from the lowest power upwards,
and the others are fitted again after each rounding, so that what one rounding spoils the rest
repair. Needs mpmath, which muladd itself does not.
"""
from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

Function = Callable[[Any], Any]


def fit(
    target: Function, weight: Function, low: Any, high: Any, degree: int, bits: int
) -> tuple[list[float], float]:
    """Coefficients (lowest power first) of a polynomial near `target` on [low, high], and the
    greatest weighted error. bits is 32 or 64: the float type the coefficients are rounded to."""
    from mpmath import cos, mp, mpf, pi

    points = 6 * degree + 12
    xs = [(low + high) / 2 + (high - low) / 2 * cos(pi * (i + mpf(1) / 2) / points)
          for i in range(points)]  # fmt: skip
    ws, ys = [abs(weight(x)) for x in xs], [target(x) for x in xs]
    fixed: list[Any] = []
    while len(fixed) <= degree:
        k, n = len(fixed), degree + 1 - len(fixed)
        rest = [y - sum(c * x**j for j, c in enumerate(fixed)) for x, y in zip(xs, ys)]
        rows = mp.matrix(points, n)
        right = mp.matrix(points, 1)
        for i, (x, w, r) in enumerate(zip(xs, ws, rest)):
            right[i] = w * r
            for j in range(n):
                rows[i, j] = w * x ** (k + j)
        solved = mp.lu_solve(rows.T * rows, rows.T * right)
        fixed.append(mpf(_round(solved[0], bits)))
    error = max(abs(w * (y - sum(c * x**j for j, c in enumerate(fixed))))
                for x, y, w in zip(xs, ys, ws))  # fmt: skip
    return [float(c) for c in fixed], float(error)


def fit_quotient(
    target: Function, low: Any, high: Any, above: int, below: int
) -> tuple[list[float], list[float], float]:
    """Coefficients (lowest power first) of two polynomials of the degrees `above` and `below` whose
    quotient is near `target` on [low, high], and the greatest relative error. The highest
    coefficient below is 1. Each turn fits above - target * below, weighted by the last turn's
    polynomial below (Loeb, 1957)."""
    from mpmath import cos, mp, mpf, pi, polyval

    points = 12 * (above + below)
    xs = [(low + high) / 2 + (high - low) / 2 * cos(pi * (i + mpf(1) / 2) / points)
          for i in range(points)]  # fmt: skip
    ys = [target(x) for x in xs]
    bottom = [mpf(1)] * points
    for _ in range(8):
        ws = [1 / (y * d) for y, d in zip(ys, bottom)]
        rows = mp.matrix([
            [w * x**j for j in range(above + 1)] + [-w * y * x**j for j in range(below)]
            for x, y, w in zip(xs, ys, ws)
        ])  # fmt: skip
        right = mp.matrix([w * y * x**below for x, y, w in zip(xs, ys, ws)])
        solved = list(mp.lu_solve(rows.T * rows, rows.T * right))
        top, under = solved[: above + 1], [*solved[above + 1 :], mpf(1)]
        bottom = [polyval(under[::-1], x) for x in xs]
    error = max(abs(polyval(top[::-1], x) / d / y - 1) for x, y, d in zip(xs, ys, bottom))
    return [float(c) for c in top], [float(c) for c in under], float(error)


def _round(value: Any, bits: int) -> float:
    return struct.unpack("<f", struct.pack("<f", float(value)))[0] if bits == 32 else float(value)


def digits(value: Any, exponents: tuple[int, ...]) -> list[float]:
    """A number as a sum of floats: a multiple of 2^exponents[0], of 2^exponents[1], ..., and
    whatever a float64 holds of the rest."""
    from mpmath import mpf, nint

    out = []
    for exponent in exponents:
        unit = mpf(2) ** exponent
        out.append(float(nint(value / unit) * unit))
        value -= out[-1]
    return [*out, float(value)]


def residue(shift: int) -> Any:
    """2^shift * 2/pi modulo 4, between -2 and 2."""
    from mpmath import mpf, nint, pi

    value = mpf(2) ** (shift + 1) / pi
    return value - 4 * nint(value / 4)


def words(count: int, bits: int) -> list[int]:
    """The binary digits of 1/(2 pi) behind the point, some in each whole number."""
    from mpmath import floor, mp, pi

    out = []
    with mp.workprec(count * bits + 100):
        rest = 1 / (2 * pi)
        for _ in range(count):
            rest *= 2**bits
            out.append(int(floor(rest)))
            rest -= out[-1]
    return out


def main() -> None:
    from mpmath import cos, erfc, exp, log, mp, mpf, pi, sin, sqrt

    mp.dps = 80
    half, root = mpf(1) / 2, sqrt(mpf(2))
    for bits, degree in ((32, 5), (64, 10)):
        show(f"exp2 float{bits}: (2^f - 1)/f",
             fit(lambda f: (2**f - 1) / f, lambda f: f / 2**f, -half, half, degree, bits))
        show(f"exp float{bits}: (e^r - 1)/r",
             fit(lambda r: (exp(r) - 1) / r, lambda r: r / exp(r), -log(2) / 2, log(2) / 2,
                 degree, bits))  # fmt: skip
    for bits, degree in ((32, 8), (32, 9), (64, 19), (64, 20)):
        show(f"log2 float{bits}: log2(1 + f)/f - 1",
             fit(lambda f: log(1 + f, 2) / f - 1, lambda f: f / log(1 + f, 2),
                 1 / root - 1, root - 1, degree, bits))  # fmt: skip
    end = (pi / 4 * mpf("1.04")) ** 2
    for bits, degree in ((32, 2), (64, 5), (64, 6)):
        show(f"sin float{bits}: (sin(r)/r - 1)/r^2 in z = r^2",
             fit(lambda z: (sin(sqrt(z)) / sqrt(z) - 1) / z, lambda z: z * sqrt(z) / sin(sqrt(z)),
                 mpf(0), end, degree, bits))  # fmt: skip
    for bits, degree in ((32, 3), (64, 6), (64, 7)):
        show(f"cos float{bits}: (cos(r) - 1)/r^2 in z = r^2",
             fit(lambda z: (cos(sqrt(z)) - 1) / z, lambda z: z / cos(sqrt(z)),
                 mpf(0), end, degree, bits))  # fmt: skip
    show("exp in float64 for float32: e^r",
         fit(exp, lambda r: exp(-r), -log(2) / 2, log(2) / 2, 6, 64))  # fmt: skip
    show("expm1 in float64 for float32: (e^r - 1)/r",
         fit(lambda r: (exp(r) - 1) / r, lambda r: r / (exp(r) - 1), -log(2) / 2, log(2) / 2,
             6, 64))  # fmt: skip
    above, below, error = fit_quotient(
        lambda a: exp(a * a / 2) * erfc(a / sqrt(2)) / 2, mpf(0), mpf("14.5"), 4, 5
    )
    show("normal tail / bell, above", (above, error))
    show("normal tail / bell, below", (below, error))
    print(digits(log(2), (-15,)), digits(log(2), (-41,)))
    for k in range(4):
        print(digits(residue(26 * k), (-27, -56)))
    print(digits(pi / 2, (-24, -50, -76, -102, -128)))
    print(words(50, 24))


def show(title: str, fitted: tuple) -> None:
    coefficients, error = fitted
    print(f"# {title}; greatest relative error {error:.2g}")
    print("".join(f"    {c!r},\n" for c in coefficients))


if __name__ == "__main__":
    main()
