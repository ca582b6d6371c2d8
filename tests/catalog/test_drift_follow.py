"""What is followed of the gradient: numbers of each snapshot by hand, penalties of the recipe, and what moved."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

from dyneq.catalog.drift import Drift, drift
from dyneq.catalog.drift_findings import findings
from dyneq.catalog.drift_moved import Course, Move, moved
from dyneq.catalog.drift_parts import choose_parts
from dyneq.catalog.drift_penalties import penalties_of, remarks, specs_of
from dyneq.catalog.drift_plot import plot_drift
from dyneq.catalog.drift_report import Report
from dyneq.catalog.drift_runs import of_folder
from dyneq.catalog.drift_text import table
from dyneq.catalog.drift_turns import Answer, conditions
from dyneq.catalog.store import Store
from dyneq.errors import UsageError
from dyneq.gradients import registry
from dyneq.probes.penalties import registry as penalty_registry
from dyneq.probes.registry import get_probe, run_probe
from dyneq.systems.checkpoint_io import load_checkpoint
from dyneq.train.loop import start
from dyneq.train.recipe import resolve

DEPTH = 6
STEPS = [2, 4]
FOLLOW = (
    "navg:estimator=phantom3,batches=4",
    "decompose:batches=2",
    'lrsweep:gradient=["bptt6","phantom2"],lr=[0.1,1,1e4]',
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run ``one``, trained with a penalty."""
    home = tmp_path_factory.mktemp("runs")
    text = home / "text.txt"
    text.write_text("".join(np.random.default_rng(0).choice(list("aaaaabc "), 2000)), encoding="utf-8")
    recipe = {
        "block": {"channels": 8, "heads": 2, "tokens": 6, "resinit": 0.1},
        "data": {"file": str(text), "evaluation_samples": 4},
        "optimizer": {"lr": 1e-2, "warmup": 0},
        "run": {"steps": 4, "batch": 3, "snapshots": STEPS},
        "gradient": "adjoint:steps=4,relaxation=5",
        "penalty": {"resreg": {"weight": 0.7, "scale": "absolute", "dead": 0.0, "start": 3}},
    }
    start(resolve(recipe), home / "one")
    return home


@pytest.fixture(scope="module")
def followed(folder: Path) -> Drift:
    parts = choose_parts((), DEPTH, 0, ("residual",), FOLLOW)
    return drift(of_folder(folder / "one", "one"), parts, store=Store(folder / "store"))


def snapshot(folder: Path, step: int):
    return load_checkpoint(folder / "one" / f"step-{step:06d}.pt")


def flat(parameters) -> torch.Tensor:
    return torch.cat([p.flatten() for members in parameters.values() for p in members.values()])


def relaxed(system) -> torch.Tensor:
    z = system.initial_state()
    with torch.no_grad():
        for _ in range(DEPTH):
            z = z + system.eps * system.force(z)
    return z


def test_a_penalty_is_that_of_the_recipe_and_its_numbers_those_of_plain_autograd(folder: Path, followed: Drift) -> None:
    found = followed.dataset
    assert found["penalty"].values.tolist() == ["resreg"]
    stated = json.loads(found.attrs["params"])["decompose"]["penalty"]
    (one,) = (penalty_registry.parse(spec) for spec in stated)
    assert one.to_plain() == snapshot(folder, 2).recipe["penalty"]["resreg"]
    assert any("resreg at its full weight" in n and "start=3" in n for n in followed.notes)
    # two batches of two samples: the dealing is the probe's, everything else is written out
    dealt = run_probe(
        get_probe("decompose"),
        snapshot(folder, 4).bind(),
        provenance={},
        penalty=stated,
        gradient=f"bptt{DEPTH}",
        batches=2,
        samples=16,
        seed=0,
    )["batch_of_sample"].values
    logs, shares, cosines, totals = [], [], [], []
    for b in range(2):
        system = snapshot(folder, 4).bind().select(torch.from_numpy(np.flatnonzero(dealt == b)))
        task = flat(registry.build("bptt", {"steps": DEPTH}).gradient(system).parameters)
        z = relaxed(system)
        with torch.enable_grad():
            values = [p for members in system.parameter_groups().values() for p in members.values()]
            force = system.force(z)
            value = ((system.eps * force).square().sum((1, 2)) / z.square().sum((1, 2))).mean()
            parts = torch.autograd.grad(value, values, allow_unused=True, materialize_grads=True)
        penalty = 0.7 * torch.cat([p.flatten() for p in parts])
        update = task + penalty
        logs.append((penalty.norm() / task.norm()).log().item())
        shares.append((penalty @ update / (update @ update)).item())
        cosines.append(torch.cosine_similarity(task, penalty, dim=0).item())
        totals.append(torch.cosine_similarity(task, update, dim=0).item())
    row = found.sel(step=4)
    for name, values, back in (
        ("penalty_ratio", logs, np.exp),
        ("penalty_share", shares, np.array),
        ("penalty_cosine", cosines, np.array),
        ("task_cosine", totals, np.array),
    ):
        assert row[name].values.item() == pytest.approx(float(back(np.mean(values))), rel=1e-9), name
        wanted = back(stats.t.interval(0.95, 1, np.mean(values), stats.sem(values)))
        ends = row[f"{name}_interval"].values.ravel()
        bounded = np.clip(wanted, -1, 1) if name in ("penalty_cosine", "task_cosine") else wanted
        assert ends == pytest.approx(bounded, rel=1e-7), name
    assert row["decompose_batches"].item() == 2


def test_the_best_step_is_the_one_taken_by_hand(folder: Path, followed: Drift) -> None:
    """Steps on the weights themselves, losses after plain Euler steps."""
    row = followed.dataset.sel(step=2)
    changes = {}
    for name, (kind, options) in {
        "bptt6": ("bptt", {"steps": DEPTH}),
        "phantom2": ("phantom", {"steps": 2, "t1": DEPTH}),
    }.items():
        for lr in (0.1, 1.0, 1e4):
            held = snapshot(folder, 2)
            system = held.bind()
            gradient = registry.build(kind, options).gradient(system).parameters
            with torch.no_grad():
                before = system.loss(relaxed(system))
                weights = dict(held.block.double().named_parameters())
                for members in gradient.values():
                    for parameter, value in members.items():
                        weights[parameter] -= lr * value
            changes[name, lr] = loss_of(held.bind()) - before  # bound anew: the tokens are embedded again
    best = {
        n: min((lr for m, lr in changes if m == n), key=lambda lr: changes[n, lr].mean()) for n in ("bptt6", "phantom2")
    }
    for name, lr in best.items():
        at = row.sel(gradient=name)
        assert at["step_best_lr"].item() == lr
        assert at["step_inside"].item() == float(lr == 1.0)
        assert at["step_change"].item() == pytest.approx(changes[name, lr].mean().item(), abs=1e-11)
        wanted = stats.t.interval(0.95, 3, changes[name, lr].mean(), stats.sem(changes[name, lr]))
        assert at["step_change_interval"].values == pytest.approx(wanted, abs=1e-10)
    lag = (changes["phantom2", best["phantom2"]] - changes["bptt6", best["bptt6"]]).numpy()
    assert row["step_lag"].sel(gradient="phantom2").item() == pytest.approx(lag.mean(), abs=1e-11)
    assert np.isnan(row["step_lag"].sel(gradient="bptt6").item()), "behind itself nothing lags"
    assert row["lrsweep_samples"].item() == 4


def loss_of(system) -> torch.Tensor:
    with torch.no_grad():
        return system.loss(relaxed(system))


def test_bias_and_limit_are_those_of_navg_alone(folder: Path, followed: Drift) -> None:
    for step in STEPS:
        alone = run_probe(
            get_probe("navg"), snapshot(folder, step).bind(), provenance={}, estimator=("phantom3",), ref=("bptt6",),
            batches=4, samples=16, seed=0,
        ).sel(estimator="phantom3", reference="bptt6", group="all")  # fmt: skip
        row = followed.dataset.sel(step=step, navg_estimator="phantom3")
        for name, source in (
            ("navg_bias", "bias"),
            ("navg_bias_share", "bias_share"),
            ("navg_limit_cosine", "limit_cosine"),
        ):
            assert np.isfinite(row[name].values)
            for end in ("", "_error", "_interval"):
                np.testing.assert_array_equal(row[name + end].values, alone[source + end].values)
        assert row["navg_marked_samples"].item() == alone["marked"].any("mark").sum().item()
    assert followed.dataset["navg_bias"].attrs["reference"] == "bptt6"


def test_everything_followed_is_in_table_document_dataset_and_figure(folder: Path, followed: Drift) -> None:
    ds = followed.dataset
    assert all({"long_name", "units"} <= set(v.attrs) for v in ds.data_vars.values())
    for name in ("navg_bias", "penalty_share", "task_cosine", "step_change", "step_lag"):
        assert ds[name].attrs["ancillary_variables"] == f"{name}_error"
    text = table(ds)
    for head in ("phantom3 bias^2", "resreg share", "cos task, update", "bptt6 best change", "phantom2 best change"):
        assert head in text
    (result,) = Report([followed]).document()["results"]
    row = result["snapshots"][1]
    assert row["penalty_ratio_interval"]["resreg"] == ds["penalty_ratio_interval"].values[1, 0].tolist()
    assert row["task_cosine_interval"] == ds["task_cosine_interval"].values[1].tolist()
    assert row["step_change"].keys() == {"bptt6", "phantom2"}
    assert result["probes"]["decompose"]["penalty"][0].startswith("resreg:weight=0.7")
    axes = plot_drift(ds).axes
    drawn = {a.get_ylabel().replace("\n", " "): a for a in axes}
    share = drawn["penalty's share of the update"].containers[0].lines[0]
    np.testing.assert_array_equal(share.get_ydata(), ds["penalty_share"].values[:, 0])
    for label in ("cosine to bptt6 averaging tends to", "k = norm(penalty) / norm(task)", "cosine"):
        assert label in drawn
    assert all(a.get_shared_x_axes().joined(a, axes[0]) for a in axes), "one time axis"


def test_a_recipe_without_penalties_takes_the_usual_ones_and_says_so() -> None:
    (part,) = choose_parts((), 5, 0, (), ("decompose",))
    assert part.of_run({}) is part
    (note,) = remarks({}, part.plain()["penalty"], "x@0")
    assert "resreg:0.2 and jacreg:0.1" in note
    (named,) = choose_parts((), 5, 0, (), ("decompose:penalty=floss:0.3",))
    recipe = {"penalty": {"jacreg": {"weight": 0.5, "controller": "residual"}}}
    assert named.of_run(recipe).plain()["penalty"] == ["floss:0.3"]
    assert part.of_run(recipe).plain()["penalty"] == ["jacreg:weight=0.5,controller=residual"]
    assert "the weight 0.5 its controller started from" in remarks(recipe, (), "x@0")[0]
    for name in penalty_registry.names():
        every = {"penalty": {name: {"weight": 0.25, "every": 3, "pick": "worst"}}}
        (spec,) = specs_of(every)
        assert penalty_registry.parse(spec).to_plain() == penalties_of(every)[name].to_plain()
    with pytest.raises(UsageError, match="nothing"):
        specs_of({"penalty": {"nothing": {}}})


def test_what_is_followed_takes_the_place_of_triangulate() -> None:
    def named(*args) -> list[str]:
        return [p.probe.name for p in choose_parts(args[0], 5, 0, ("residual", "spectrum", "triangulate"), args[1])]

    assert named((), ()) == ["residual", "spectrum", "triangulate"]
    assert named((), ("decompose",)) == ["residual", "spectrum", "decompose"]
    assert named(("residual",), ("navg", "triangulate")) == ["residual", "navg", "triangulate"]
    with pytest.raises(UsageError, match="given twice"):
        named(("navg",), ("navg",))
    with pytest.raises(UsageError, match="did you mean 'decompose'"):
        named((), ("decompos",))


def course(value, half, *, count=4, scale="share") -> Course:
    value, half = np.array(value, float), np.broadcast_to(np.array(half, float), len(value))
    if scale == "log":
        return Course(range(len(value)), value, value / half, value * half, np.full(len(value), count), scale)
    return Course(range(len(value)), value, value - half, value + half, np.full(len(value), count), scale)


def test_a_move_is_where_intervals_do_not_overlap() -> None:
    assert course([0.1, 0.5, 0.31], 0.1).between_ends() == Move(0, 2)
    assert course([0.1, 0.5, 0.29], 0.1).between_ends() is None
    assert course([0.1, np.nan, 0.5], [np.nan, 0.1, 0.1]).between_ends() is None, "one interval alone tells nothing"
    # in between, the intervals are those of 1 - 0.05/3 each, by SciPy's quantiles
    wider = stats.t.ppf(1 - 0.05 / 6, 3) / stats.t.ppf(0.975, 3)
    gap = 0.2 * wider
    assert course([0.1, 0.1 + 1.001 * gap, 0.1], 0.1).anywhere() == Move(0, 1)
    assert course([0.1, 0.1 + 0.999 * gap, 0.1], 0.1).anywhere() is None
    for factor, wanted in ((1.001, Move(0, 1)), (0.999, None)):  # a ratio's interval is even in its logarithm
        top = 2 * 1.5 ** (2 * wider * factor)
        assert course([2, top, 2], 1.5, scale="log").anywhere() == wanted
    assert course([0.0, 0.0], 1.0, scale="log").anywhere() is None


def test_intervals_at_once_are_rarely_wrong_about_a_run_that_stands_still() -> None:
    """Of 2,000 runs of 12 snapshots with one true value, at most 5 % are said to move: Bonferroni's bound."""
    drawn = np.random.default_rng(0).normal(size=(2000, 12, 4))
    mean, half = drawn.mean(-1), stats.t.ppf(0.975, 3) * stats.sem(drawn, axis=-1)
    said = sum(course(m, h).anywhere() is not None for m, h in zip(mean, half, strict=True))
    # the count of a rate of 5 % stays below this but once in a thousand times
    assert said <= stats.binom.ppf(0.999, 2000, 0.05)


def synthetic() -> xr.Dataset:
    """Return a series of three snapshots: one penalty that takes over, one that stands still, one without intervals."""
    ratio = np.array([[0.2, 0.8, 2.0], [0.5, 0.5, 0.5], [0.1, 0.1, 0.1]]).T
    ends = np.stack([ratio / 1.2, ratio * 1.2], -1)
    ends[:, 2] = np.nan
    names = np.array(["floss", "jacreg", "resreg"], dtype=object)
    total = np.array([0.99, 0.7, 0.995])
    return xr.Dataset(
        {
            "penalty_ratio": (("step", "penalty"), ratio),
            "penalty_ratio_interval": (("step", "penalty", "bound"), ends),
            "penalty_noise": (("step", "penalty"), np.array([[0.1, 0.3, np.nan]] * 3)),
            "task_cosine": ("step", total),
            "task_cosine_interval": (("step", "bound"), np.stack([total - 0.01, total + 0.004], -1)),
            "decompose_batches": ("step", np.full(3, 4.0)),
            "step_short": (("step", "gradient"), np.array([[np.nan, 0.0], [np.nan, np.nan], [np.nan, 1.0]])),
            "step_lag": (("step", "gradient"), np.full((3, 2), np.nan), {"reference": "bptt400"}),
            "step_inside": (("step", "gradient"), np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])),
        },
        {
            "step": [0, 10, 20],
            "penalty": names,
            "gradient": np.array(["bptt400", "ep"], dtype=object),
            "bound": np.array(["low", "high"], dtype=object),
        },
        {"run": "x", "learning_rates": "none", "pinned_samples": 4},
    )


def test_findings_say_what_moved_when_and_of_what_that_is_open() -> None:
    texts = {f.text: f.level for f in moved(synthetic())}
    rose = next(t for t in texts if "over that of the task's gradient, k, moved" in t)
    assert "floss: rose from 0.2 [0.167, 0.24] at step 0 to 2 [1.67, 2.4] at step 20" in rose
    assert "jacreg" not in rose
    between = next(t for t in texts if "the cosine of the task's gradient with the whole update moved" in t)
    assert "was 0.99 [0.98, 0.994] at step 0 and 0.7" in between or "was 0.7" in between
    assert "rose" not in between, "the first and the last snapshot cannot be told apart"
    still = next(t for t in texts if t.startswith("not known to have moved"))
    assert (still.rpartition(": ")[2], texts[still]) == ("k of jacreg", "undetermined")
    assert any(t.endswith("k of resreg") and "want of intervals" in t for t in texts)
    every = [f.text for f in findings(synthetic())]
    assert "the gradient of the penalty floss is larger than the task's: between steps 10 and 20" in every
    short = "one step along ep falls short of one along bptt400 at any rate: for want of direction"
    assert f"{short}: between steps 0 and 20" in every
    assert not any("step along bptt400 falls" in t for t in every)
    assert sum("noise of random vectors" in t for t in every) == 1
    assert sum("along bptt400, ep is at an end of those tried at the steps 10:" in t for t in every) == 1
    answers = {c.text: c.answers for c in conditions(synthetic())}
    assert answers["the gradient of the penalty resreg is larger than the task's"] == (Answer.OPEN,) * 3


def test_what_moves_by_rounding_is_told_in_brief() -> None:
    ds = synthetic().drop_vars(["penalty_ratio", "penalty_noise"])
    total = 1 - np.array([1e-9, 3e-9, 9e-9])
    ds["task_cosine"] = "step", total
    ds["task_cosine_interval"] = ("step", "bound"), np.stack([total - 1e-12, total + 1e-12], -1)
    (found,) = moved(ds)
    assert "by less than 0.01" in found.text
