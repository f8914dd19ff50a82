"""Matrix products: register tiles, packed panels."""
from __future__ import annotations


def products(plan, machine, found):  # type: ignore[no-untyped-def]
    return None
