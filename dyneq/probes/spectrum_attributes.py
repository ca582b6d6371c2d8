"""What the variables of a spectrum result are called, their units, error bars and roles."""

import xarray as xr

from dyneq.probes.base import CERTIFICATE, COST, EXACT, annotate

_FIRST_ORDER = "first-order estimate, for simple eigenvalues, of the error of"
#: Whose error it is. Relaxed states never have theirs included.
_WHERE = "at a relaxed state without the error of that state, at the root with the estimated error of the root"
_UNKNOWN = f"{_WHERE}; NaN where any pair of the sample found is not converged or of unknown condition or error"
_PAIR = (
    "(residual + 2 norm((J(z + d) - J(z)) v)) times condition, with d the Newton correction at the root, 0 at a "
    "relaxed state, whose own error is left out; NaN where not known or not converged"
)

_ATTRIBUTES = {
    "force_residual": ("norm(F)/norm(z) of the state", "1/time"),
    "step_residual": ("eps norm(F)/norm(z); not evidence of convergence", "1"),
    "status": ("how the state was reached", ""),
    "start": ("what the state was reached from", ""),
    "pairs_converged": ("1 where the most wanted pairs of every block converged, else 0: numbers are unsure", ""),
    "abscissa": ("max Re mu of the sample", "1/time"),
    "abscissa_error": (f"{_FIRST_ORDER} the abscissa; {_UNKNOWN}", "1/time"),
    "spectral_radius": ("max abs(1 + eps mu) of the sample", "1"),
    "spectral_radius_error": (f"{_FIRST_ORDER} the spectral radius; {_UNKNOWN}", "1"),
    "critical_eps": (
        "step above which Euler amplifies a mode of a stable flow; NaN where the flow is unstable",
        "time",
    ),
    "critical_eps_error": (
        f"{_FIRST_ORDER} the critical step; {_UNKNOWN}, or the flow is not stable within its error",
        "time",
    ),
    "numerical_abscissa": ("largest eigenvalue of (J + J^T)/2, whole sample: initial growth, not stability", "1/time"),
    "numerical_abscissa_error": (
        "residual and rounding: distance to an eigenvalue of (J + J^T)/2, at the root with the estimated error of the "
        "root; that it is the largest is not certified; NaN where not converged",
        "1/time",
    ),
    "mu": ("leading eigenvalues of J", "1/time"),
    "multiplier": ("1 + eps mu", "1"),
    "multiplier_error": ("eps times the error of mu, and the rounding of 1 + eps mu; NaN where not known", "1"),
    "modulus": ("abs(1 + eps mu)", "1"),
    "mode_sample": ("sample of the pair", ""),
    "mode_token": ("token of the pair; -1 for whole samples", ""),
    "residual": ("norm(J v - mu v), norm(v) = 1: a backward error", "1/time"),
    "condition": ("1/abs(w^H v) of the block; NaN where no left vector converged", "1"),
    "error": (f"{_FIRST_ORDER} mu: {_PAIR}", "1/time"),
    "converged": ("1 where the residual is within the solver's tolerance, 0 where not", ""),
    "method": ("blocks and solver", ""),
    "matvecs": ("products with the batched Jacobian or its transpose", ""),
    "seconds": ("time spent at this state", "s"),
}
_PARTS = {
    "mu": ("eigenvalue", "1/time"),
    "residual": ("residual of the pair", "1/time"),
    "condition": ("condition of the pair", "1"),
    "error": (f"{_FIRST_ORDER} the eigenvalue", "1/time"),
    "converged": ("1 where the pair converged, 0 where not", ""),
}
_TARGETS = {"largest": "largest multiplier", "rightmost": "largest real part", "critical": "smallest critical step"}
#: Which variable holds the error bar of which; those of the targets are added below.
_BARS = {
    "mu": "error",
    "multiplier": "multiplier_error",
    "modulus": "multiplier_error",
    **{name: f"{name}_error" for name in ("abscissa", "spectral_radius", "critical_eps", "numerical_abscissa")},
    **{f"{target}_mu": f"{target}_error" for target in _TARGETS},
}
_ROLES = {
    **dict.fromkeys(("seconds", "matvecs"), COST),
    **dict.fromkeys(("force_residual", "step_residual", "residual", "condition"), CERTIFICATE),
    **{f"{target}_{part}": CERTIFICATE for target in _TARGETS for part in ("residual", "condition")},
    **dict.fromkeys(("pairs_converged", "converged", "mode_sample", "mode_token"), EXACT),
    **{f"{target}_converged": EXACT for target in _TARGETS},
}


def describe(ds: xr.Dataset) -> xr.Dataset:
    """Return a spectrum with long_name, units, error bars and roles on every variable."""
    for name in map(str, ds.data_vars):
        target, _, part = name.partition("_")
        if name in _ATTRIBUTES:
            long_name, units = _ATTRIBUTES[name]
        else:
            what, units = _PARTS[part]
            long_name = f"{what} with the {_TARGETS[target]} in each block"
            long_name += f": {_PAIR}" if part == "error" else ""
        ds[name].attrs.update(long_name=long_name, units=units)
    ds["depth"].attrs.update(long_name="relaxation depth; -1 at the root", units="steps")
    return annotate(ds, bars=_BARS, roles=_ROLES)
