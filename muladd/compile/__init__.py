"""From graphs to programs: the visible list of passes, fusion, memory plan, caches."""
from muladd.compile.pipeline import compile_graph, parameters, program_of, realize
from muladd.compile.report import profile

__all__ = ["compile_graph", "parameters", "profile", "program_of", "realize"]
