"""The house rules, proven: floors, rooms, first lines, file lengths, whose arithmetic runs."""
from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "muladd"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(p.relative_to(ROOT)) for p in MODULES]

# A floor imports the floors below it, never above; two rooms of one floor never import each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "config"),
    ("garbage", "options", "progress", "signals", "cache"),
    ("ir", "device", "store"),
    ("interp", "rewrite"),
    ("transform", "loop"),
    ("schedule", "codegen"),
    ("compile",),
    ("tensor",),
    ("nn", "formats", "job", "data"),
    ("llm", "market", "viz", "torch", "onnx", "fuzz", "demo", "doctor"),
    ("bench",),
    ("tune",),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
MOST_LINES = 700
MOST_COLUMNS = 100


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[tuple[int, str]]:
    """(line, room) of each import of muladd in a file, wherever in the file it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append((node.lineno, "<relative>"))
        elif isinstance(node, ast.ImportFrom) and node.module == "muladd":
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("muladd."):
            found.append((node.lineno, (node.module or "").split(".")[1]))
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("muladd.")]
            found += [(node.lineno, name.split(".")[1]) for name in names]
    return found


def breaches_of_floors(path: Path) -> list[str]:
    here = room_of(path)
    out = []
    for line, there in imports_of(path):
        if there == here or (here in ("errors", "config") and there in ("errors", "config")):
            continue
        if there not in FLOOR_OF:
            # names of the public package (`from muladd import Tensor`): applications only
            if FLOOR_OF[here] < FLOOR_OF["llm"] or there == "<relative>":
                out.append(f"{path.name}:{line}: imports {there!r} from the package's front door")
        elif FLOOR_OF[there] > FLOOR_OF[here]:
            out.append(f"{path.name}:{line}: {here} (floor {FLOOR_OF[here]}) imports {there} above")
        elif FLOOR_OF[there] == FLOOR_OF[here]:
            out.append(f"{path.name}:{line}: {here} imports {there}, a room of its own floor")
    return out


def test_every_room_has_its_floor():
    rooms = {room_of(p) for p in MODULES} - {"__init__"}
    assert not rooms - FLOOR_OF.keys(), "rooms without a floor: add them to FLOORS"


@pytest.mark.parametrize("name", [n for n in NAMES if n != "muladd/__init__.py"])
def test_a_floor_never_imports_the_one_above(name):
    assert not breaches_of_floors(ROOT / name)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_of_a_module_is_its_purpose(name):
    docstring = ast.get_docstring(ast.parse((ROOT / name).read_text()))
    assert docstring, "a module opens with what it is and why it exists"
    first = docstring.splitlines()[0].strip()
    assert len(first) >= 15, f"this first line says too little: {first!r}"
    assert first[-1] in ".:?)", f"the purpose is one sentence, ending in a full stop: {first!r}"


def test_the_map_of_the_largest_room_names_every_file():
    told = ast.get_docstring(ast.parse((PACKAGE / "llm" / "__init__.py").read_text()))
    files = {p.name for p in (PACKAGE / "llm").rglob("*.py")} - {"__init__.py"}
    assert files == set(re.findall(r"\w+\.py", told))


@pytest.mark.parametrize("name", NAMES)
def test_files_stay_readable(name):
    lines = (ROOT / name).read_text().splitlines()
    assert len(lines) <= MOST_LINES, "look for the second room in it"
    wide = [i for i, line in enumerate(lines, 1) if len(line) > MOST_COLUMNS]
    assert not wide, f"lines over {MOST_COLUMNS} columns: {wide}"


@pytest.mark.parametrize("name", NAMES)
def test_no_function_inside_of_another_calls_itself(name):
    """Its own cell would keep it, and with it all tensors it closes over, until the collector
    runs: give such a function what it needs, and put it outside."""
    functions = [n for n in ast.walk(ast.parse((ROOT / name).read_text()))
                 if isinstance(n, ast.FunctionDef)]  # fmt: skip
    inside = [n for f in functions for n in ast.walk(f)
              if isinstance(n, ast.FunctionDef) and n is not f]  # fmt: skip
    circles = {n.name for n in inside for m in ast.walk(n)
               if isinstance(m, ast.Name) and m.id == n.name}  # fmt: skip
    assert not circles, f"functions that refer to themselves: {circles}"


# --- whose arithmetic runs ----------------------------------------------------------------------

# The interpreter is NumPy on purpose; a benchmark's peers are other people's code.
MAY_USE_LIBRARIES = {"interp", "bench"}
LIBRARY_ARITHMETIC = {
    "matmul", "dot", "vdot", "inner", "einsum", "tensordot", "convolve", "correlate", "linalg",
    "multi_dot", "fft",
}  # fmt: skip
NUMPY_NAMES = {"np", "numpy", "scipy", "torch"}


def library_arithmetic(source: str) -> list[str]:
    out = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in LIBRARY_ARITHMETIC:
            if isinstance(node.value, ast.Name) and node.value.id in NUMPY_NAMES:
                out.append(f"line {node.lineno}: {node.value.id}.{node.attr}")
    return out


@pytest.mark.parametrize("name", [n for n in NAMES if n.split("/")[1] not in MAY_USE_LIBRARIES])
def test_arithmetic_comes_from_our_own_kernels(name):
    assert not library_arithmetic((ROOT / name).read_text())


def test_the_check_for_library_arithmetic_sees_it():
    assert library_arithmetic("import numpy as np\nx = np.linalg.norm(y)") == ["line 2: np.linalg"]
    assert not library_arithmetic("x = y.dot(z)")  # Tensor.dot is ours


# --- what must not stand anywhere ----------------------------------------------------------------

FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
OPTIONAL = {"torch", "pyopencl", "onnx", "onnxruntime", "cuda", "scipy", "safetensors", "tinygrad",
            "jax"}  # fmt: skip
PEERS = {"torch", "onnx", "onnxruntime", "jax"}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_unpickles_and_no_peer_is_imported(name):
    """pickle runs code; torch and its like may only be peers of a benchmark, or drivers."""
    path = ROOT / name
    allowed = {"bench": PEERS, "device": {"pyopencl", "cuda"}, "torch": {"torch"}}
    refused = FORBIDDEN_IMPORTS | (OPTIONAL - allowed.get(room_of(path), set()))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            tops = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            tops = {(node.module or "").split(".")[0]}
        else:
            continue
        assert not tops & refused, f"line {node.lineno} imports {sorted(tops & refused)}"


def tracked_text() -> list[Path]:
    folders = ("muladd", "tests", "docs", "examples", ".ci")
    files = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
    files += [ROOT / "README.md", ROOT / "pyproject.toml"]
    kinds = (".py", ".md", ".toml", ".yml", "")
    return [p for p in files if p.suffix in kinds and "__pycache__" not in p.parts]


def test_no_path_of_anybodys_machine_is_written_down():
    private = re.compile(r"(?<![\w.])/(?:work|home|root|Users)/\w")
    hits = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked_text()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if private.search(line) and "private = " not in line
    ]
    assert not hits
