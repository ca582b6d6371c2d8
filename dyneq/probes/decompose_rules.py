"""What is said of a penalty, by rules on the interval of k = norm(w g_penalty)/norm(g_task) over all parameters.

- *takes over*: k lies above 1, which for a single penalty is the same as a share above a half of the update's squared
  norm;
- *noticeable*: k lies between :data:`SMALL` and 1;
- *harmless*: k lies below :data:`SMALL`, so that, whatever its direction, the penalty turns the update by at most
  arcsin k (17 degrees), and in no group does its interval reach 1;
- *overdrives*: k lies below 1, but in some parameter group above it;
- *silent*: its gradient is 0;
- *undetermined*: the interval does not decide, or there is none.
"""

import enum
import math

from dyneq.probes.triangulate_rules import Ends

#: Norm ratio up to which a penalty is called harmless.
SMALL = 0.3


class Reading(enum.StrEnum):
    """What is said of one penalty."""

    TAKES_OVER = "takes over"
    OVERDRIVES = "overdrives"
    NOTICEABLE = "noticeable"
    HARMLESS = "harmless"
    SILENT = "silent"
    UNDETERMINED = "undetermined"


def read(whole: Ends, groups: list[Ends]) -> Reading:
    """Return the reading of a penalty.

    Args:
        whole: k over all parameters.
        groups: k in every parameter group; NaN where the task's gradient is 0.
    """
    if whole.value == 0:
        return Reading.SILENT
    if math.isnan(whole.low):
        return Reading.UNDETERMINED
    if whole.low > 1:
        return Reading.TAKES_OVER
    if whole.high > 1:
        return Reading.UNDETERMINED
    if any(g.low > 1 for g in groups):
        return Reading.OVERDRIVES
    if whole.low > SMALL:
        return Reading.NOTICEABLE
    # a group without an interval may be driven by the penalty alone
    return Reading.HARMLESS if whole.high <= SMALL and all(g.high < 1 for g in groups) else Reading.UNDETERMINED


def bounds_of(groups: list[Ends], names: list[str]) -> list[tuple[str, Ends]]:
    """Return the groups in which a penalty exceeds the task, the worst first."""
    over = [(n, g) for n, g in zip(names, groups, strict=True) if g.low > 1]
    return sorted(over, key=lambda pair: -pair[1].value)
