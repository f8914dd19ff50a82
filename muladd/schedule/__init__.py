"""Choosing how a kernel is computed: primitives, recipes made of them, and the heuristic."""
