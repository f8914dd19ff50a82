"""From graphs to programs: the visible list of passes, fusion, memory plan, caches."""
from muladd.compile.pipeline import compile_graph, parameters, realize

__all__ = ["compile_graph", "parameters", "realize"]
