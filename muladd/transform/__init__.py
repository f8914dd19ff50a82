"""Graph to graph: derivatives both ways, vectorising, checkpointing. Each is one table by op."""
from muladd.transform.checkpoint import checkpoint, lift
from muladd.transform.grad import gradient
from muladd.transform.grad_scan import scan_checkpointed
from muladd.transform.join import join_scans
from muladd.transform.jvp import jvp
from muladd.transform.vmap import vectorize

__all__ = [
    "checkpoint", "gradient", "join_scans", "jvp", "lift", "scan_checkpointed", "vectorize",
]  # fmt: skip
