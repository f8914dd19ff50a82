"""Whether numbers that callers give lie where they may, in the same words everywhere."""
from __future__ import annotations

import math
from typing import Any

from muladd.errors import ArgumentError


def check_number(
    who: str, name: str, value: Any, low: float, high: float = math.inf, whole: bool = True
) -> None:
    """Raises ArgumentError for what is no number (a whole one, unless it need not be) from low to
    high, both included; infinity is none."""
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or not low <= value <= high or value == math.inf:
        raise ArgumentError(f"{who}: {name} is {value!r:.40}; expected a {'whole ' * whole}number "
                            f"from {low} {'on' if high == math.inf else f'to {high}'}")
