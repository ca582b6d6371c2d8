"""What the variables of a drift are called, their units, error bars and roles."""

from collections.abc import Mapping

import xarray as xr

from dyneq.catalog.drift_follow import SERIES
from dyneq.probes.base import CERTIFICATE, EXACT, annotate

_SAMPLES = "95 % interval of Student over samples"
_ATTRIBUTES = {
    "validation_loss": ("mean loss over the samples read out at the residual's depth", "nats per token"),
    "validation_loss_error": (
        f"half-width of the {_SAMPLES}; differences along the run are paired and tighter",
        "nats per token",
    ),
    "samples_without_loss": ("samples left out of the loss because it is not finite", ""),
    "sample_loss": ("loss of each sample", "nats per token"),
    "force_residual": ("median over samples of norm(F)/norm(z)", "1/time"),
    "force_residual_max": ("worst sample's norm(F)/norm(z)", "1/time"),
    "sample_force_residual": ("norm(F)/norm(z) of each sample", "1/time"),
    "unsettled": ("samples with a force residual above 1e-3, or diverged", ""),
    "recorded_loss": (
        "validation loss the trainer recorded, after T1 steps on the whole pinned batch",
        "nats per token",
    ),
    "recorded_force_residual": ("median force residual the trainer recorded, after T1 steps", "1/time"),
    "recorded_force_residual_max": ("worst force residual the trainer recorded, after T1 steps", "1/time"),
    "abscissa": ("largest max Re mu over the samples at a fixed point", "1/time"),
    "abscissa_error": (
        "half-width that covers the largest over all samples' own bars; NaN where one is unknown",
        "1/time",
    ),
    "spectral_radius": ("largest abs(1 + eps mu) over the samples at a fixed point", "1"),
    "spectral_radius_error": ("half-width that covers the largest over all samples' own bars; NaN where unknown", "1"),
    "leading_mu": ("rightmost eigenvalue of J (of a map: of largest multiplier) over those samples", "1/time"),
    "leading_error": ("its estimated error; NaN where unknown", "1/time"),
    "leading_sample": ("sample it belongs to", ""),
    "leading_token": ("token it belongs to; -1 for the whole sample", ""),
    "unstable": ("samples whose fixed point is known to be unstable, flow or map", ""),
    "step_unstable": ("samples whose flow is stable and whose step is known to be too large", ""),
    "stable": ("samples whose fixed point is known to be stable", ""),
    "undecided": ("samples at the boundary within the errors, or with unconverged pairs", ""),
    "no_fixed_point": ("samples without a fixed point to take a spectrum at", ""),
    "cosine": ("cosine of the estimate to the reference gradient, all parameters", "1"),
    "cosine_error": ("half-width of its interval", "1"),
    "norm_ratio": ("norm of the estimate over that of the reference, all parameters", "1"),
    "norm_ratio_error": ("half-width of its interval", "1"),
    "cosine_interval": ("ends of the cosine's interval over batches", "1"),
    "norm_ratio_interval": ("ends of the norm ratio's interval over batches", "1"),
    "marked_samples": ("samples whose gradient carries a reservation; `dyneq triangulate` names it", ""),
    "self_cosine": ("mean cosine between the estimates of different batches", "1"),
    "self_cosine_error": ("half-width of its interval", "1"),
    "lr": ("learning rate of the update that led to the snapshot; NaN at step 0 and where it is not known", "1"),
    "cumulative_lr": ("sum of the learning rates of the updates up to the snapshot", "1"),
    "log_loss": ("validation loss recorded in training, after T1 steps on the whole pinned batch", "nats per token"),
    "log_cumulative_lr": ("sum of the learning rates of the updates up to that evaluation", "1"),
    "triangulate_batches": ("batches the intervals of triangulate are over", "batches"),
    "navg_batches": ("batches the intervals of navg are over", "batches"),
    "navg_marked_samples": ("samples whose gradient carries a reservation; `dyneq navg` names it", ""),
    "decompose_batches": ("batches the intervals of decompose are over", "batches"),
    "task_marked_samples": (
        "samples whose task gradient carries a reservation; `dyneq decompose` names it",
        "",
    ),
    "penalty_noise": ("share of the penalty's squared norm that is the noise of its random vectors", "1"),
    "lrsweep_samples": ("samples the intervals of lrsweep are over", "samples"),
    "gradient_marked_samples": ("samples whose gradient carries a reservation; `dyneq lrsweep` names it", ""),
    "step_best_lr": ("learning rate, of those tried, with the lowest loss after one step", "1"),
    "step_inside": ("1 if it lies inside the grid, 0 if at an end, where the best may lie beyond", ""),
    "step_short": ("1 if the gradient falls short for its direction, 0 if not, NaN where this is undetermined", ""),
    "at_loss": ("validation loss at this cumulative learning rate, linear between snapshots", "nats per token"),
    "at_loss_error": (f"half-width: {_SAMPLES} plus the estimated error of interpolation", "nats per token"),
    "at_step": ("step at which the run has this cumulative learning rate, linear between snapshots", "updates"),
    "difference": ("loss of the run minus that of the first at this cumulative learning rate", "nats per token"),
    "difference_error": (
        "half-width: 95 % interval of Student of the paired differences plus both estimated errors of interpolation",
        "nats per token",
    ),
}
_FOLLOWED = [series for series in SERIES if series.name not in _ATTRIBUTES]
for _series in _FOLLOWED:
    _words = _series.words.format("the reference").removeprefix("the ").rstrip(",")
    _units = "nats per token" if _series.name.startswith("step_") else "1"
    _ATTRIBUTES |= {
        _series.name: (_words, _units),
        f"{_series.name}_error": (f"distance to the farther end of its interval: {_words}", _units),
        f"{_series.name}_interval": (f"ends of the 95 % interval over batches or samples: {_words}", _units),
    }
_BARS = {
    **{series.name: f"{series.name}_error" for series in _FOLLOWED},
    **{
        n: f"{n}_error"
        for n in ("validation_loss", "abscissa", "spectral_radius", "cosine", "norm_ratio", "self_cosine")
    },
    "leading_mu": "leading_error",
    "at_loss": "at_loss_error",
    "difference": "difference_error",
}
_ROLES = {
    **dict.fromkeys(("force_residual", "force_residual_max", "sample_force_residual"), CERTIFICATE),
    **dict.fromkeys(("recorded_force_residual", "recorded_force_residual_max"), CERTIFICATE),
    **dict.fromkeys(("samples_without_loss", "unsettled", "marked_samples", "leading_sample", "leading_token"), EXACT),
    **dict.fromkeys(("unstable", "step_unstable", "stable", "undecided", "no_fixed_point"), EXACT),
    **dict.fromkeys(("triangulate_batches", "navg_batches", "decompose_batches", "lrsweep_samples"), EXACT),
    **dict.fromkeys(("navg_marked_samples", "task_marked_samples", "gradient_marked_samples"), EXACT),
    **dict.fromkeys(("step_best_lr", "step_inside", "step_short"), EXACT),
    "penalty_noise": CERTIFICATE,
}
_DIMENSIONS = {
    "step": ("updates the weights have had", "updates"),
    "update": ("updates at an evaluation the log recorded", "updates"),
    "sample": ("sample of the pinned batch", ""),
    "estimator": ("gradient estimator", ""),
    "navg_estimator": ("gradient estimator that is averaged", ""),
    "penalty": ("penalty beside the loss", ""),
    "gradient": ("gradient a step is taken along", ""),
    "at_cumulative_lr": ("cumulative learning rate at which the runs are compared", "1"),
    "bound": ("end of an interval", ""),
    "run": ("run", ""),
}
#: Read at the depth of the residual probe.
_AT_DEPTH = (
    "validation_loss",
    "sample_loss",
    "force_residual",
    "force_residual_max",
    "sample_force_residual",
    "unsettled",
)


def describe(
    ds: xr.Dataset,
    *,
    residual_depth: int | None = None,
    state: str = "",
    against: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """Return a drift with long_name, units, error bars and roles on every variable.

    Args:
        ds: The series.
        residual_depth: Depth at which loss and residual are read.
        state: Where the spectrum is taken.
        against: What the gradients are held against, by probe.
    """
    held = {s.name: (against or {}).get(s.count.partition("_")[0], "") for s in SERIES}
    for name in map(str, ds.data_vars):
        long_name, units = _ATTRIBUTES[name]
        ds[name].attrs.update(long_name=long_name, units=units)
        if name in _AT_DEPTH and residual_depth is not None:
            ds[name].attrs["depth"] = residual_depth
        if name in ("abscissa", "spectral_radius", "leading_mu") and state:
            ds[name].attrs["state"] = state
        if held.get(name):
            ds[name].attrs["reference"] = held[name]
    for name in map(str, ds.dims):
        if name in _DIMENSIONS and name in ds.coords:
            long_name, units = _DIMENSIONS[name]
            ds[name].attrs.update(long_name=long_name, units=units)
    return annotate(ds, bars=_BARS, roles=_ROLES)
