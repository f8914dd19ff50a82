"""Kernels as stages, plans of their loops, the loop language, and lowering from one to the other."""
