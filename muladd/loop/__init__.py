"""Kernels as stages, plans of their loops, the loop language, and lowering to it."""
