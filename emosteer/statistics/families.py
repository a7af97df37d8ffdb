"""What becomes of p where several tests form one declared family."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from emosteer.statistics.paired import FloatArray


def false_discovery_rate(p: ArrayLike) -> FloatArray:
    """Benjamini and Hochberg's (1995) q of each p, as an array of the same shape: all of them are one family.

    NaN stay NaN and do not count as tests. Raises `ValueError` for a p outside 0 to 1.
    """
    q = np.array(p, dtype=np.float64)
    tested = ~np.isnan(q)
    if tested.any():
        q[tested] = stats.false_discovery_control(q[tested], method="bh")
    return q


def holm(p: ArrayLike) -> FloatArray:
    """Holm's (1979) adjusted p of each p `[test]`: all of them are one family.

    Rejecting where it is at most alpha keeps the chance of even one false rejection in the family at alpha, however the tests hang
    together; q bounds only the expected share of false ones among what is rejected. NaN stay NaN and do not count as tests. Raises
    `ValueError` for a p outside 0 to 1.
    """
    adjusted = np.array(p, dtype=np.float64)
    if ((adjusted < 0) | (adjusted > 1)).any():
        raise ValueError("`p` must be between 0 and 1")
    order = np.argsort(adjusted)[: np.count_nonzero(~np.isnan(adjusted))]  # NaN are sorted to the end
    times = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(times * adjusted[order]))
    return adjusted
