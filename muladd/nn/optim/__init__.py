"""Optimisers: each is one formula over (value, gradient, state), written as a graph."""
from muladd.nn.optim.adaptive import LAMB, Adagrad, Adam, AdamW, RMSprop
from muladd.nn.optim.base import Optimizer
from muladd.nn.optim.descent import SGD, Lion, Muon

__all__ = ["LAMB", "SGD", "Adagrad", "Adam", "AdamW", "Lion", "Muon", "Optimizer", "RMSprop"]
