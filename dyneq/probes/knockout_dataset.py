"""The dataset of a knockout result: names, units, error bars and roles."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.dynamics.counting import Cost
from dyneq.dynamics.crossing import Crossing
from dyneq.dynamics.normal_form import Criticality
from dyneq.dynamics.root_pairs import RootPairs, margin_of
from dyneq.probes.base import CERTIFICATE, COST, EXACT, annotate
from dyneq.probes.knockout_measure import Roots, Settling

#: ``critical_kind`` of a sample without a sign change, of one whose branch was lost where the sign changes, and where
#: none was looked for.
NONE, LOST, NOT_SOUGHT = "none", "lost", "not sought"

Pairs = list[tuple[NDArray[np.int64], RootPairs] | None]

_ROLES = {
    **dict.fromkeys(("forces", "products", "seconds", "continuation_steps", "evaluations"), COST),
    **dict.fromkeys(("root_residual", "root_correction", "residual", "condition", "force_residual"), CERTIFICATE),
    **dict.fromkeys(("mode_token", "critical_token", "branch_end_token", "sign_changes"), EXACT),
}
_BARS = {
    **dict.fromkeys(("mu", "margin"), "error"),
    "critical_alpha": "critical_alpha_error",
    "frequency": "frequency_error",
    "lyapunov_coefficient": "lyapunov_coefficient_error",
    "branch_end": "branch_end_error",
    "critical_share": "critical_share_error",
}


def settling_variables(along: list[Settling]) -> dict[str, Any]:
    """Return what the relaxations give, over alpha and sample."""

    def over(values: Any, long_name: str, units: str) -> Any:
        return (("alpha", "sample"), np.array(values), {"long_name": long_name, "units": units})

    status = np.array([[s.value for s in x.status] for x in along], dtype=object)
    return {
        "status": (("alpha", "sample"), status, {"long_name": "how the relaxation ended", "units": ""}),
        "force_residual": over([x.residual for x in along], "norm(F)/norm(z) at the depth", "1/time"),
        "floor": over(
            [x.floor for x in along],
            "smallest norm(F)/norm(z) of the second half of the relaxation; NaN where it diverged",
            "1/time",
        ),
        "oscillation": over(
            [x.oscillation for x in along],
            "standard deviation of norm(F)/norm(z) over the last quarter of the relaxation; NaN where it diverged",
            "1/time",
        ),
    }


def root_variables(roots: Roots, along: Pairs, flow: bool) -> dict[str, Any]:
    """Return the followed roots' residuals and leading pairs, over alpha and sample, and where branches end."""
    shape = roots.residual.shape
    columns = {
        "mu": np.full(shape, complex(np.nan, np.nan)),
        **{name: np.full(shape, np.nan) for name in ("mode_token", "residual", "condition", "error")},
    }
    for k, entry in enumerate(along):
        if entry is None:
            continue
        at, pairs = entry
        for name, values in columns.items():
            values[k, at] = pairs.token if name == "mode_token" else getattr(pairs, name)
    with np.errstate(invalid="ignore"):
        margin = margin_of(columns["mu"], flow)
    boundary = "Re mu of the leading pair" if flow else "abs(1 + mu) - 1 of the leading pair"
    names = {
        "mu": ("leading eigenvalue of J at the followed root", "1/time"),
        "mode_token": ("token of the leading pair; -1 for whole samples", ""),
        "residual": ("norm(J v - mu v), norm(v) = 1: a backward error", "1/time"),
        "condition": ("1/abs(w^H v) of the block", "1"),
        "error": ("first-order estimate of the error of mu: (residual + 2 drift) condition", "1/time"),
    }
    variables = {
        n: (("alpha", "sample"), v, dict(zip(("long_name", "units"), names[n], strict=True)))
        for n, v in columns.items()
    }
    end = np.full((3, shape[1]), np.nan)
    kind = np.full(shape[1], "", dtype=object)
    for loss in sorted(roots.losses, key=lambda x: -abs(x.alpha - 1)):  # the one nearest to 1 stays
        fold = np.isfinite(loss.fold)
        end[:, loss.sample] = (loss.fold if fold else loss.alpha), loss.error, loss.token
        kind[loss.sample] = "fold" if fold else "lost"
    anchor = np.where(roots.anchor >= 0, roots.anchor, np.nan)
    per_sample = {
        "anchor": (anchor, "index of the alpha the followed root was found at; NaN without a root", ""),
        "branch_end": (end[0], "alpha at which the followed root folds back, or the last one it was followed to", "1"),
        "branch_end_error": (end[1], "length of the step in alpha that could not be made", "1"),
        "branch_end_token": (end[2], "token whose root folds back; -1 where that is not known", ""),
        "branch_end_kind": (kind, "fold, lost (for a reason not known), or empty: followed to the grid's end", ""),
    }
    return {
        **variables,
        "margin": (("alpha", "sample"), margin, {"long_name": f"{boundary}: above 0 it grows", "units": "1/time"}),
        "root_residual": (
            ("alpha", "sample"),
            roots.residual,
            {"long_name": "norm(F)/norm(z) at the followed root; NaN without one", "units": "1/time"},
        ),
        "root_correction": (
            ("alpha", "sample"),
            roots.correction,
            {"long_name": "relative Newton correction at the followed root", "units": "1"},
        ),
        **{n: ("sample", v, {"long_name": t, "units": u}) for n, (v, t, u) in per_sample.items()},
        "continuation_steps": ((), roots.steps, {"long_name": "steps of the continuation", "units": ""}),
    }


def crossing_variables(
    found: dict[int, Crossing | None], changes: NDArray[np.int64], sought: bool, flow: bool
) -> dict[str, Any]:
    """Return each sample's critical value and what is known of it."""
    samples = len(changes)
    numbers = (
        "critical_alpha",
        "critical_alpha_error",
        "critical_slope",
        "frequency",
        "frequency_error",
        "critical_token",
        "lyapunov_coefficient",
        "lyapunov_coefficient_error",
        "evaluations",
    )
    values = {name: np.full(samples, np.nan) for name in numbers}
    kind = np.full(samples, NONE if sought else NOT_SOUGHT, dtype=object)
    criticality = np.full(samples, "", dtype=object)
    reason = np.full(samples, "", dtype=object)
    for sample, c in found.items():
        kind[sample] = LOST if c is None else c.kind.value
        if c is None:
            continue
        row = (
            c.alpha,
            c.alpha_error,
            c.slope,
            c.frequency,
            c.frequency_error,
            c.token,
            c.normal_form.c1.real,
            c.coefficient_error,
            c.evaluations,
        )
        for name, value in zip(numbers, row, strict=True):
            values[name][sample] = value
        if c.kind.value == "hopf":
            criticality[sample] = c.criticality.value if c.normal_form.known else Criticality.UNDETERMINED.value
        reason[sample] = c.normal_form.reason
    first = "first-order estimate of the error of"
    turn = ("angular frequency of the crossing pair", "1/time") if flow else ("angle of the multiplier", "rad/step")
    names = {
        "critical_alpha": ("alpha at which the leading pair of the followed root crosses, the one nearest to 1", "1"),
        "critical_alpha_error": (f"{first} the critical alpha", "1"),
        "critical_slope": ("d margin/d alpha at the crossing", "1/time"),
        "frequency": turn,
        "frequency_error": (f"{first} the frequency", turn[1]),
        "critical_token": ("token of the crossing pair; -1 for whole samples", ""),
        "lyapunov_coefficient": (
            "Re c1 of the Hopf normal form, norm(q) = 1, <p, q> = 1 (times 1/frequency: first Lyapunov coefficient)",
            "1/(time state^2)",
        ),
        "lyapunov_coefficient_error": (
            "estimate of the error of Re c1, that of the critical alpha included",
            "1/(time state^2)",
        ),
        "evaluations": ("values of alpha at which the crossing was sought", ""),
    }
    words = {
        "critical_kind": (kind, "what crosses: hopf, real, neimark-sacker, flip; undetermined, lost, none, not sought"),
        "criticality": (criticality, "supercritical, subcritical or undetermined; empty where no Hopf pair crosses"),
        "lyapunov_reason": (reason, "why there is no coefficient; empty where there is"),
    }
    return {
        **{n: ("sample", values[n], dict(zip(("long_name", "units"), names[n], strict=True))) for n in numbers},
        **{n: ("sample", v, {"long_name": t, "units": ""}) for n, (v, t) in words.items()},
        "sign_changes": ("sample", changes, {"long_name": "sign changes of the margin on the grid", "units": ""}),
    }


def head_variables(along: list[tuple[Any, Any]], critical: dict[int, tuple[Any, Any]], samples: int) -> dict[str, Any]:
    """Return gain and antisymmetric share of every head over alpha, and the share at each critical alpha.

    Args:
        along: Gain and share ``[head]`` at every alpha.
        critical: Share and its error ``[head]`` at the critical alpha of a sample.
        samples: Number of samples.
    """
    gain, share = (np.array([x[i] for x in along]) for i in (0, 1))
    at = np.full((2, samples, gain.shape[1]), np.nan)
    for sample, (value, error) in critical.items():
        at[:, sample] = value, error
    text = "norm(A)/norm(W_O W_V), A the antisymmetric part, Frobenius norms"
    return {
        "gain": (("alpha", "head"), gain, {"long_name": "Frobenius norm of W_O W_V of each head", "units": "1"}),
        "antisymmetric_share": (("alpha", "head"), share, {"long_name": text, "units": "1"}),
        "critical_share": (("sample", "head"), at[0], {"long_name": f"{text}, at the critical alpha", "units": "1"}),
        "critical_share_error": (
            ("sample", "head"),
            at[1],
            {"long_name": "half of what the share changes over the error of the critical alpha", "units": "1"},
        ),
    }


def assemble(variables: dict[str, Any], alphas: list[float], samples: int, cost: Cost, seconds: float) -> xr.Dataset:
    """Return the dataset with coordinates, costs, error bars and roles."""
    unit = "one force of the whole batch"
    variables = {
        **variables,
        "forces": ((), cost.forces + cost.tokens, {"long_name": f"force evaluations, each {unit}", "units": ""}),
        "products": ((), cost.products, {"long_name": f"products with J or its transpose, each {unit}", "units": ""}),
        "seconds": ((), seconds, {"long_name": "time spent", "units": "s"}),
    }
    coords = {
        "alpha": ("alpha", alphas, {"long_name": "factor of the part", "units": "1"}),
        "sample": np.arange(samples),
    }
    return annotate(xr.Dataset(variables, coords), bars=_BARS, roles=_ROLES)
