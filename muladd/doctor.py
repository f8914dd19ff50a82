"""What this machine has and what muladd makes of it; and how large muladd itself is."""
from __future__ import annotations

import ast
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from muladd import config, device
from muladd.errors import MuladdError
from muladd.tensor.backend import INTERPRETER

PACKAGE = Path(__file__).parent


def examine(size: bool = False) -> dict[str, Any]:
    """Everything that a report of a problem should say, as plain data.

    "healthy" is false if the default device cannot be opened.
    """
    devices = {name: _state(name) for name in device.names()} | {INTERPRETER: "ready"}
    wanted = config.get("DEVICE")
    report: dict[str, Any] = {
        "healthy": devices.get(wanted) == "ready",
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "packages": {p: _installed(p) for p in ("muladd", "numpy", "llvmlite", "pyopencl")},
        "machine": _machine(),
        "device": wanted,
        "devices": devices,
        "settings": {
            name: {"value": str(config.get(name)), "values": row.kind, "meaning": row.doc}
            for name, row in config.SETTINGS.items()
        },
    }
    if size:
        report["size"] = lines_per_room()
    return report


def _state(name: str) -> str:
    """'ready', or why the device cannot be opened."""
    try:
        device.get(name)
    except (MuladdError, ImportError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "ready"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    host = device.Machine.host()
    return {
        "cpu": host.cpu, "cores": host.cores, "vector bits": host.vector_bits,
        "float32 lanes": host.float_lanes, "fma": host.fma, "int8 dot": host.vnni,
        "bfloat16 dot": host.bf16_dot, "L1 KiB": host.l1 >> 10, "L2 KiB": host.l2 >> 10,
        "L3 KiB": host.l3 >> 10,
    }  # fmt: skip


# --- size --------------------------------------------------------------------------------------


def lines_per_room() -> dict[str, dict[str, int]]:
    """Per room: files, lines, and lines of code (neither blank, nor comment, nor docstring)."""
    rooms: dict[str, dict[str, int]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        source = path.read_text()
        counts = rooms.setdefault(room, {"files": 0, "lines": 0, "code": 0})
        counts["files"] += 1
        counts["lines"] += source.count("\n")
        counts["code"] += code_lines(source)
    return rooms


def code_lines(source: str) -> int:
    """Lines that hold code: docstrings, comments and blank lines are not counted."""
    quoted: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                quoted |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in quoted
        for number, line in enumerate(source.splitlines(), 1)
    )


# --- for people --------------------------------------------------------------------------------


def as_text(report: dict[str, Any]) -> str:
    packages = ", ".join(f"{p} {v or 'absent'}" for p, v in report["packages"].items())
    out = [
        f"Python {report['python']} on {report['system']}",
        packages,
        "",
        "machine",
        *(f"  {name:15} {value}" for name, value in report["machine"].items()),
        "",
        f"devices (DEVICE={report['device']})",
        *(f"  {name:15} {state}" for name, state in report["devices"].items()),
        "",
        "settings (environment variables, or config.context)",
        *(f"  {name:11} {row['value'] or '-':9} {row['values']:13} {row['meaning']}"
          for name, row in report["settings"].items()),
    ]  # fmt: skip
    if "size" in report:
        out += ["", f"  {'room':14} {'files':>6} {'lines':>7} {'code':>7}"]
        rows = report["size"].items()
        out += [f"  {room:14} {c['files']:6} {c['lines']:7} {c['code']:7}" for room, c in rows]
        total = {k: sum(c[k] for _, c in rows) for k in ("files", "lines", "code")}
        out.append(f"  {'total':14} {total['files']:6} {total['lines']:7} {total['code']:7}")
    return "\n".join(out)
