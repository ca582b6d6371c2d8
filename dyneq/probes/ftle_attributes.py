"""What the variables of an ftle result are called, their units, error bars and roles."""

import xarray as xr

from dyneq.probes.base import CERTIFICATE, COST, EXACT, annotate

_MEANS = "mean of log abs(R_ii) of QR steps after the first fifth of the horizon, of whole samples or their tokens"
_BARS = "standard error by batch means, widened where batches are correlated; NaN where not known"

_ATTRIBUTES = {
    "exponent": (f"leading asymptotic Lyapunov exponents: {_MEANS}", "nats/step"),
    "exponent_error": (_BARS, "nats/step"),
    "exponent_margin": (
        "within this of 0 an exponent cannot be told from 0: the largest of 3 standard errors, twice how far half the "
        "horizon was off, and what a random first direction may make of it",
        "nats/step",
    ),
    "exponent_token": ("token whose exponent it is; -1 where it belongs to the whole sample", ""),
    "resolved": (
        "1 where no growth was lost in rounding between two orthonormalisations, else 0: too large then",
        "",
    ),
    "rate": (f"leading asymptotic Lyapunov exponents: {_MEANS}", "nats/time"),
    "rate_error": (_BARS, "nats/time"),
    "token_exponent": ("leading asymptotic exponents of each token, from products of token-diagonal maps", "nats/step"),
    "token_exponent_error": (_BARS, "nats/step"),
    "token_rate": ("leading asymptotic exponents of each token, from products of token-diagonal maps", "nats/time"),
    "token_rate_error": (_BARS, "nats/time"),
    "history": ("the exponents as they would be had the horizon ended at that step", "nats/step"),
    "kaplan_yorke": (
        "Kaplan-Yorke dimension; NaN where more exponents would be needed or their margins leave it open; 1 where the "
        "leading one alone cannot be told from 0 and the force residual stays",
        "1",
    ),
    "kaplan_yorke_error": ("a third of the margins of the exponents used, added as if all erred together", "1"),
    "finite_time": (
        "finite-time exponents of the whole sample: log of the largest singular values of the tangent map over the "
        "whole horizon, divided by its steps",
        "nats/step",
    ),
    "finite_time_rate": ("finite-time exponents of the whole sample, per unit time", "nats/time"),
    "finite_time_gain": (
        "0: exact up to rounding; else finite_time is a lower bound, and this what carrying the vectors back added to "
        "the bound of carrying them forward: a scale for what it still lacks",
        "nats/step",
    ),
    "contraction_rate": (
        "rate at which the increments of the relaxation shrink over the first steps of the horizon, what floss "
        "penalises; NaN where they are rounding, as in a sample that rests, or the sample is lost",
        "1/time",
    ),
    "reading": (
        "expanding, neutral or contracting: the leading exponent above, within or below its margin about 0",
        "",
    ),
    "status": ("how the relaxation stands at the depth; diverged also where the sample left during the horizon", ""),
    "force_residual": ("norm(F)/norm(z) where the horizon begins", "1/time"),
    "final_force_residual": ("norm(F)/norm(z) where the horizon ends", "1/time"),
    "forces": ("force evaluations, each of the whole batch", "1"),
    "products": ("products with the Jacobian or its transpose, each of the whole batch", "1"),
    "seconds": ("time it took", "s"),
    "sample": ("sample", ""),
    "token": ("token", ""),
    "mode": ("rank of the exponent, largest first", ""),
    "step": ("steps of the horizon", "step"),
}
_BAR_OF = {
    "exponent": "exponent_error",
    "rate": "rate_error",
    "token_exponent": "token_exponent_error",
    "token_rate": "token_rate_error",
    "kaplan_yorke": "kaplan_yorke_error",
}
_ROLES = {
    "exponent_margin": CERTIFICATE,
    "resolved": CERTIFICATE,
    "finite_time_gain": CERTIFICATE,
    "exponent_token": EXACT,
    "reading": EXACT,
    "status": EXACT,
    "force_residual": CERTIFICATE,
    "final_force_residual": CERTIFICATE,
    "forces": COST,
    "products": COST,
    "seconds": COST,
}


def describe(ds: xr.Dataset) -> xr.Dataset:
    """Return a result whose variables carry their names, units, error bars and roles."""
    for name, (text, units) in _ATTRIBUTES.items():
        if name in ds.variables:
            ds[name].attrs.update(long_name=text, units=units)
    return annotate(ds, bars=_BAR_OF, roles=_ROLES)
