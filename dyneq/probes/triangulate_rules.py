"""What is said of an estimator, by rules on intervals: a reading holds at both ends of them or is not made.

With T the cosine called faithful and K the factor within which a scale is called right, for one parameter group:

- *faithful*: the cosine's interval lies above T and that of k within [1/K, K];
- *wrong scale, right direction*: the cosine's lies above T, that of k wholly outside;
- *biased*: the cosine's lies below T, and so does that of the cosine which averaging tends to;
- *noisy*: the cosine's lies below T, that of the limit above it;
- *off*: the cosine's lies below T, and the limit's interval does not tell why;
- *ambiguous*: the reference is not settled (the interval of its cosine with itself at the horizon, or with another
  reference, does not lie above T), and the estimator is not clearly farther from it: then the lower end of that
  interval takes the place of T in the three readings above;
- *undetermined*: an interval is too wide, or there is none.

Every interval covers its value with the stated probability by itself; of twenty readings one may rest on a miss.
"""

import enum
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

#: K: factor within which a norm ratio is called right.
SCALE = 1.25


class Reading(enum.StrEnum):
    """What is said of an estimator in one parameter group."""

    FAITHFUL = "faithful"
    WRONG_SCALE = "wrong scale"
    SCALE_OPEN = "scale undetermined"
    BIASED = "biased"
    NOISY = "noisy"
    OFF = "off"
    AMBIGUOUS = "reference ambiguous"
    UNDETERMINED = "undetermined"
    NOTHING = "no gradient"
    REFUSED = "refused"


class Settled(enum.StrEnum):
    """What is said of the reference itself in one parameter group."""

    SETTLED = "settled"
    AMBIGUOUS = "ambiguous"
    UNDETERMINED = "undetermined"
    UNTESTED = "untested"


@dataclass(frozen=True)
class Ends:
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(ds: xr.Dataset, name: str, **at: int) -> "Ends":
        """Return one entry of a statistic of a dataset."""
        low, high = ds[f"{name}_interval"].isel(at).values
        return Ends(float(ds[name].isel(at).values), float(low), float(high))


def read(cosine: Ends, limit: Ends, ratio: Ends, ceiling: Ends | None, faithful: float) -> Reading:
    """Return the reading of one estimator in one group.

    Args:
        cosine: Mean of cosines with the reference.
        limit: Cosine that averaging over batches tends to.
        ratio: Norm ratio k.
        ceiling: Cosine of the reference with itself at the horizon, or with another reference, whichever is lower; None
            where there is nothing to compare it with.
        faithful: T.
    """
    if np.isnan(cosine.value):
        return Reading.NOTHING
    if cosine.low >= faithful:
        if ratio.low >= 1 / SCALE and ratio.high <= SCALE:
            return Reading.FAITHFUL
        return Reading.WRONG_SCALE if ratio.high < 1 / SCALE or ratio.low > SCALE else Reading.SCALE_OPEN
    settled = ceiling is None or ceiling.low >= faithful
    # no estimator need agree better with the reference than the reference agrees with itself
    bound = faithful if settled or ceiling is None else ceiling.low
    if cosine.high < bound:  # never where the ceiling is not known
        if limit.high < bound:
            return Reading.BIASED
        return Reading.NOISY if limit.low >= bound else Reading.OFF
    return Reading.UNDETERMINED if settled or np.isnan(cosine.low) else Reading.AMBIGUOUS


def settled(ceiling: Ends | None, faithful: float) -> Settled:
    """Return the reading of a reference in one group."""
    if ceiling is None:
        return Settled.UNTESTED
    if ceiling.low >= faithful:
        return Settled.SETTLED
    return Settled.AMBIGUOUS if ceiling.high < faithful else Settled.UNDETERMINED


def ceilings(ds: xr.Dataset, reference: int) -> tuple[NDArray[np.intp], list[Ends | None]]:
    """Return which estimator bounds a reference in each group, -1 if none, and its cosine with it."""
    label = str(ds["reference"].values[reference])
    names, role = ds["estimator"].values, ds["role"].values
    others = [e for e in range(len(names)) if role[e] in ("reference", "horizon") and names[e] != label]
    if reference > 0:  # the horizon is the first reference's own
        others = [e for e in others if role[e] == "reference"]
    which = np.full(ds.sizes["group"], -1)
    bounds: list[Ends | None] = []
    for g in range(ds.sizes["group"]):
        found = [(e, Ends.of(ds, "cosine", reference=reference, estimator=e, group=g)) for e in others]
        if not found:
            bounds.append(None)
            continue
        which[g], end = min(found, key=lambda x: -np.inf if np.isnan(x[1].value) else x[1].value)
        bounds.append(end)
    return which, bounds


def with_readings(ds: xr.Dataset, faithful: float) -> xr.Dataset:
    """Return the dataset with ``reading`` ``[reference, estimator, group]`` and ``settled`` ``[reference, group]``."""
    shape = (ds.sizes["reference"], ds.sizes["estimator"], ds.sizes["group"])
    reading, state = np.full(shape, "", dtype=object), np.full((shape[0], shape[2]), "", dtype=object)
    for r in range(shape[0]):
        _, bounds = ceilings(ds, r)
        for g in range(shape[2]):
            state[r, g] = settled(bounds[g], faithful).value
            for e in range(shape[1]):
                if ds["refusal"].values[e]:
                    reading[r, e, g] = Reading.REFUSED.value
                elif ds["role"].values[e] == "estimator":
                    at = {"reference": r, "estimator": e, "group": g}
                    cosine, limit, ratio = (Ends.of(ds, n, **at) for n in ("cosine", "limit_cosine", "norm_ratio"))
                    reading[r, e, g] = read(cosine, limit, ratio, bounds[g], faithful).value
    words = "reading of an estimator by rules on the intervals; empty for references"
    return ds.assign(
        reading=(("reference", "estimator", "group"), reading, {"long_name": words, "units": ""}),
        settled=(("reference", "group"), state, {"long_name": "whether the reference itself is settled", "units": ""}),
    ).assign_attrs(faithful=faithful, scale_factor=SCALE)
