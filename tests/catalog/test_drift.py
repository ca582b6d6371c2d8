"""Series over a run's snapshots, held against plain loops, dense algebra and sums of the log; turns and their order."""

import json
import math
import shutil
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

from dyneq.catalog import drift_measure
from dyneq.catalog.checkpoints import add_file, snapshot_sink
from dyneq.catalog.drift import drift
from dyneq.catalog.drift_compare import interpolated, join
from dyneq.catalog.drift_findings import comparison, findings
from dyneq.catalog.drift_parts import choose_parts
from dyneq.catalog.drift_plot import plot_drift, plot_runs
from dyneq.catalog.drift_rates import rates_of
from dyneq.catalog.drift_runs import find_run, of_folder, thin
from dyneq.catalog.drift_text import table
from dyneq.catalog.drift_turns import Answer, Condition, conditions, turn, unknown_pairs, unordered
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError, UsageError
from dyneq.gradients import registry
from dyneq.systems.checkpoint_io import load_checkpoint
from dyneq.train.loop import Hooks, start
from dyneq.train.recipe import Recipe, resolve

DEPTH = 200
STEPS = [0, 2, 4, 6]


def recipe(text: Path, **optimizer: float) -> Recipe:
    return resolve(
        {
            "block": {"channels": 8, "heads": 2, "tokens": 6, "resinit": 0.1},
            "data": {"file": str(text), "evaluation_samples": 4},
            "optimizer": {"lr": 1e-2, "warmup": 3, **optimizer},
            "run": {"steps": 6, "batch": 3, "evaluate_every": 3, "save_every": 4, "snapshots": STEPS},
            "gradient": "adjoint:steps=4,relaxation=5",
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs ``one`` and ``slow`` (half the learning rate) and the store that knows them."""
    home = tmp_path_factory.mktemp("runs")
    text = home / "text.txt"
    text.write_text("".join(np.random.default_rng(0).choice(list("abcdefgh "), 2000)), encoding="utf-8")
    for name, lr in (("one", 1e-2), ("slow", 5e-3)):
        sink = snapshot_sink(Store(home / "store"), name, pytest.fail)
        start(recipe(text, lr=lr), home / name, hooks=Hooks(sink=sink))
    return home


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of the folder of run ``one`` to damage."""
    shutil.copytree(trained / "one", tmp_path / "one")
    return tmp_path / "one"


@pytest.fixture(scope="module")
def series(trained: Path) -> xr.Dataset:
    store = Store(trained / "store")
    parts = choose_parts(["residual", "spectrum"], DEPTH, 0, ())
    return drift(find_run(store, "one"), parts, store=store).dataset


def relaxed(path: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return state, force, loss and dense Jacobian after plain Euler steps."""
    system = load_checkpoint(path).bind()
    z = system.initial_state()
    with torch.no_grad():
        for _ in range(DEPTH):
            z = z + system.eps * system.force(z)
        loss, force = system.loss(z), system.force(z)
    jacobian = torch.autograd.functional.jacobian(system.force, z)
    n = z[0].numel()
    blocks = torch.stack([jacobian[i, :, :, i].reshape(n, n) for i in range(len(z))])
    return z, force, loss, blocks


def test_the_series_are_those_of_each_snapshot_measured_by_hand(trained: Path, series: xr.Dataset) -> None:
    assert series["step"].values.tolist() == STEPS
    for i, step in enumerate(STEPS):
        z, force, loss, blocks = relaxed(trained / "one" / f"step-{step:06d}.pt")
        row = series.isel(step=i)
        # plain means and intervals of float64 numbers: rounding alone
        assert row["validation_loss"].item() == pytest.approx(loss.mean().item(), rel=1e-12)
        wanted = stats.t.interval(0.95, len(loss) - 1, loss.mean(), stats.sem(loss))
        assert row["validation_loss_error"].item() == pytest.approx((wanted[1] - wanted[0]) / 2, rel=1e-9)
        # the relaxation stops where it has converged: there the residual is at most its tolerance
        residual = (force.flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)).numpy()
        stopped = row["sample_force_residual"].values
        assert ((np.abs(stopped - residual) <= 1e-12) | ((stopped <= 1e-6) & (residual <= stopped))).all()
        assert row["unsettled"].item() == (residual > 1e-3).sum() == 0
        mu = np.linalg.eigvals(blocks.numpy())
        # distance of the relaxed state from the root moves the whole spectrum by about as much; it is below 1e-7 here
        assert row["abscissa"].item() == pytest.approx(mu.real.max(), abs=1e-6)
        assert row["spectral_radius"].item() == pytest.approx(np.abs(1 + 0.1 * mu).max(), abs=1e-7)
        assert row["abscissa_error"].item() < 1e-9
        assert row["leading_mu"].item().real == pytest.approx(row["abscissa"].item(), abs=1e-12)
        assert row["leading_sample"].item() == mu.real.max(axis=1).argmax()
        assert (row["stable"], row["unstable"], row["undecided"], row["no_fixed_point"]) == (4, 0, 0, 0)
    assert set(series["validation_loss"].attrs) >= {"long_name", "units", "ancillary_variables", "depth"}
    assert all({"long_name", "units"} <= set(v.attrs) for v in series.data_vars.values())


def test_what_the_trainer_recorded_stands_beside_what_is_measured(trained: Path, series: xr.Dataset) -> None:
    records = [json.loads(line) for line in (trained / "one" / "log.jsonl").read_text().splitlines()]
    recorded = {r["step"]: r["validation_loss"] for r in records if "validation_loss" in r}
    assert series["recorded_loss"].values[1:].tolist() == [recorded[s] for s in STEPS[1:]]
    assert dict(zip(series["update"].values.tolist(), series["log_loss"].values.tolist(), strict=True)) == recorded


def test_the_cumulative_learning_rate_is_the_sum_of_the_log(trained: Path, runs: Path, series: xr.Dataset) -> None:
    records = [json.loads(line) for line in (trained / "one" / "log.jsonl").read_text().splitlines()]
    sums = [0.0, *accumulate(r["lr"] for r in records if "lr" in r)]
    assert series.attrs["learning_rates"] == "log"
    assert series["cumulative_lr"].values == pytest.approx([sums[s] for s in STEPS], rel=1e-15 * 6)
    # warm-up over 3 updates at 1e-2, written out
    assert series["cumulative_lr"].values[-1] == pytest.approx(1e-2 * (1 / 3 + 2 / 3 + 1 + 3), rel=1e-15)
    (runs / "log.jsonl").unlink()
    kept = drift(of_folder(runs, "one"), choose_parts(["residual"], 5, 0, ()), store=Store(runs / "store"))
    assert kept.dataset.attrs["learning_rates"] == "recipe"
    assert kept.dataset["cumulative_lr"].values.tolist() == series["cumulative_lr"].values.tolist()
    assert "no log" in kept.notes[0]


@pytest.mark.parametrize(
    ("damage", "source", "known", "told"),
    [
        (lambda lines: [*lines[:4], *lines[5:]], "log", [True, True, False, False], "lacks the update 4"),
        (lambda lines: [*lines, lines[-1]], "none", [True, False, False, False], "the update 6 twice"),
        (lambda lines: [lines[0].replace('evaluation_sha256": "', 'evaluation_sha256": "0'), *lines[1:]], "none",
         [True, False, False, False], "another evaluation batch"),
    ],
)  # fmt: skip
def test_a_log_that_cannot_be_trusted_gives_no_sum(runs: Path, damage, source, known, told) -> None:
    log = runs / "log.jsonl"
    lines = damage(log.read_text().splitlines())
    log.write_text("\n".join(lines) + "\n")
    held = load_checkpoint(runs / "step-000006.pt")
    rates = rates_of(log, held.recipe, held.evaluation.sha256, 6)
    assert rates.source == source
    assert [math.isfinite(rates.cumulative(s)) for s in STEPS] == known
    assert told in rates.note


def test_a_run_trained_elsewhere_has_no_learning_rates(runs: Path) -> None:
    assert rates_of(None, {"imported": {"mapping": "theirs"}}, "", 6).source == "none"
    assert "trained elsewhere" in rates_of(None, {}, "", 6).note
    odd = rates_of(None, {"block": {"kind": "nothing"}, "gradient": "adjoint"}, "", 6)
    assert (odd.source, math.isnan(odd.cumulative(3))) == ("none", True)


def test_an_interrupted_call_goes_on_where_it_was(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, parts = Store(runs.parent / "store"), choose_parts(["residual"], 5, 0, ())
    calls, real = [], drift_measure.measure

    def counted(subject, probe, *args, **kwargs):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(probe.name)
        return real(subject, probe, *args, **kwargs)

    monkeypatch.setattr(drift_measure, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        drift(of_folder(runs, "one"), parts, store=store)
    monkeypatch.setattr(drift_measure, "measure", real)
    second = drift(of_folder(runs, "one"), parts, store=store)
    assert (second.found, second.measured) == (3, 1)
    # nothing is computed a third time: not even a force is evaluated
    monkeypatch.setattr("dyneq.catalog.measure.run_probe", lambda *a, **k: pytest.fail("computed again"))
    third = drift(of_folder(runs, "one"), parts, store=store)
    assert (third.found, third.measured) == (4, 0)
    xr.testing.assert_identical(second.dataset, third.dataset)


def test_a_damaged_snapshot_is_named_and_the_rest_is_shown(runs: Path, tmp_path: Path) -> None:
    (runs / "step-000002.pt").write_bytes((runs / "step-000002.pt").read_bytes()[:500])
    shutil.copy(runs / "step-000004.pt", runs / "step-000005.pt")
    found = drift(of_folder(runs, "one"), choose_parts(["residual"], 5, 0, ()), store=Store(tmp_path / "store"))
    assert found.dataset["step"].values.tolist() == [0, 4, 6]
    assert [(m.name, m.part) for m in found.missing] == [("one@2", ""), ("one@5", "")]
    assert "says it has had 4" in found.missing[1].reason


def test_a_probe_that_fails_at_one_snapshot_costs_its_own_numbers_alone(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = drift_measure.measure

    def failing(subject, probe, *args, **kwargs):
        if probe.name == "spectrum" and subject.name == "one@4":
            raise DyneqError("no eigenvalues today")
        return real(subject, probe, *args, **kwargs)

    monkeypatch.setattr(drift_measure, "measure", failing)
    parts = choose_parts(["residual", "spectrum"], DEPTH, 0, ())
    run = thin(of_folder(runs, "one"), last=2)
    found = drift(run, parts, batch=2, store=Store(tmp_path / "store"))
    assert [(m.name, m.part, m.reason) for m in found.missing] == [("one@4", "spectrum", "no eigenvalues today")]
    assert np.isfinite(found.dataset["validation_loss"].values).all()
    assert np.isnan(found.dataset["abscissa"].values).tolist() == [True, False]
    answers = {c.text: c.answers for c in conditions(found.dataset)}["the abscissa is above 0"]
    assert answers == (Answer.OPEN, Answer.NO)


def test_snapshots_of_different_blocks_are_no_run(runs: Path, tmp_path: Path) -> None:
    other = recipe(runs.parent / "text.txt").model_copy(
        update={"block": {**recipe(runs).block, "channels": 12}, "data": load_recipe_data(runs)}
    )
    start(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "step-000004.pt", runs / "step-000004.pt")
    with pytest.raises(UsageError, match=r"one@0 and one@4 are of different blocks \(channels 8 and 12\)"):
        drift(of_folder(runs, "one"), choose_parts(["residual"], 5, 0, ()), store=Store(tmp_path / "store"))


def load_recipe_data(folder: Path):
    from dyneq.train.recipe import load_recipe

    return load_recipe(folder / "recipe.toml").data


def test_runs_are_found_by_name_and_by_folder(trained: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(trained / "store")
    by_name, by_folder = find_run(store, "one"), find_run(store, str(trained / "one"))
    assert [s.step for s in by_name.snapshots] == [s.step for s in by_folder.snapshots] == STEPS
    assert by_name.log == by_folder.log == trained / "one" / "log.jsonl"
    assert by_name.snapshots[1].open().checkpoint.sha256 == by_folder.snapshots[1].open().checkpoint.sha256
    monkeypatch.chdir(trained)
    assert find_run(Store(runs / "none"), "slow").log == Path("slow") / "log.jsonl"
    for text, told in (
        ("ome", "did you mean 'one'"),
        ("one@2", "is one checkpoint.*its run 'one'"),
        ("./nothing", "no run folder"),
        (".", "holds no snapshots"),
    ):
        with pytest.raises(UsageError, match=told):
            find_run(store, text)


def test_two_trainings_under_one_name_are_told_apart(trained: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for name in ("one", "slow"):
        add_file(store, trained / name / "step-000006.pt", run="both")
    with pytest.raises(UsageError, match="two different checkpoints of step 6"):
        find_run(store, "both")


def test_snapshots_are_thinned(trained: Path) -> None:
    run = of_folder(trained / "one", "one")

    def kept(**how) -> list[int]:
        return [s.step for s in thin(run, **how).snapshots]

    assert kept(every=3) == [0, 4]
    assert kept(last=2) == [4, 6]
    assert kept(steps="0, 3-6") == [0, 4, 6]
    assert kept(steps="2-6", every=4, last=1) == [6]
    with pytest.raises(UsageError, match="no snapshot at step 3; it has the steps 0, 2, 4, 6"):
        kept(steps="3")
    with pytest.raises(UsageError, match="takes steps and ranges"):
        kept(steps="2..4")
    with pytest.raises(UsageError, match="one snapshot to look at"):
        drift(thin(run, last=1), [], store=Store(trained / "store"))


def test_the_gradient_series_is_the_cosine_of_the_gradients_themselves(runs: Path, tmp_path: Path) -> None:
    spec = "triangulate:ref=bptt20,estimator=adjoint:solver=gmres,batches=1,samples=4,horizon=0"
    run = thin(of_folder(runs, "one"), last=2)
    found = drift(run, choose_parts([spec], DEPTH, 0, ()), store=Store(tmp_path / "store")).dataset
    for i, step in enumerate(STEPS[-2:]):
        flat = []
        for name, options in (("bptt", {"steps": 20}), ("adjoint", {"solver": "gmres", "relaxation": 20})):
            gradient = registry.build(name, options).gradient(load_checkpoint(runs / f"step-{step:06d}.pt").bind())
            flat.append(torch.cat([p.flatten() for members in gradient.parameters.values() for p in members.values()]))
        wanted = torch.nn.functional.cosine_similarity(*flat, dim=0).item()
        assert found["cosine"].isel(step=i).item() == pytest.approx(wanted, abs=1e-12)
        assert found["norm_ratio"].isel(step=i).item() == pytest.approx((flat[1].norm() / flat[0].norm()).item())
    assert np.isnan(found["cosine_error"].values).all(), "one batch has no interval"
    assert conditions(found)[-1].answers == (Answer.OPEN,) * 2
    assert found["cosine"].attrs["reference"] == "bptt20"
    assert "+- ?" in table(found)
    plot_drift(found)


def test_a_reference_that_is_not_settled_is_said() -> None:
    ends = np.array([[[0.95, 1.0], [0.2, 1.0], [0.95, 1.0]], [[0.95, 1.0], [0.1, 0.6], [0.1, 0.5]]])
    ds = synthetic("x", np.array([3.0, 2.0, 1.0])[:, None] + np.linspace(0, 1e-3, 5)).assign_coords(
        estimator=np.array(["bptt150", "aep"], dtype=object), bound=np.array(["low", "high"], dtype=object)
    )
    attributes = {"reference": "bptt400", "horizon": "bptt150"}
    ds["cosine"] = ("estimator", "step"), ends.mean(2), attributes
    ds["cosine_interval"] = ("estimator", "step", "bound"), ends
    texts = [f.text for f in findings(ds)]
    assert "the cosine of aep is below 0.9: between steps 0 and 10" in texts
    assert not any("cosine of bptt150 is below" in t for t in texts)
    assert any("bptt400 is not known to be settled at the steps 10 (" in t for t in texts)


N, Y, U = Answer.NO, Answer.YES, Answer.OPEN


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ((N, N, Y, Y), (10, 20, 30, None, True)),
        ((N, U, Y, Y), (0, 20, 30, None, True)),  # what is open widens the bracket
        ((N, Y, U, Y), (0, 10, 30, None, False)),
        ((N, N, Y, U), (10, 20, 20, None, False)),
        ((Y, Y, Y, Y), (None, 0, 30, None, True)),
        ((Y, N, N, Y), (20, 30, 30, None, True)),  # the last time counts
        ((N, Y, Y, N), (0, 10, 20, 30, True)),  # and so does what has passed
        ((N, Y, U, N), (0, 10, 10, 30, True)),
        ((N, U, U, U), None),
        ((U, U, U, U), None),
    ],
)
def test_a_turn_lies_between_the_snapshots_that_are_known(answers, wanted) -> None:
    found = turn([0, 10, 20, 30], Condition("x", answers))
    assert (found and (found.after, found.by, found.last, found.until, found.sure)) == wanted


def test_earlier_stretches_are_told() -> None:
    found = turn([0, 10, 20, 30, 40, 50], Condition("x", (Y, N, Y, Y, N, Y)))
    assert found.where == "between steps 40 and 50; earlier also at steps 0, 20 to 30"
    passed = turn([0, 10, 20], Condition("x", (N, Y, N)))
    assert passed.where == "between steps 0 and 10, and no longer between steps 10 and 20"


def test_turns_are_ordered_only_where_their_brackets_tell() -> None:
    steps = [0, 10, 20, 30]
    a, b, c, d = (
        turn(steps, Condition(name, answers))
        for name, answers in (
            ("a", (N, Y, Y, Y)),
            ("b", (N, N, Y, Y)),
            ("c", (N, U, Y, Y)),
            ("d", (Y, Y, Y, Y)),
        )
    )
    assert [[t.text for t in g] for g in unordered([b, a])] == [["a"], ["b"]]
    assert a.precedes(b)
    assert not b.precedes(a)
    assert [[t.text for t in g] for g in unordered([d, b])] == [["d"], ["b"]]
    group = unordered([a, b, c])
    assert [[t.text for t in g] for g in group] == [["a", "c", "b"]]
    assert {frozenset((x.text, y.text)) for x, y in unknown_pairs(group[0])} == {frozenset("ac"), frozenset("bc")}


def synthetic(run: str, loss: np.ndarray, *, rate: np.ndarray | None = None, batch: str = "b") -> xr.Dataset:
    """Return a series with given losses ``[step, sample]``."""
    steps = np.arange(len(loss)) * 10
    rate = steps * 1e-3 if rate is None else rate
    ds = xr.Dataset(
        {
            "validation_loss": ("step", loss.mean(1)),
            "validation_loss_error": ("step", np.zeros(len(loss))),
            "sample_loss": (("step", "sample"), loss),
            "cumulative_lr": ("step", rate),
        },
        {"step": steps, "sample": np.arange(loss.shape[1])},
    )
    return ds.assign_attrs(run=run, batch_sha256=batch, learning_rates="log", pinned_samples=loss.shape[1])


def test_a_loss_is_worse_where_a_paired_test_says_so() -> None:
    """Student's test of SciPy decides, not the spread of the samples, which is far larger than any difference."""
    generator = np.random.default_rng(1)
    level = generator.normal(0, 1, 20)
    course = np.array([3.0, 2.5, 2.0, 2.02, 2.2, 2.1])
    loss = course[:, None] + level + generator.normal(0, 0.08, (6, 20))
    answers = conditions(synthetic("x", loss))[0].answers
    best = int(loss.mean(1).argmin())
    for j in range(6):
        p = 1.0 if j <= best else stats.ttest_1samp(loss[j] - loss[best], 0).pvalue
        assert answers[j] is (N if j <= best else Y if p < 0.05 else U)
    assert set(answers) == {N, Y, U}
    lost = loss.copy()
    lost[1] = np.nan  # a snapshot that was not measured leaves the others as they are
    assert conditions(synthetic("x", lost))[0].answers == (answers[0], U, *answers[2:])


def test_findings_say_what_came_first_or_that_it_is_open() -> None:
    ds = synthetic("x", np.array([3.0, 2.0, 1.0, 2.0, 3.0])[:, None] + np.linspace(0, 1e-3, 5))
    zero = np.zeros(5)
    ds = ds.assign(
        abscissa=("step", [-1.0, -0.5, -0.2, 0.1, 0.2]),
        unstable=("step", [0, 0, 0, 1.0, 2.0]),
        undecided=("step", zero),
        no_fixed_point=("step", zero),
        unsettled=("step", [0, 0, 0, 0, 1.0]),
    )
    texts = {f.text: f.level for f in findings(ds)}
    assert texts["the abscissa is above 0: between steps 20 and 30"] == "warning"
    coarse = next(t for t in texts if "too coarse" in t)
    assert "worse than its best" in coarse
    assert "abscissa" in coarse
    assert texts[coarse] == "undetermined"
    order = next(t for t in texts if t.startswith("first "))
    assert order.index("abscissa") < order.index("force residual above")
    single = ds.assign(unstable=("step", zero), unsettled=("step", zero))
    calm = synthetic("x", np.array([3.0, 2.0])[:, None] + np.linspace(0, 1e-3, 5))
    assert any("nothing turned" in f.text for f in findings(calm))
    assert not any("abscissa is above" in f.text for f in findings(single))
    plot_drift(ds.assign(abscissa_error=("step", zero + np.nan), step_unstable=("step", zero)))
    size = ds.sizes["sample"]
    assert findings(single)[0].text.endswith(f"; none of {size} samples unsettled at any of them")
    assert findings(ds)[0].text.endswith(f"; at most 1 of {size} samples unsettled at any of them")
    none = single.assign(abscissa_error=("step", zero + np.nan))
    counts = next(a for a in plot_drift(none).axes if a.get_ylabel() == f"samples of {size}")
    assert counts.get_ylim() == (-0.3, 1.3), "no axis of fractions of samples where there are none"


def test_interpolation_is_exact_for_lines_and_knows_its_error_for_parabolas() -> None:
    rate = np.array([0.0, 1.0, 2.5, 4.0])
    at = np.array([0.0, 0.3, 1.0, 2.0, 3.9])
    values, error = interpolated(rate, np.stack([2 - rate, 1 + 3 * rate], 1), at)
    np.testing.assert_allclose(values, np.stack([2 - at, 1 + 3 * at], 1), atol=1e-14)
    np.testing.assert_allclose(error, 0, atol=1e-14)
    # the divided difference of a parabola is its leading coefficient everywhere: the estimate is the error itself
    values, error = interpolated(rate, (5 * rate**2 - rate)[:, None], at)
    np.testing.assert_allclose(values[:, 0] - (5 * at**2 - at), error, atol=1e-13)
    # between the only two, a monotonic curve can be anywhere between their losses
    values, error = interpolated(np.array([0.0, 1.0]), np.array([[3.0], [1.0]]), np.array([0.0, 0.25, 1.0]))
    assert values[:, 0].tolist() == [3.0, 2.5, 1.0]
    assert error.tolist() == [0.0, 1.5, 0.0]


def test_runs_of_unequal_learning_rate_are_compared_where_the_sum_is_equal() -> None:
    """The loss is a function of the cumulative learning rate alone, so at equal steps the slow run only seems worse."""
    level = np.linspace(-0.5, 0.5, 8)
    noise = np.random.default_rng(2).normal(0, 1e-3, (5, 8))

    def losses(rate: np.ndarray, shift: float = 0.0) -> np.ndarray:
        return (3 - 20 * rate + shift)[:, None] + level + noise

    fast, slow = np.arange(5) * 2e-2, np.arange(5) * 1e-2
    one = synthetic("fast", losses(fast), rate=fast)
    joined, reasons = join([one, synthetic("slow", losses(slow), rate=slow)])
    assert not reasons
    assert joined["at_cumulative_lr"].values.tolist() == pytest.approx([0, 0.01, 0.02, 0.03, 0.04])
    assert joined["at_step"].sel(run="fast").values == pytest.approx([0, 5, 10, 15, 20])
    assert (np.abs(joined["difference"].values[1]) <= joined["difference_error"].values[1] + 2e-3).all()
    found = comparison(joined)
    assert "equal cumulative learning rate 0.04 (fast step 20, slow step 40)" in found[0].text
    better, _ = join([one, synthetic("slow", losses(slow, shift=-0.1), rate=slow)])
    found = comparison(better)
    assert found[0].level == "fact"
    assert "slow has a lower loss than fast" in found[0].text
    # the paired interval of SciPy at the last point, where the interpolation of a line adds nothing
    difference = losses(slow, -0.1)[-1] - losses(fast)[2]
    wanted = stats.t.interval(0.95, 7, difference.mean(), stats.sem(difference))
    assert better["difference"].values[1, -1] == pytest.approx(difference.mean(), abs=1e-12)
    assert better["difference_error"].values[1, -1] >= (wanted[1] - wanted[0]) / 2 * (1 - 1e-9)
    left, right = plot_runs(better).axes
    assert [line.get_label() for line in left.get_lines()][:2] == ["fast", "slow"]
    np.testing.assert_array_equal(left.get_lines()[1].get_xdata(), slow)
    assert [t.get_text() for t in right.get_legend().get_texts()] == ["slow minus fast, 95 %"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch": "c"}, "of other samples"),
        ({"rate": np.full(5, np.nan)}, "fewer than two"),
        ({"rate": np.arange(5) + 10.0}, "no cumulative learning rate in common"),
    ],
)
def test_runs_that_cannot_be_compared_are_not(change, told) -> None:
    loss = np.arange(5.0)[:, None] + np.ones(3)
    joined, reasons = join([synthetic("a", loss), synthetic("b", loss, **change)])
    assert told in reasons[0]
    assert "difference" not in joined
    assert comparison(joined, reasons)[0].level == "undetermined"
    assert plot_runs(joined).axes[1].get_xlabel() == "step (updates)"
