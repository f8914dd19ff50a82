"""Recipes: how kinds of kernel are scheduled, written with primitives."""
