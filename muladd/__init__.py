"""muladd: machine-learning jobs as values."""
