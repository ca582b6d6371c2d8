"""The Kaplan-Yorke dimension of an attractor from its Lyapunov exponents."""

import numpy as np
from numpy.typing import NDArray

#: Sums within this many errors of 0 have no sign.
SIGMAS = 3.0
#: Nor have those below this, in nats per step: sums of logarithms of numbers near 1 are not better known.
ROUNDING = 1e-12


def kaplan_yorke(
    values: NDArray[np.float64], errors: NDArray[np.float64], *, complete: bool, moving: bool
) -> tuple[float, float]:
    """Return the Kaplan-Yorke dimension j + (sum of the first j)/abs(the next) and its error bar.

    j is the largest number of leading exponents whose sum is not negative (Frederickson, Kaplan, Yorke and Yorke 1983,
    J. Differ. Equations 49, 185). Sums within three errors of 0 have no sign; the dimension is then 1 where the leading
    exponent alone is in doubt on a trajectory that goes on moving, as on every cycle, and not known otherwise. The
    errors of a sum, and those of the exponents used, are added as if all erred together.

    Args:
        values: Leading exponents ``[k]``, largest first.
        errors: Their standard errors.
        complete: Whether these are all exponents there are.
        moving: Whether the trajectory goes on moving, so that a fixed point is ruled out.

    Returns:
        Both NaN where the errors leave j open, or more exponents would be needed; the error bar is NaN where an error
        is not known.
    """
    if not len(values) or np.isnan(values).any():
        return np.nan, np.nan
    sums, doubt = np.cumsum(values), np.cumsum(np.nan_to_num(errors))
    bar = np.maximum(SIGMAS * doubt, ROUNDING * np.arange(1, len(values) + 1))
    surely, perhaps = int((sums > bar).sum()), int((sums >= -bar).sum())
    enough = complete or perhaps < len(values)
    if moving and (surely, perhaps) == (0, 1) and enough:
        return 1.0, float(doubt[0] / abs(values[1])) if len(values) > 1 else 0.0
    if surely != perhaps or not enough:
        return np.nan, np.nan
    if surely in (0, len(values)):
        return float(surely), 0.0
    total, following = float(sums[surely - 1]), abs(float(values[surely]))
    error = float(errors[:surely].sum()) + total / following * float(errors[surely])
    return surely + total / following, error / following
