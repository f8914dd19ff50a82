"""Looking at what a tensor takes: the kernels that computing it would run."""
from __future__ import annotations

from typing import Any

from muladd.tensor import backend
from muladd.tensor.handle import Handle


class Explaining(Handle):
    """Methods that show what is about to run. Nothing does."""

    __slots__ = ()

    def kernels(self, *others: Handle) -> list[Any]:
        """The kernels that computing this tensor (and others, together) takes, in order.

        Each has .name, .kernel (what: stages), .plan (how: the schedule), .source and .assembly().
        Empty for what is computed already, and on the interpreter, which has no kernels.
        """
        roots, _ = backend.expand([t._value() for t in (self, *others)], self.device)
        roots = [r for r in roots if r.srcs]
        if self.device == backend.INTERPRETER or not roots:
            return []
        from muladd import compile as compiler

        graph, _ = compiler.parameters(tuple(roots))
        return compiler.compile_graph(graph, self.device).kernels()
