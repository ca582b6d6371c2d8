"""What the variables of a nonnormality result are called, their units, error bars and roles."""

import xarray as xr

from dyneq.probes.base import CERTIFICATE, COST, EXACT, annotate

_ERROR = "standard error over the random vectors plus the uncertainty of J; NaN where not known"
_BLOCK = "of one token block, or of the whole sample where there are no token blocks"
_EIGEN = "first-order error, for simple eigenvalues; NaN where a pair's is not known"
_FIRST = "first-order error by rounding and, at the root, by its own error; NaN where eigenvectors are missing"

_ATTRIBUTES = {
    "status": ("how the state was reached", ""),
    "force_residual": ("norm(F)/norm(z) of the state", "1/time"),
    "abscissa": ("max Re mu, whole sample", "1/time"),
    "abscissa_error": (_EIGEN, "1/time"),
    "spectral_radius": ("max abs(1 + eps mu), whole sample", "1"),
    "spectral_radius_error": (_EIGEN, "1"),
    "numerical_abscissa": (
        "largest eigenvalue of (J + J^T)/2, whole sample: growth rate in the first instant, not stability",
        "1/time",
    ),
    "numerical_abscissa_error": (
        "distance to an eigenvalue of (J + J^T)/2; that it is the largest is not certified; NaN where not converged",
        "1/time",
    ),
    "norm": ("Frobenius norm of J, whole sample", "1/time"),
    "norm_error": (_ERROR, "1/time"),
    "departure": ("Henrici's departure sqrt(norm_F(J)^2 - sum abs(mu)^2), whole sample", "1/time"),
    "departure_error": (_ERROR, "1/time"),
    "relative_departure": ("departure divided by the Frobenius norm of J, whole sample; 0: normal", "1"),
    "relative_departure_error": (_ERROR, "1"),
    "antisymmetric_share": ("norm_F((J - J^T)/2)/norm_F(J), whole sample", "1"),
    "antisymmetric_share_error": (_ERROR, "1"),
    "asymmetry": (
        "mean of norm(Jv - J^T v)/norm(Jv) over random v, whole sample; 2 for a skew J, which is normal: it is no "
        "measure of non-normality",
        "1",
    ),
    "asymmetry_error": ("standard error over the random vectors", "1"),
    "growth": (
        "largest norm(M^n) found, M = 1 + eps J, whole sample: attained by a vector, so a lower bound of the largest; "
        "NaN where M is unstable and there is none",
        "1",
    ),
    "growth_step": ("n of the largest growth", "steps"),
    "growth_residual": ("how far from the value a singular value of M^n may lie; NaN where not known", "1"),
    "growth_status": (
        "complete: no larger n can do better; lower bound: by search; at horizon: it may go on; unbounded: unstable",
        "",
    ),
    "growth_curve": ("norm(M^n v) of the unit vector v of the largest growth, whole sample", "1"),
    "token_numerical_abscissa": ("largest eigenvalue of (J_tt + J_tt^T)/2, one token block", "1/time"),
    "token_numerical_abscissa_error": ("error by rounding, the state's error or Lanczos's residual", "1/time"),
    "token_departure": ("Henrici's departure of J_tt, one token block", "1/time"),
    "token_departure_error": (_FIRST, "1/time"),
    "token_relative_departure": ("departure divided by the Frobenius norm, one token block", "1"),
    "token_norm": ("Frobenius norm of J_tt, one token block", "1/time"),
    "token_antisymmetric_share": ("norm_F((J_tt - J_tt^T)/2)/norm_F(J_tt), one token block", "1"),
    "token_asymmetry": ("mean of norm(J_tt v - J_tt^T v)/norm(J_tt v) over random v, one token block", "1"),
    "token_asymmetry_error": ("standard error over the random vectors", "1"),
    "token_growth": (
        "largest norm(M_tt^n) up to the horizon, one token block; NaN where a multiplier is outside the unit circle",
        "1",
    ),
    "token_growth_step": ("n of the largest growth of the token block", "steps"),
    "token_growth_complete": ("1 where no larger n can do better, 0 where the horizon ended the look", ""),
    "block_sample": ("sample of the block", ""),
    "block_token": ("token of the block; -1: the whole sample", ""),
    "block_norm": (f"2-norm of J {_BLOCK}", "1/time"),
    "block_abscissa": (f"max Re mu {_BLOCK}", "1/time"),
    "block_radius": (f"largest modulus of the multipliers {_BLOCK}", "1"),
    "block_growth": (f"largest norm(M^n) {_BLOCK}; NaN where unstable", "1"),
    "block_growth_step": ("n of the largest growth of the block", "steps"),
    "block_curve": (f"norm(M^n) {_BLOCK}; NaN after a power contracts, or where unstable", "1"),
    "kreiss": (
        f"lower bound of the Kreiss constant {_BLOCK}; infinite where an eigenvalue is unstable; 1: no growth implied",
        "1",
    ),
    "kreiss_rounding": ("error of the Kreiss bound by rounding", "1"),
    "flow_growth": (f"largest norm(exp(t J)) {_BLOCK}; NaN where unstable", "1"),
    "flow_growth_time": ("t of the largest growth of the flow", "time"),
    "eigenvalue": ("eigenvalues of the block: mu of a flow, multipliers of a map", "1/time"),
    "pseudospectral_abscissa": (f"largest Re mu that a change of J of norm `level` can give, {_BLOCK}", "1/time"),
    "pseudospectral_abscissa_error": ("no point further right than this was found; NaN where not certified", "1/time"),
    "sigma_min": ("smallest singular value of z - J (of z - M for a map) of the first block", "1/time"),
    "branch_norm": ("Frobenius norm of the Jacobian of a branch, J without its decay; `all`: of their sum", "1/time"),
    "branch_norm_error": ("standard error over the random vectors", "1/time"),
    "products": ("products with the batched Jacobian or its transpose", ""),
    "seconds": ("time spent, relaxation and root included", "s"),
}
_COORDINATES = {
    "step": ("n, power of the relaxation map", "steps"),
    "level": ("size of the change of J, 2-norm", "1/time"),
    "real": ("real part", "1/time"),
    "imag": ("imaginary part", "1/time"),
    "block": ("rank of the block", ""),
    "branch": ("branch of the force", ""),
    "sample": ("sample of the batch", ""),
}
_WITH_BARS = (
    "abscissa",
    "spectral_radius",
    "numerical_abscissa",
    "norm",
    "departure",
    "relative_departure",
    "antisymmetric_share",
    "asymmetry",
    "token_numerical_abscissa",
    "token_departure",
    "token_asymmetry",
    "pseudospectral_abscissa",
    "branch_norm",
)
_BARS = {**{name: f"{name}_error" for name in _WITH_BARS}, "kreiss": "kreiss_rounding"}
_ROLES = {
    **dict.fromkeys(("products", "seconds"), COST),
    **dict.fromkeys(("force_residual", "growth_residual"), CERTIFICATE),
    **dict.fromkeys(("growth_step", "token_growth_step", "block_growth_step", "token_growth_complete"), EXACT),
}


def describe(ds: xr.Dataset) -> xr.Dataset:
    """Return a result with long_name, units, error bars and roles on every variable."""
    for name in ds.data_vars:
        long_name, units = _ATTRIBUTES[str(name)]
        ds[name].attrs.update(long_name=long_name, units=units)
    for name, (long_name, units) in _COORDINATES.items():
        if name in ds.coords:
            ds[name].attrs.update(long_name=long_name, units=units)
    return annotate(ds, bars=_BARS, roles=_ROLES)
