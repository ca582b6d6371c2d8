"""Reading a branches result: sentences and tables for people."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.probes.base import Finding

#: Branches this much smaller than the state hardly move it; this much larger than the input, they overrule it.
WEAK, DOMINANT = 1e-3, 10.0
#: Mean relative entropy above which a head attends to everything alike, and below which to one token.
UNIFORM, PICKED = 0.98, 0.05
#: Range of logits, nats, beyond which the smallest weights are below exp(-50), and their gradients gone.
SATURATED = 50.0


def state_label(ds: xr.Dataset) -> str:
    """Return ``depth 800`` or ``root`` for a result at one state."""
    return "root" if str(ds["state"].item()) == "root" else f"depth {int(ds['depth'].item())}"


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the findings of every state."""
    found = []
    for i in range(ds.sizes["depth"]):
        state = ds.isel(depth=i)
        label = state_label(state)
        parts = [*_of_branches(state), *_of_status(state), *_of_attention(state)]
        found += [Finding(f.level, f"{label}: {f.text}") for f in parts]
    return found


def _measured(state: xr.Dataset) -> NDArray[np.intp]:
    """Return the samples that were measured."""
    if "state_norm" not in state:
        return np.empty(0, dtype=np.intp)
    return np.flatnonzero(np.isfinite(state["state_norm"].values))


def _of_branches(state: xr.Dataset) -> list[Finding]:
    samples, which = state.sizes["sample"], _measured(state)
    if not len(which):
        return [Finding("undetermined", f"none of {samples} samples has a state to measure branches at")]
    if "branch" not in state.dims:
        size = float(state["state_norm"][which].median() / state["input_norm"][which].median())
        text = f"{_system(state)} declares no branches, so only sizes are given: norm(z) is {size:.2g} times norm(z_0)"
        return [Finding("fact", text)]
    names = [str(n) for n in state["branch"].values]
    to_state = state["branch_to_state"].values[which]
    to_input = state["branch_to_input"].values[which]
    parts = [f"{n} {np.median(to_state[:, i]):.2g} and {np.median(to_input[:, i]):.2g}" for i, n in enumerate(names)]
    text = f"norms of the branches against state and input (medians of {len(which)} samples): {', '.join(parts)}"
    return [Finding("fact", text), *_extremes(state, which, names, to_state, to_input)]


def _extremes(
    state: xr.Dataset,
    which: NDArray[np.intp],
    names: list[str],
    to_state: NDArray[np.float64],
    to_input: NDArray[np.float64],
) -> list[Finding]:
    """Return where branches cannot be felt, hardly can, are switched off, or overrule the input."""
    found, samples = [], state.sizes["sample"]
    eps, ulp = float(state.attrs["eps"]), float(state.attrs["machine_epsilon"])
    size = state["branch_norm"].values[which]
    off = [n for i, n in enumerate(names) if (size[:, i] == 0).all()]
    if off:
        found.append(Finding("warning", f"the branch {' and '.join(off)} is exactly 0 in every sample: switched off"))
    largest = to_state.max(1)
    hidden = (largest > 0) & (eps * largest < ulp)
    if hidden.any():
        text = (
            f"{_some(which[hidden], samples)} cannot feel their branches: the largest is {largest[hidden].max():.1e} "
            "of the state, so a step changes nothing in its last place. A residual of 0 there is absorption, not "
            "convergence; the weights have probably blown up: confirm in float64"
        )
        found.append(Finding("warning", text))
    weak = (largest > 0) & ~hidden & (largest < WEAK)
    if weak.any():
        text = f"{_some(which[weak], samples)} hardly move by their branches: less than {WEAK:g} of the state"
        found.append(Finding("warning", f"{text}; the fixed point is little more than the rescaled input"))
    for i, name in enumerate(names):
        over = to_input[:, i] > DOMINANT
        if over.any():
            text = (
                f"the branch {name} overrules the input in {_some(which[over], samples)}: up to "
                f"{to_input[over, i].max():.2g} times its norm"
            )
            found.append(Finding("warning", text))
    return found


def _of_status(state: xr.Dataset) -> list[Finding]:
    """Return which samples are not at a fixed point or were left out."""
    status, samples = state["status"].values, state.sizes["sample"]
    words = {
        "max_steps": "still move: what is said of them belongs to a passing state",
        "diverged": "diverged and are left out: relax with a smaller eps, or take an earlier snapshot",
        "stagnated": "have no root that was found and are left out: try more starts (dyneq root)",
        "absorbed": "are frozen by rounding, not converged",
    }
    found = []
    for name, meaning in words.items():
        which = np.flatnonzero(status == name)
        if len(which):
            found.append(Finding("warning", f"{_some(which, samples)} {meaning}"))
    return found


def _of_attention(state: xr.Dataset) -> list[Finding]:
    which = _measured(state)
    if not len(which):
        return []
    if "entropy" not in state:
        text = f"{_system(state)} has no attention that is known here, so entropies and the sizes of queries and keys"
        return [Finding("fact", f"{text} are left out")]
    entropy, own = head_means(state, "relative_entropy"), head_means(state, "own_weight")
    spread = state["logit_range"].values[which]
    query, key = (float(np.nanmax(state[f"{name}_rms_before"].values)) for name in ("query", "key"))
    sizes = f"RMS up to {query:.2g} and {key:.2g}"
    norms = f"normalised ({sizes} before)" if int(state.attrs["qk_norm"]) else f"not normalised ({sizes})"
    text = (
        f"own-token weight {np.mean(own):.2f} on average; queries and keys {norms}; logits range over up to "
        f"{spread.max():.3g} nats"
    )
    if not np.isfinite(entropy).all():  # a single token sees itself alone
        found = [Finding("fact", f"attention sees one token only, so its entropy says nothing; {text}")]
    else:
        shown = ", ".join(f"{e:.2f}" for e in entropy)
        found = [Finding("fact", f"entropy of the attention heads relative to uniform: {shown}; {text}")]
    for heads, meaning in (
        (np.flatnonzero(entropy > UNIFORM), "attend to every token alike: they average and choose nothing"),
        (np.flatnonzero(entropy < PICKED), "attend to one token each: their softmax is all but a hard choice"),
    ):
        if len(heads):
            found.append(Finding("fact", f"heads {heads.tolist()} {meaning}"))
    if spread.max() > SATURATED:
        text = f"logits range over more than {SATURATED:g} nats: the softmax is saturated and its gradients vanish"
        found.append(
            Finding("warning", f"{text}; normalise queries and keys, or look at how far the weights have grown")
        )
    return found


def head_means(state: xr.Dataset, name: str) -> NDArray[np.float64]:
    """Return the mean of an attention statistic over samples and tokens, ``[head]``; NaN where there is none."""
    values = np.moveaxis(state[name].values, state[name].dims.index("head"), 0).reshape(state.sizes["head"], -1)
    count = np.isfinite(values).sum(1)
    return np.where(count > 0, np.nansum(values, 1) / np.maximum(count, 1), np.nan)


def table(ds: xr.Dataset) -> str | None:
    """Return the branches and heads of every state, over the samples; None where there are neither."""
    if "branch" not in ds.dims and "head" not in ds.dims:
        return None
    lines = []
    for i in range(ds.sizes["depth"]):
        state = ds.isel(depth=i)
        if "branch" in ds.dims and len(_measured(state)):
            rows: list[tuple[str, ...]] = [("branch", "/ state", "(range)", "/ input", "(range)")]
            for name in state["branch"].values:
                row = [str(name)]
                for over in ("state", "input"):
                    values = state[f"branch_to_{over}"].sel(branch=name).values
                    values = values[np.isfinite(values)]
                    row += [f"{np.median(values):.3g}", f"{values.min():.2g} .. {values.max():.2g}"]
                rows.append(tuple(row))
            lines += [f"  {state_label(state)}", *_columns(rows)]
        if "head" in ds.dims and len(_measured(state)):
            heads: list[tuple[str, ...]] = [("head", "entropy", "own token", "q RMS", "k RMS", "logit range")]
            for h in state["head"].values:
                part = state.sel(head=[h])
                names = ("relative_entropy", "own_weight", "query_rms_before", "key_rms_before", "logit_range")
                heads.append((str(int(h)), *(f"{head_means(part, n)[0]:.3g}" for n in names)))
            lines += ["", *_columns(heads)]
        lines.append("")
    return "\n".join([*lines, "  medians over samples; of heads, means over samples and tokens, entropy / log(t + 1)"])


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]


def _system(ds: xr.Dataset) -> str:
    return str(ds.attrs.get("system", "the system"))


def _some(which: NDArray[np.intp], samples: int) -> str:
    listed = ", ".join(map(str, which[:6])) + (", ..." if len(which) > 6 else "")
    return f"{len(which)} of {samples} samples ({listed})"
