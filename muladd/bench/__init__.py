"""Measuring muladd beside its peers: `muladd bench`."""
