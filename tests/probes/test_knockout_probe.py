"""The knockout probe: known crossings, folds and floors, blocks, findings, figure and bad input."""

import json
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import dyneq
from dyneq.cli.generic import entry, show
from dyneq.dynamics.relax import relax
from dyneq.dynamics.trajectory import Recorder
from dyneq.errors import UsageError
from dyneq.probes.registry import get_probe, run_probe
from dyneq.systems import analytic
from dyneq.systems.adapters import from_ode
from dyneq.systems.protocol import Time
from dyneq.systems.thick import ThickBlock, ThickConfig

F64 = torch.float64
NU, C, D = 2.0, 1.5, 0.7


class Scalable(analytic.AnalyticFlow):
    """Oscillators with growth rate alpha - threshold, one threshold a sample, and a part called drive."""

    parts = ("drive",)

    def __init__(self, thresholds, alpha=1.0, z0=None, eps=0.05, rhs=None):
        start = torch.full((len(thresholds), 2), 0.4, dtype=F64) if z0 is None else z0
        super().__init__(2, start, eps)
        self.thresholds, self.alpha, self.own = torch.tensor(thresholds, dtype=F64)[:, None], alpha, rhs

    def scaled(self, part, alpha):
        if part != "drive":
            return super().scaled(part, alpha)
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.alpha = self.alpha * alpha
        return copy

    def select(self, samples):
        copy = super().select(samples)
        copy.thresholds = self.thresholds[samples]
        return copy

    def rhs(self, z):
        rate = self.alpha - self.thresholds
        if self.own is not None:
            return self.own(z, rate)
        x, y = z[:, :1], z[:, 1:]
        square = x * x + y * y
        growth, turn = rate - C * square, NU - D * square
        return torch.cat([growth * x - turn * y, turn * x + growth * y], 1)


class ScalableMap(Scalable):
    """The time map exp(rate) of a turn by NU, cubic damping."""

    time = Time.MAP

    def force(self, z, context=None):
        rate = self.alpha - self.thresholds
        turn = torch.tensor([[math.cos(NU), math.sin(NU)], [-math.sin(NU), math.cos(NU)]], dtype=F64)
        return rate.exp() * (z @ turn) / (1 + C * (z * z).sum(1, keepdim=True)) - z


def block(samples=2, **options):
    options = {"vocabulary": 11, "channels": 8, "heads": 2, "tokens": 4, **options}
    generator = torch.Generator().manual_seed(5)
    made = ThickBlock(ThickConfig(**options), generator).double()
    return made.bind(torch.randint(0, 11, (samples, 4), generator=generator))


def test_known_crossing_of_each_sample():
    system = Scalable([0.62, 0.31, 1.7, -0.5])
    ds = run_probe("knockout", system, part="drive", alpha=(1.0, 0.5, 0.0, 0.8, 0.5), depth=400)
    assert ds["alpha"].values.tolist() == [0.0, 0.5, 0.8, 1.0]  # sorted, each once
    np.testing.assert_allclose(
        ds["margin"].values, ds["alpha"].values[:, None] - system.thresholds.numpy().T, atol=1e-12
    )
    assert ds["critical_kind"].values.tolist() == ["hopf", "hopf", "none", "none"]
    for s, threshold in enumerate((0.62, 0.31)):
        row = ds.isel(sample=s)
        assert abs(float(row["critical_alpha"]) - threshold) <= float(row["critical_alpha_error"]) < 1e-8
        assert abs(float(row["frequency"]) - NU) <= float(row["frequency_error"]) + 1e-14
        # with norm(q) = 1 the coefficient of the normal form is twice that of (Re w, Im w)
        bar = float(row["lyapunov_coefficient_error"])
        assert abs(float(row["lyapunov_coefficient"]) + 2 * C) <= bar < 1e-6
        assert str(row["criticality"].item()) == "supercritical"
        assert float(row["critical_slope"]) == pytest.approx(1.0, rel=1e-6)
    assert np.isnan(ds["critical_alpha"].values[2:]).all()
    text = " ".join(f.text for f in get_probe("knockout").summary(ds))
    assert "2 of 4 samples cross" in text
    assert "sample 1" not in get_probe("knockout").summary(ds)[0].text  # 0.62 is nearer to 1
    assert ds["mode_token"].values.max() == -1


def test_floor_and_oscillation_are_those_of_the_relaxation():
    system = Scalable([0.5, 2.0])
    ds = run_probe("knockout", system, part="drive", alpha=(1.0, 0.9), depth=600)
    relaxed = relax(system, 600, recorder=Recorder(system.eps, 600))
    residual = relaxed.trajectory.force_residual.numpy()
    top = ds.sel(alpha=1.0)
    last = relaxed.residuals.force.numpy()
    np.testing.assert_allclose(top["floor"], np.minimum(residual[300:].min(0), last), rtol=1e-12)
    np.testing.assert_allclose(top["oscillation"], np.vstack([residual[450:], last]).std(0), rtol=1e-9, atol=1e-15)
    # on the Euler circle the residual is constant: floor without oscillation
    assert float(top["floor"][0]) > 1
    assert top["status"].values.tolist() == ["max_steps", "converged"]


def test_subcritical_and_undetermined_are_said():
    def subcritical(z, rate):
        x, y = z[:, :1], z[:, 1:]
        square = x * x + y * y
        growth = rate + square - square * square
        return torch.cat([growth * x - NU * y, NU * x + growth * y], 1)

    def linear(z, rate):
        return torch.cat([rate * z[:, :1] - NU * z[:, 1:], NU * z[:, :1] + rate * z[:, 1:]], 1)

    for rhs, word in ((subcritical, "subcritical"), (linear, "undetermined")):
        start = torch.full((1, 2), 1e-3, dtype=F64)
        ds = run_probe("knockout", Scalable([0.6], z0=start, rhs=rhs), part="drive", alpha=(1.0, 0.0), depth=50)
        assert ds["criticality"].values.tolist() == [word]
        assert float(ds["critical_alpha"][0]) == pytest.approx(0.6, abs=1e-8)
        assert any(word in f.text for f in get_probe("knockout").summary(ds))


def test_branch_that_ends_says_where():
    def fold(z, rate):  # roots at +-sqrt(-rate)
        return torch.cat([rate + z[:, :1] ** 2, -z[:, 1:]], 1)

    start = torch.tensor([[-1.0, 0.0]], dtype=F64).expand(2, 2).clone()
    ds = run_probe(
        "knockout", Scalable([0.45, 2.0], 1.0, start, rhs=fold), part="drive", alpha=(0.0, 0.3, 1.0), depth=300
    )
    # at alpha = 1 the first sample has no root: its branch starts at 0.3
    assert ds["anchor"].values.tolist() == [1, 2]
    assert ds["branch_end_kind"].values.tolist() == ["fold", ""]
    assert abs(float(ds["branch_end"][0]) - 0.45) <= float(ds["branch_end_error"][0]) < 1e-3
    assert np.isnan(ds["margin"].sel(alpha=1.0)[0])
    assert (ds["status"].sel(alpha=1.0).values == ["diverged", "converged"]).all()
    assert np.isnan(ds["floor"].sel(alpha=1.0)[0])
    text = " ".join(f.text for f in get_probe("knockout").summary(ds))
    assert "fold" in text
    assert "diverged" in text
    show("knockout", ds.assign_attrs(system="x", eps=0.1, dtype="float64"))


def test_no_root_anywhere():
    def none(z, rate):
        return 1 + z * z + rate**2

    ds = run_probe("knockout", Scalable([0.5], rhs=none), part="drive", alpha=(1.0, 0.0), depth=20)
    assert np.isnan(ds["anchor"].values).all()
    first = get_probe("knockout").summary(ds)[0]
    assert first.level == "undetermined"
    assert "no root was found" in first.text
    assert isinstance(get_probe("knockout").plot(ds), Figure)
    assert get_probe("knockout").text(ds)


def test_map_crosses_at_the_unit_circle():
    ds = run_probe("knockout", ScalableMap([0.6, 2.0]), part="drive", alpha=(1.0, 0.2), depth=100)
    assert ds["critical_kind"].values.tolist() == ["neimark-sacker", "none"]
    assert abs(float(ds["critical_alpha"][0]) - 0.6) <= float(ds["critical_alpha_error"][0]) < 1e-8
    assert float(ds["frequency"][0]) == pytest.approx(NU, abs=1e-8)
    assert ds["frequency"].attrs["units"] == "rad/step"
    assert np.isnan(ds["lyapunov_coefficient"][0])
    assert "map" in str(ds["lyapunov_reason"].values[0])
    np.testing.assert_allclose(ds["margin"].sel(alpha=1.0)[0], math.exp(0.4) - 1, rtol=1e-10)


def test_one_alpha_is_measured_and_no_crossing_is_claimed():
    ds = run_probe("knockout", Scalable([0.6]), part="drive", alpha=(1.0,), depth=50)
    assert ds["critical_kind"].values.tolist() == ["not sought"]
    assert float(ds["margin"][0, 0]) == pytest.approx(0.4, abs=1e-12)
    findings = get_probe("knockout").summary(ds)
    assert any("one alpha only" in f.text for f in findings)
    assert "crossing" not in findings[0].text
    assert isinstance(get_probe("knockout").plot(ds), Figure)


def test_bad_input_is_an_error_in_words():
    system = Scalable([0.6])
    for alpha in (-0.1, math.nan, math.inf):
        with pytest.raises(UsageError, match=r"from 0 \(knocked out\) upwards"):
            run_probe("knockout", system, part="drive", alpha=(1.0, alpha))
    with pytest.raises(UsageError, match="at least 1 item"):
        run_probe("knockout", system, part="drive", alpha=())
    with pytest.raises(UsageError, match="no parts to scale"):
        run_probe("knockout", analytic.StuartLandau())
    with pytest.raises(UsageError, match="no parts to scale"):
        run_probe("knockout", from_ode(lambda z: -z, torch.ones(1, 2, dtype=F64)))
    with pytest.raises(UsageError, match="head:0 to head:1"):
        run_probe("knockout", block(), part="head:2")


def test_antisymmetric_part_of_a_block_reports_shares():
    system = block()
    ds = run_probe("knockout", system, part="antisymmetric", alpha=(0.0, 0.5, 1.0), depth=100)
    attn = system.block.attn
    with torch.no_grad():
        for h in range(2):
            rows = slice(4 * h, 4 * h + 4)
            m = (attn.wo.weight[:, rows] @ attn.wv.weight[rows]).numpy()
            s, a = (m + m.T) / 2, (m - m.T) / 2
            for k, alpha in enumerate((0.0, 0.5, 1.0)):
                norm = np.linalg.norm(s + alpha * a)
                assert float(ds["gain"][k, h]) == pytest.approx(norm, rel=1e-12)
                share = alpha * np.linalg.norm(a) / norm
                assert float(ds["antisymmetric_share"][k, h]) == pytest.approx(share, abs=1e-12)
    assert float(ds["root_residual"].max()) < 1e-11
    assert "head" in get_probe("knockout").text(ds)


def test_block_without_tokens_acting_is_the_feed_forward_block():
    """At alpha = 0 the roots are those of each token alone, which plain relaxation without attention finds too."""
    system = block()
    ds = run_probe("knockout", system, alpha=(0.0, 1.0), depth=400)
    bare = system.scaled("attention", 0.0)
    relaxed = relax(bare, 400)
    assert ds["status"].sel(alpha=0.0).values.tolist() == [s.value for s in relaxed.status]
    np.testing.assert_allclose(
        ds["force_residual"].sel(alpha=0.0), relaxed.residuals.force.detach(), rtol=1e-6, atol=1e-15
    )
    mu = torch.linalg.eigvals(dyneq.dynamics.linearization.Linearization(bare, relaxed.z).token_blocks())
    np.testing.assert_allclose(ds["margin"].sel(alpha=0.0), mu.real.flatten(1).amax(1), atol=1e-6)


def test_dataset_says_what_everything_is_and_single_precision_works():
    made = block().block.float()
    system = made.bind(torch.zeros(1, 3, dtype=torch.int64))  # one sample
    ds = run_probe("knockout", system, part="head:1", alpha=(0.5, 1.0), depth=60)
    for name, variable in ds.data_vars.items():
        assert variable.attrs.get("long_name"), name
        assert "units" in variable.attrs, name
        assert variable.attrs.get("ancillary_variables", "error") in ds, name
    assert float(ds["forces"]) > 2 * 60
    assert float(ds["products"]) > 2 * 8  # the block's own products are used, not derivatives of its force
    assert ds["forces"].attrs["role"] == "cost"
    assert np.isfinite(ds["error"].values[np.isfinite(ds["margin"].values)]).all()
    assert get_probe("knockout").document(ds) is None
    json.dumps(entry("knockout", ds), allow_nan=False)
    figure = Figure()
    axes = figure.subplots(1, 2)
    assert get_probe("knockout").plot(ds, axes) is figure
    with pytest.raises(UsageError, match="two axes"):
        get_probe("knockout").plot(ds, axes[0])
    assert ds.attrs["part"] == "head:1"


@pytest.mark.slow
def test_packaged_checkpoint_loses_its_oscillations_to_the_attention():
    """Samples 0 and 16 of ``after`` are the Hopf tokens of its manifest among the first 24."""
    system = dyneq.open_checkpoint("after").bind(batch=24).select(torch.tensor([0, 16, 20]))
    ds = run_probe("knockout", system, depth=400)
    assert ds["critical_kind"].values.tolist() == ["hopf", "hopf", "none"]
    assert ds["critical_token"].values.tolist()[:2] == [13, 13]
    assert complex(ds["mu"].sel(alpha=1.0)[1]) == pytest.approx(0.178 + 2.939j, abs=2e-3)
    assert 0.8 < float(ds["critical_alpha"][1]) < float(ds["critical_alpha"][0]) < 1
    assert ds["criticality"].values.tolist()[:2] == ["supercritical", "supercritical"]
    assert ds["branch_end_kind"].values.tolist() == ["", "", "fold"]
    assert (ds["status"].sel(alpha=0.0).values == "converged").all()
