"""A graph as files to look at: DOT for Graphviz, and an SVG of its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from muladd import config
from muladd.ir import Node, toposort
from muladd.ir.text import to_dot

_WIDTH, _HEIGHT, _GAP = 150, 34, 26
_MOST = 600  # nodes drawn; larger graphs are cut, and say so


def write(outputs: Sequence[Node], folder: Path | None = None) -> Path:
    """Write graph-N.dot and graph-N.svg into a folder (in the cache's); gives the SVG's path."""
    folder = folder or config.cache_folder() / "graphs"
    folder.mkdir(parents=True, exist_ok=True)
    number = sum(1 for _ in folder.glob("graph-*.svg")) + 1
    path = folder / f"graph-{number}.svg"
    path.with_suffix(".dot").write_text(to_dot(tuple(outputs)))
    path.write_text(svg(outputs))
    return path


def svg(outputs: Sequence[Node]) -> str:
    """A layered drawing: each node one row below the lowest of its sources."""
    order = toposort(outputs)
    cut = len(order) > _MOST
    order = order[:_MOST]
    level: dict[Node, int] = {}
    rows: dict[int, list[Node]] = {}
    for n in order:
        level[n] = 1 + max((level[s] for s in n.srcs), default=-1)
        rows.setdefault(level[n], []).append(n)
    place = {n: (20 + i * (_WIDTH + _GAP), 20 + r * (_HEIGHT + _GAP))
             for r, row in rows.items() for i, n in enumerate(row)}  # fmt: skip
    width = 40 + max((x for x, _ in place.values()), default=0) + _WIDTH
    height = 40 + max((y for _, y in place.values()), default=0) + _HEIGHT
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
             'font-family="monospace" font-size="11">']  # fmt: skip
    for n, (x, y) in place.items():
        for s in n.srcs:
            a, b = place[s]
            lines.append(f'<line x1="{a + _WIDTH // 2}" y1="{b + _HEIGHT}" x2="{x + _WIDTH // 2}" '
                         f'y2="{y}" stroke="#999"/>')  # fmt: skip
    for n, (x, y) in place.items():
        title = escape(f"{n.op.name} {n.dtype.name}{list(n.shape)}")
        lines.append(f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" '
                     'fill="#eef" stroke="#669"/>')  # fmt: skip
        lines.append(f'<text x="{x + 6}" y="{y + 14}">{escape(n.op.name)}</text>'
                     f'<text x="{x + 6}" y="{y + 28}" fill="#555">{title[:24]}</text>')  # fmt: skip
    if cut:
        lines.append(f'<text x="20" y="14">the first {_MOST} nodes</text>')
    return "\n".join([*lines, "</svg>"])
