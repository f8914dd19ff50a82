"""Renderers: loops to LLVM IR or C-like source, and source to objects."""
