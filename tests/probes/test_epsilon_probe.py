"""The epsilon probe: who is to blame, against closed forms and the manifest of the packaged checkpoint."""

import json
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import dyneq
from dyneq.cli.generic import entry
from dyneq.errors import DyneqError, UsageError
from dyneq.probes.registry import get_probe, run_probe
from dyneq.systems import analytic
from dyneq.systems.adapters import from_ode
from dyneq.systems.thick import ThickBlock, ThickConfig

F64 = torch.float64


def text_of(ds):
    return " | ".join(f.text for f in get_probe("epsilon").summary(ds))


def measure(system, **params):
    return run_probe("epsilon", system, **params)


def end(ds, eps):
    return ds.sel(eps=eps)


# --- Euler to blame -------------------------------------------------------------------------------------------------


#: Critical step 1/4.25; its Euler map has a stable circle at eps = 0.4.
HOPF = analytic.HopfNormalForm(-0.5, 2.0, eps=0.4)


@pytest.fixture(scope="module")
def circle():
    return measure(HOPF, eps=(0.05, 0.1, 0.4), horizon=110.0)


def test_neimark_sacker_is_the_steps_fault(circle):
    system = HOPF
    assert (circle["verdict"] == "euler").all()
    assert (circle["step_kind"] == "neimark-sacker").all()
    assert (circle["agreement"] == "agrees").all()
    assert (circle["confirmed"] == 1).all()
    critical = circle["critical_eps"].values
    assert (np.abs(critical - system.critical_step) <= circle["critical_eps_error"].values).all()
    assert (circle["observed_low"].values <= system.critical_step).all()
    assert (circle["observed_high"].values >= system.critical_step).all()
    assert (circle["observed_critical_eps_error"].values <= 0.01 * system.critical_step).all()
    text = text_of(circle)
    assert "kept moving by Euler's step" in text
    assert "oscillations (Neimark-Sacker)" in text
    assert "4 of 4 were seen to settle, or to near the root" in text


def test_residual_of_the_circle_is_the_closed_form(circle):
    """On the circle norm(F)/norm(z) = abs(a - c rho^2 + i b); below the critical step abs(1 + eps mu) is the decay."""
    system = HOPF
    assert abs(system.radial_multiplier) < 1
    expected = abs(complex(system.r - system.c * system.circle_radius**2, system.nu))
    np.testing.assert_allclose(end(circle, 0.4)["force_residual"], expected, rtol=1e-9)
    assert (end(circle, 0.4)["outcome"] == "moving").all()
    for eps in (0.05, 0.1):
        growth = end(circle, eps)["growth"].values * eps
        np.testing.assert_allclose(growth, math.log(abs(1 + eps * complex(-0.5, 2.0))), rtol=1e-4)
        assert (end(circle, eps)["outcome"] == "settled").all()
    # the step residual would call the smallest step the best, whatever the state does
    np.testing.assert_allclose(circle["step_residual"], circle["eps"] * circle["force_residual"], rtol=1e-14)


def test_flip_is_named():
    system = analytic.FlipFlow()
    ds = measure(system, eps=(0.05, 0.08), horizon=40.0)
    assert ds["eps"].values.tolist() == [0.05, 0.08, 0.1]
    assert (ds["verdict"] == "euler").all()
    assert (ds["step_kind"] == "flip").all()
    np.testing.assert_allclose(ds["critical_eps"], 1 / 11, rtol=1e-12)
    assert ((ds["observed_low"] <= 1 / 11) & (ds["observed_high"] >= 1 / 11)).all()
    # on the orbit of period 2, norm(F)/norm(z) = abs(mu + c p^2) = 2/eps
    np.testing.assert_allclose(end(ds, 0.1)["force_residual"], 2 / 0.1, rtol=1e-9)
    assert "flips (period 2)" in text_of(ds)


def test_the_critical_mode_need_not_be_the_rightmost():
    """Rightmost -0.2 is real and slow; the pair -0.5 +- 4i, further left, sets the critical step 1/16.25."""
    blocks = torch.zeros(4, 4, dtype=F64)
    blocks[0, 0], blocks[3, 3] = -0.2, -3.0
    blocks[1:3, 1:3] = torch.tensor([[-0.5, 4.0], [-4.0, -0.5]], dtype=F64)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=F64))[0]
    matrix, away = turn @ blocks @ turn.T, torch.ones(2, 4, dtype=F64)
    system = from_ode(lambda z: (z - away) @ matrix.T, away + 0.1 * torch.tensor([[1.0], [2.0]], dtype=F64), eps=0.1)
    ds = measure(system, eps=(0.03, 0.05, 0.1), horizon=120.0)
    assert (ds["verdict"] == "euler").all()
    np.testing.assert_allclose(ds["rightmost_mu"], -0.2, atol=1e-10)
    np.testing.assert_allclose(ds["critical_mu"], -0.5 + 4j, atol=1e-10)
    np.testing.assert_allclose(ds["critical_eps"], 1 / 16.25, rtol=1e-10)
    assert (ds["step_kind"] == "neimark-sacker").all()
    # a linear flow has nothing that stops the growth
    assert (end(ds, 0.1)["force_residual"] > 1).all()
    assert (end(ds, 0.03)["outcome"] == "settled").all()


def test_a_stiff_real_mode_flips():
    matrix = torch.diag(torch.tensor([-0.5, -30.0, -5.0], dtype=F64))
    ones = torch.ones(1, 3, dtype=F64)
    system = from_ode(lambda z: (z - ones) @ matrix, 1.1 * ones, eps=0.1)
    ds = measure(system, eps=(0.03, 0.05, 0.1), horizon=40.0)
    assert ds["verdict"].values.tolist() == ["euler"]
    assert ds["step_kind"].values.tolist() == ["flip"]
    assert float(ds["critical_eps"][0]) == pytest.approx(1 / 15, rel=1e-12)
    assert float(ds["observed_low"][0]) <= 1 / 15 <= float(ds["observed_high"][0])


# --- the flow to blame ----------------------------------------------------------------------------------------------


def test_a_hopf_instability_of_the_flow_is_left_at_every_step():
    system = analytic.StuartLandau(r=0.1, nu=2.0, eps=0.05)
    ds = measure(system, eps=(0.01, 0.05, 0.2), horizon=60.0)
    assert (ds["verdict"] == "flow-unstable").all()
    assert (ds["flow_kind"] == "hopf").all()
    assert (ds["flow_unstable_observed"] == 1).all()
    assert ds["critical_eps"].isnull().all()
    assert (ds["outcome"] == "moving").all()
    np.testing.assert_allclose(ds["rightmost_mu"], 0.1 + 2j, atol=1e-8)
    assert "a Hopf instability" in text_of(ds)
    assert "no step size helps" in text_of(ds)


def test_a_real_instability_is_no_hopf():
    # x' = x - x^3 from its own root x = 0, which it never leaves in exact arithmetic
    system = from_ode(lambda z: z - z**3, torch.zeros(1, 1, dtype=F64), eps=0.1)
    ds = measure(system, horizon=20.0)
    assert ds["verdict"].values.tolist() == ["flow-unstable"]
    assert ds["flow_kind"].values.tolist() == ["real"]
    assert "started next to the unstable root" in ds["reason"].values[0]


# --- neither --------------------------------------------------------------------------------------------------------


def test_slow_samples_are_told_when_they_will_settle():
    """z' = -0.02 (z - 1): abs(z - 1) falls to 1e-6/0.02 after ln(1/5e-5)/0.02 = 495 time units."""
    system = from_ode(lambda z: -0.02 * (z - 1), torch.full((1, 1), 2.0, dtype=F64), eps=0.1)
    ds = measure(system, horizon=150.0)
    assert ds["verdict"].values.tolist() == ["slow"]
    exact = math.log(1 / 5e-5) / (-math.log(1 - 0.02 * 0.1) / 0.1)
    assert float(ds["needed_time"][0]) == pytest.approx(exact, rel=0.01)
    assert "relax deeper" in text_of(ds)
    # and it does: the probe's own runs, longer
    again = measure(system, horizon=1.01 * float(ds["needed_time"][0]))
    assert again["verdict"].values.tolist() == ["stable"]


def test_slow_approach_to_a_root_at_zero():
    """z' = -0.05 z: the residual relative to z does not fall before z is small against its start; the distance does."""
    system = analytic.LinearFlow(torch.tensor([[-0.05]], dtype=F64), torch.ones(1, 1, dtype=F64), eps=0.2)
    ds = measure(system, eps=(0.1, 0.2), horizon=60.0)
    assert ds["verdict"].values.tolist() == ["slow"]
    # 0.05 abs(z) = 1e-6 times a thousandth of the start
    exact = math.log(0.05 / 1e-9) / (-math.log(1 - 0.05 * 0.2) / 0.2)
    assert float(ds["needed_time"][0]) == pytest.approx(exact, rel=1e-3)


def test_settling_at_its_own_step_but_not_at_larger_ones():
    ds = measure(HOPF.with_eps(0.1), eps=(0.4,), horizon=110.0)
    assert (ds["verdict"] == "settles").all()
    assert "not at every step tried" in text_of(ds)


def test_stable_everywhere():
    ds = measure(from_ode(lambda z: 1 - z, torch.full((2, 3), 2.0, dtype=F64), eps=0.1), horizon=40.0)
    assert (ds["verdict"] == "stable").all()
    assert text_of(ds).startswith("2 of 2 samples settle at eps=0.1")
    # both bounds of the critical step, 2, lie beyond the steps tried or are not known
    assert (ds["observed_high"] >= 2 - 1e-6).all()


def test_no_root_and_a_fold_are_undetermined():
    ds = measure(from_ode(lambda z: 1 + z**2, torch.full((1, 1), -1.0, dtype=F64), eps=0.01), horizon=1.0)
    assert ds["verdict"].values.tolist() == ["undetermined"]
    assert "no root" in text_of(ds)
    ds = measure(from_ode(lambda z: -((z - 1) ** 2), torch.full((1, 1), 1.5, dtype=F64), eps=0.1), horizon=40.0)
    assert ds["verdict"].values.tolist() == ["undetermined"]


def test_own_step_at_the_critical_one_is_not_decided():
    system = analytic.FlipFlow(eps=2 / 22)
    ds = measure(system, eps=(0.05, 0.1), horizon=20.0)
    assert (ds["verdict"] == "undetermined").all()
    assert "critical one within its error" in text_of(ds)


def test_another_attractor_is_not_called_slow():
    """r' = -r + 3 r^3 - r^5 in polar form: 0 is stable, and so is the circle the start lies on."""

    def force(z):
        square = (z**2).sum(-1, keepdim=True)
        turned = torch.stack([-z[:, 1], z[:, 0]], dim=-1)
        return (-1 + 3 * square - square**2) * z + 2 * turned

    system = from_ode(force, torch.tensor([[1.6, 0.0]], dtype=F64), eps=0.02)
    ds = measure(system, eps=(0.01, 0.02), horizon=40.0)
    assert ds["root_status"].values.tolist() == ["converged"]
    assert ds["verdict"].values.tolist() == ["undetermined"]
    assert "another attractor" in text_of(ds)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_a_map_is_refused():
    with pytest.raises(UsageError, match=r"is a map: .* no eps to vary or to blame"):
        measure(analytic.Henon())


@pytest.mark.parametrize("params", [{"eps": ()}, {"eps": (-0.1,)}, {"eps": (math.nan,)}, {"horizon": 0.0}])
def test_bad_parameters_are_errors(params):
    with pytest.raises(DyneqError):
        measure(analytic.FlipFlow(), **params)


def test_one_step_says_what_it_cannot_say():
    ds = measure(analytic.HopfNormalForm(), eps=(0.5,), horizon=40.0)
    assert "only one step was tried" in text_of(ds)
    ds = measure(analytic.HopfNormalForm(), eps=(0.1,), horizon=40.0)
    assert "only eps=0.1 was asked for" in text_of(ds)


def test_a_diverged_sample_is_named_and_the_others_go_on():
    system = analytic.FlipFlow(z0=torch.tensor([[0.5], [20.0]], dtype=F64), eps=0.05)
    ds = measure(system, eps=(0.02, 0.05), horizon=20.0)
    assert ds["outcome"].values.tolist() == [["settled", "diverged"]] * 2
    assert ds["verdict"].values.tolist()[0] == "stable"
    assert ds["verdict"].values.tolist()[1] not in {"stable", "settles", "slow", "euler"}
    assert "1 of 2 samples (1) diverged" in text_of(ds)


def test_all_samples_diverged():
    system = from_ode(lambda z: z**3 + 1e3, torch.full((2, 1), 5.0, dtype=F64), eps=0.1)
    ds = measure(system, eps=(0.1, 0.2), horizon=5.0)
    assert (ds["outcome"] == "diverged").all()
    assert (ds["verdict"] != "stable").all()
    json.dumps(entry("epsilon", ds), default=str)
    get_probe("epsilon").plot(ds)


def test_absorbed_steps_are_no_convergence():
    system = from_ode(lambda z: 1 - z, torch.full((1, 1), 2.0, dtype=F64), eps=0.1)
    ds = measure(system, eps=(1e-18, 0.1), horizon=40.0)
    assert ds["outcome"].values.tolist() == [["absorbed"], ["settled"]]
    assert "steps vanish in rounding" in text_of(ds)


def test_single_precision_and_one_sample():
    system = from_ode(lambda z: -2 * (z - 1), torch.full((1, 1), 3.0), eps=0.1)
    ds = measure(system, eps=(0.1, 0.9, 1.2), horizon=40.0)
    assert ds["verdict"].values.tolist() == ["settles"]
    assert float(ds["observed_low"][0]) <= 1.0 <= float(ds["observed_high"][0])


# --- blocks ---------------------------------------------------------------------------------------------------------


def block(damping, seed=2):
    generator = torch.Generator().manual_seed(seed)
    config = ThickConfig(vocabulary=13, channels=8, heads=2, tokens=4, damping=damping)
    model = ThickBlock(config, generator).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "wo.weight" in name or "pj.weight" in name:
                p.mul_(1.5)
    model.ln1.eps = model.ln2.eps = 1e-12  # the one constant that is not scale free
    return model.bind(torch.randint(0, 13, (2, 4), generator=generator), eps=0.1)


def test_eps_times_one_plus_damping_does_not_depend_on_the_damping():
    """By the scale invariance of layer norm damping only rescales state and time."""
    steps = []
    for damping in (0.5, 1.0, 3.0):
        system = block(damping)
        system.eps = 0.2 / (1 + damping)
        ds = measure(system, eps=tuple(x / (1 + damping) for x in (0.5, 1.0, 2.0, 4.0)), horizon=120 / (1 + damping))
        assert (ds["root_status"] == "converged").all()
        scaled = {n: ds[n].values * (1 + damping) for n in ("critical_eps", "observed_low", "observed_high")}
        assert np.isfinite(scaled["critical_eps"]).all()
        assert (scaled["observed_low"] <= scaled["critical_eps"] * (1 + 1e-9)).all()
        assert (scaled["observed_high"] >= scaled["critical_eps"] * (1 - 1e-9)).all()
        steps.append(scaled["critical_eps"])
    np.testing.assert_allclose(steps[0], steps[1], rtol=1e-6)
    np.testing.assert_allclose(steps[2], steps[1], rtol=1e-6)


def manifest():
    path = "reference/manifest.json"
    from importlib.resources import files

    pairs = json.loads((files("dyneq") / path).read_text())["checkpoints"]["after"]["long_run"]["pairs"]
    return {p["sample"]: p for p in pairs}


def compare_with_manifest(ds, which):
    known = manifest()
    for i, sample in enumerate(which):
        row, pair = ds.isel(sample=i), known[sample]
        if pair["critical_eps"] is None:
            assert str(row["verdict"].item()) == "flow-unstable"
            assert str(row["flow_kind"].item()) == "hopf"
            assert float(row["flow_unstable_observed"]) == 1
            continue
        assert float(row["critical_eps"]) == pytest.approx(pair["critical_eps"], rel=1e-9)
        assert int(row["critical_token"]) == pair["critical_token"]
        assert str(row["verdict"].item()) == ("euler" if pair["critical_eps"] < 0.1 else "slow")
        slack = 0.01 * pair["critical_eps"]
        assert float(row["observed_low"]) - slack <= pair["critical_eps"] <= float(row["observed_high"]) + slack
        assert str(row["agreement"].item()) == "agrees"
        if pair["critical_eps"] > 0.06 and pair["critical_eps"] < 0.1:
            assert float(row["confirmed"]) == 1  # by eps = 0.05


def test_packaged_checkpoint_has_several_culprits():
    which = [11, 16, 57]
    system = dyneq.open_checkpoint("after").bind().select(torch.tensor(which))
    ds = measure(system, eps=(0.05, 0.1, 0.2), horizon=60.0)
    assert ds["verdict"].values.tolist() == ["euler", "flow-unstable", "slow"]
    compare_with_manifest(ds, which)
    assert int(ds["observed_token"][0]) == manifest()[11]["critical_token"]
    assert "1 left by the flow itself, 1 kept moving by Euler's step, 1 merely slow" in text_of(ds)


@pytest.mark.slow
def test_every_unsettled_sample_of_the_packaged_checkpoint():
    which = sorted(manifest())
    system = dyneq.open_checkpoint("after").bind().select(torch.tensor(which))
    ds = measure(system)
    compare_with_manifest(ds, which)
    verdict = ds["verdict"].values.tolist()
    assert [verdict.count(v) for v in ("flow-unstable", "euler", "slow")] == [3, 9, 9]


# --- the result -----------------------------------------------------------------------------------------------------


def test_variables_are_described_and_the_document_is_json(circle):
    for name, variable in circle.data_vars.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs, name
    assert circle["critical_eps"].attrs["ancillary_variables"] == "critical_eps_error"
    assert circle["evaluations"].attrs["role"] == "cost"
    assert float(circle["evaluations"]) > float(circle["sweep_evaluations"]) > 0
    document = entry("epsilon", circle)
    assert document["verdicts"]["euler"] == 4
    assert document["samples"][0]["step_kind"] == "neimark-sacker"
    assert json.loads(json.dumps(document))["steps"][0]["eps"] == 0.05


def test_table_and_figure(circle):
    probe = get_probe("epsilon")
    table = probe.text(circle)
    assert "neimark-sacker" in table
    assert "0.4 own" in table
    figure = probe.plot(circle)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 2
    axes = Figure().subplots(1, 2)
    assert probe.plot(circle, ax=axes) is axes[0].figure
    with pytest.raises(UsageError, match="two axes"):
        probe.plot(circle, ax=axes[0])


def test_same_seed_same_result():
    a, b = (measure(analytic.FlipFlow(), eps=(0.05, 0.1), horizon=10.0) for _ in range(2))
    for name in ("growth", "observed_low", "observed_high", "force_residual"):
        np.testing.assert_array_equal(a[name], b[name])
