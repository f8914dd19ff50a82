"""The documentation is true: every Python block runs, every link leads somewhere."""
from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

import muladd
from muladd import config
from muladd.ir import dtype as dt

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(p.relative_to(ROOT)) for p in PAGES]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def blocks(page: Path) -> list[tuple[int, str]]:
    """(line, source) of each Python block."""
    text = page.read_text()
    return [(text[: m.start()].count("\n") + 1, m.group(1)) for m in BLOCK.finditer(text)]


WITH_CODE = [n for n, p in zip(NAMES, PAGES) if blocks(p)]


@pytest.mark.parametrize("name", WITH_CODE)
def test_the_examples_of_a_page_run_in_order(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = ROOT / name
    namespace: dict = {"__name__": f"docs_{page.stem}"}
    for line, source in blocks(page):
        # the file's own line numbers, so that a failure points into the page
        tree = ast.increment_lineno(ast.parse(source, str(page)), line)
        exec(compile(tree, str(page), "exec"), namespace)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            found = (page.parent / target).resolve()
            assert found.exists(), f"{name} links to {target}, which is not there"
            if page.parent.name == "docs":
                assert found.parent == page.parent, f"{name} links to {target}, outside the site"


def test_every_page_is_in_the_sites_contents():
    contents = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in contents, f"mkdocs.yml does not list {page.name}"


def test_the_table_of_settings_is_the_codes():
    """Paste what this expects into docs/environment.md after changing a setting."""
    rows = [
        f"| `{row.name}` | {row.kind.replace('|', chr(92) + '|')} | {_shown(row.default)} "
        f"| {row.doc} |"
        for row in config.SETTINGS.values()
    ]
    table = (ROOT / "docs/environment.md").read_text().split("<!-- settings -->")[1]
    assert table.strip().splitlines()[2:] == rows


def test_the_tables_of_promotion_are_the_codes():
    """The pairs in the tutorial's two tables, and its rule for all others."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in (ROOT / "docs/tutorial.md").read_text().splitlines()
            if re.match(r"\| (\w+ )?\|.*\b(int|float|bfloat)\d", line)]  # fmt: skip
    pairs: dict[tuple[str, str], str] = {}
    columns: list[str] = []
    for name, *cells in rows:
        columns = columns if name else cells
        pairs |= {(name, column): cell for column, cell in zip(columns, cells) if name}
    assert len(pairs) == 20
    kinds = {"b": 0, "u": 1, "i": 1, "f": 2}  # bool < integer < float, and the wider of a kind
    for a, b in itertools.product(dt.ALL, dt.ALL):
        wanted = pairs.get((a.name, b.name)) or pairs.get((b.name, a.name)) \
            or max(a, b, key=lambda d: (kinds[d.kind], d.bits)).name  # fmt: skip
        assert dt.promote(a, b).name == wanted, (a.name, b.name)


def _shown(default: object) -> str:
    text = str(int(default) if isinstance(default, bool) else default)
    return text or "empty"


def test_the_lines_of_a_backend_are_counted_right():
    page = (ROOT / "docs/new-backend.md").read_text()
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", page, re.M)
    lines = {name: len((ROOT / "muladd" / name).read_text().splitlines()) for name, _ in rows}
    assert rows and {name: int(count) for name, count in rows} == lines


def test_the_front_door_has_what_it_names():
    assert all(hasattr(muladd, name) for name in muladd.__all__)
