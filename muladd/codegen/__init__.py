"""Renderers: loops to LLVM IR or C-like source, and source to objects."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Rendered:
    """A kernel as text: for LLVM, or for a driver that compiles a language like C."""

    source: str
    name: str
    scratch: int  # bytes of memory for each thread (or work item, or group) at work
