"""Rolling indicators over one series, compiled. Pure.

Belongs here: indicators that strategies share and that must be fast for thousands of parameter sets. Does not belong
here: feature tables (`quant_assets/features`, set-based in SQL).

Element t reads elements up to t alone and is NaN until its window is full.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def simple_moving_average(values: np.ndarray, period: int) -> np.ndarray:
    """Mean of the last `period` values, shape (n,).

    Each window is summed anew, oldest value first, instead of updating a running sum, so that an element does not
    carry the rounding of all elements before it: a cross that hangs on the last bit is the same wherever the history
    starts. The loop over bars is the inner one because the processor then adds several windows at once.
    """
    n = values.size
    out = np.full(n, np.nan)
    out[period - 1 :] = 0.0
    for j in range(period):
        for t in range(period - 1, n):
            out[t] += values[t - period + 1 + j]
    for t in range(period - 1, n):
        out[t] /= period
    return out


@njit(cache=True, nogil=True)
def highest(values: np.ndarray, period: int) -> np.ndarray:
    """Largest of the last `period` values, shape (n,). A deque of candidates makes it O(n)."""
    n = values.size
    out = np.full(n, np.nan)
    queue = np.empty(n, dtype=np.int64)
    head = tail = 0
    for t in range(n):
        while tail > head and values[queue[tail - 1]] <= values[t]:
            tail -= 1
        queue[tail] = t
        tail += 1
        if queue[head] <= t - period:
            head += 1
        if t >= period - 1:
            out[t] = values[queue[head]]
    return out


@njit(cache=True, nogil=True)
def lowest(values: np.ndarray, period: int) -> np.ndarray:
    """Smallest of the last `period` values, shape (n,)."""
    return -highest(-values, period)
