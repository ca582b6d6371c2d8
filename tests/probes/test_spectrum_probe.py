"""The spectrum probe on systems whose spectrum is known, and on blocks at and off their fixed points."""

import json
import math

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure

import dyneq
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.roots import find_root
from dyneq.dynamics.spectra import Pairs, leading_spectrum
from dyneq.errors import DyneqError, UsageError
from dyneq.linalg.targets import LargestModulus
from dyneq.probes.base import Probe
from dyneq.probes.registry import get_probe, make_params, run_probe
from dyneq.probes.spectrum import _derive
from dyneq.probes.spectrum_errors import add_errors, reaches
from dyneq.probes.spectrum_json import json_entry
from dyneq.systems import analytic
from dyneq.systems.adapters import from_ode
from dyneq.systems.thick import ThickBlock, ThickConfig

F64 = torch.float64


def block(seed=0, samples=3, gain=1.0, **options):
    options = {"vocabulary": 13, "channels": 8, "heads": 2, "tokens": 6, **options}
    generator = torch.Generator().manual_seed(seed)
    built = ThickBlock(ThickConfig(**options), generator).double()
    with torch.no_grad():
        built.attn.wo.weight.mul_(gain)
        built.ffn.pj.weight.mul_(gain)
    tokens = torch.randint(0, 13, (samples, 6), generator=generator)
    return built.bind(tokens, tokens.roll(-1, 1))


def leading(ds, state=0):
    return json_entry(ds.isel(depth=state))["leading"]


@pytest.mark.parametrize("theta", [0.0, 0.3, 1.2, math.pi / 2, 3.0])
def test_rotation_has_its_radius_at_every_angle(theta):
    """A Rayleigh power iteration reads 0.946, 0.36 and 0 here; the radius is 0.99."""
    system = analytic.RotationMap(angle=theta)
    ds = run_probe("spectrum", system, depth=(5,), numerical_abscissa=False)
    np.testing.assert_allclose(ds["spectral_radius"], 0.99, rtol=1e-13)
    assert "critical_eps" not in ds, "a map has no step to blame"
    assert "abscissa" not in ds


def test_stuart_landau_root_is_the_unstable_focus():
    system = analytic.StuartLandau()
    ds = run_probe("spectrum", system, depth=(200,), at="root")
    mu = ds["mu"].isel(depth=0).values
    expected = complex(system.r, system.nu)
    assert np.abs(mu - np.where(mu.imag > 0, expected, expected.conjugate())).max() < 1e-12
    np.testing.assert_allclose(ds["abscissa"], system.r, atol=1e-12)
    assert np.isnan(ds["critical_eps"]).all(), "undefined where the flow is unstable"
    assert json_entry(ds.isel(depth=0))["depth"] is None
    assert json_entry(ds.isel(depth=0))["critical_eps"] is None
    assert float(ds["force_residual"].max()) < 1e-11, "also at the root z = 0"
    # for the normal matrix [[r, -nu], [nu, r]] the numerical abscissa is the abscissa
    np.testing.assert_allclose(ds["numerical_abscissa"], system.r, atol=1e-6)


def test_critical_step_of_the_normal_form():
    system = analytic.HopfNormalForm(eps=0.05)
    ds = run_probe("spectrum", system, depth=(4000,), numerical_abscissa=False)
    assert (ds["status"] == "converged").all() or float(ds["force_residual"].max()) > 1e-6
    at_root = run_probe("spectrum", system, at="root", numerical_abscissa=False)
    expected = -2 * -0.1 / (0.1**2 + 1.0**2)  # -2a/(a^2 + b^2), REFERENCE
    np.testing.assert_allclose(at_root["critical_eps"], expected, rtol=1e-10)


def test_step_beyond_the_critical_one_is_blamed_on_euler():
    text = " ".join(f.text for f in _summary(analytic.HopfNormalForm(eps=0.5), at="root"))
    assert "exceeds the critical step" in text
    assert "Neimark-Sacker" in text


def test_unstable_flow_is_not_blamed_on_the_step():
    text = " ".join(f.text for f in _summary(analytic.StuartLandau(), at="root"))
    assert "flow unstable at 4 of 4 fixed points" in text
    assert "complex pair" in text
    assert "Euler" not in text


def _summary(system, **params):
    probe = get_probe("spectrum")
    return probe.summary(run_probe(probe, system, numerical_abscissa=False, **params))


def test_grcar_reference_values():
    ds = run_probe("spectrum", analytic.Grcar(), depth=(1,), method="dense")
    # REFERENCE.md, computed independently in high precision
    np.testing.assert_allclose(ds["abscissa"], 1.6574333511, atol=1e-9)
    np.testing.assert_allclose(ds["numerical_abscissa"], 2.9459949997, atol=1e-6)


def test_unconverged_depth_is_said_beside_the_eigenvalues():
    system = block(gain=1.5)
    ds = run_probe("spectrum", system, depth=(3, 2000))
    early, late = (json_entry(ds.isel(depth=i)) for i in range(2))
    assert early["samples"]["status"] == ["max_steps"] * 3
    assert early["force_residual"] > 1e-3
    assert late["samples"]["status"] == ["converged"] * 3
    findings = get_probe("spectrum").summary(ds)
    assert any(f.level == "warning" and "not at a fixed point" in f.text and "depth 3" in f.text for f in findings)
    assert any(f.level == "undetermined" and "depth 3" in f.text for f in findings)
    assert not any("depth 3:" in f.text and "flow" in f.text for f in findings), "no verdict on a passing state"
    assert any(f.level == "fact" and "every sample at a fixed point" in f.text and "2000" in f.text for f in findings)


@pytest.mark.parametrize("method", ["token", "krylov", "dense"])
def test_spectrum_at_the_root_by_all_methods(method):
    system = block(seed=1, gain=1.5)
    root = find_root(system, depth=50).z
    expected = torch.linalg.eigvals(Linearization(system, root).token_blocks()).flatten(1)
    ds = run_probe("spectrum", system, depth=(50,), at="root", method=method, count=4)
    np.testing.assert_allclose(ds["abscissa"][0], expected.real.amax(1), atol=1e-7)
    rows = leading(ds)
    assert all(row["converged"] for row in rows)
    assert all((row["token"] is None) == (method != "token") for row in rows)
    assert all(row["residual"] < 1e-8 for row in rows)
    assert all(row["condition"] >= 1 - 1e-9 for row in rows)
    modulus = np.abs(1 + 0.1 * expected.numpy())
    assert rows[0]["modulus"] == pytest.approx(modulus.max(), abs=1e-7)


def test_every_variable_has_a_name_and_units_and_the_result_its_provenance():
    ds = run_probe("spectrum", block(), depth=(20,), provenance={"checkpoint_sha256": "abc"})
    for name, variable in ds.data_vars.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs, name
    wanted = "created_at creation_library creation_library_version schema_version probe probe_version params seed "
    wanted += "git_sha git_dirty torch_version device dtype duration_s status"
    assert set(wanted.split()) <= set(ds.attrs)
    assert ds.attrs["checkpoint_sha256"] == "abc"
    assert json.loads(ds.attrs["params"])["depth"] == [20]
    assert ds.attrs["dtype"] == "float64"
    assert ds["mu"].dtype == np.complex128


def test_diverged_samples_are_left_out_and_said():
    system = dyneq.systems.adapters.from_ode(
        lambda z: z.square() - 1, torch.tensor([[0.0, 0.5], [3.0, 0.0]], dtype=F64), eps=0.1
    )
    ds = run_probe("spectrum", system, depth=(500,))
    assert list(ds["status"].values[0]) == ["converged", "diverged"]
    assert np.isnan(ds["abscissa"].values[0]).tolist() == [False, True]
    assert ds["abscissa"].values[0, 0] == pytest.approx(-2.0, abs=1e-6)  # d(z^2 - 1)/dz at -1
    assert {row["sample"] for row in leading(ds)} == {0}
    everything_lost = system.select(torch.tensor([1]))
    ds = run_probe("spectrum", everything_lost, depth=(500,))
    assert leading(ds) == []
    with pytest.raises(DyneqError, match="nothing to draw"):
        get_probe("spectrum").plot(ds)


def test_samples_keep_their_numbers_when_others_are_left_out():
    system = dyneq.systems.adapters.from_ode(lambda z: z.square() - 1, torch.tensor([[3.0], [0.0]], dtype=F64), eps=0.1)
    ds = run_probe("spectrum", system, depth=(500,))
    assert [row["sample"] for row in leading(ds)] == [1]
    text = " ".join(f.text for f in get_probe("spectrum").summary(ds))
    assert "at sample 1" in text


def test_single_precision_agrees_within_its_rounding():
    double = block(seed=2)
    single = double.block.float().bind(double.tokens)
    double = block(seed=2)
    a = run_probe("spectrum", double, depth=(300,), count=2)
    b = run_probe("spectrum", single, depth=(300,), count=2)
    assert b.attrs["dtype"] == "float32"
    assert (b["status"] == "converged").all()
    np.testing.assert_allclose(b["abscissa"], a["abscissa"], atol=2e-4)


@pytest.mark.parametrize("states", [(20,), (5, 20, 60)])
def test_figure(states):
    ds = run_probe("spectrum", block(), depth=states)
    figure = get_probe("spectrum").plot(ds)
    assert isinstance(figure, Figure)
    circle, grid = figure.axes[:2]
    labels = [t.get_text() for t in circle.get_legend().get_texts()]
    assert labels == [f"depth {d}" for d in states]
    drawn = circle.lines[len(states) - 1].get_xydata()
    mu = np.concatenate([ds[f"{n}_mu"].values[-1].ravel() for n in ("largest", "rightmost", "critical")])
    mu = mu[np.isfinite(mu)]
    assert np.abs(drawn[: len(mu), 0] - (1 + 0.1 * mu.real)).max() < 1e-12
    image = grid.images[0].get_array()
    np.testing.assert_allclose(image, ds["rightmost_mu"].values[-1].real)


def test_figure_on_given_axes():
    ds = run_probe("spectrum", analytic.Grcar(), depth=(1,), method="dense")
    own = Figure()
    axes = own.subplots(1, 2)
    assert get_probe("spectrum").plot(ds, axes) is own
    with pytest.raises(UsageError, match="two axes"):
        get_probe("spectrum").plot(ds, own.subplots(1, 3))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"depth": (0,)}, "at least 1 step"),
        ({"depth": (-3,)}, "at least 1 step"),
        ({"dept": (3,)}, "did you mean 'depth'"),
        ({"count": 0}, "count"),
        ({"method": "tokens"}, "method"),
        ({"depth": ()}, "depth"),
    ],
)
def test_wrong_parameters_are_one_sentence(params, words):
    with pytest.raises(UsageError, match=words) as error:
        run_probe("spectrum", analytic.Grcar(), **params)
    assert "\n" not in str(error.value)


def test_probes_are_found_by_entry_point():
    assert isinstance(get_probe("spectrum"), Probe)
    with pytest.raises(UsageError, match="did you mean 'spectrum'"):
        get_probe("spektrum")


def test_needs_are_checked_before_the_run():
    class Needy(type(get_probe("spectrum"))):
        needs_loss = True
        needs_causal = True

    with pytest.raises(UsageError, match="needs a loss"):
        run_probe(Needy(), analytic.Grcar())
    silent = block()
    silent.structure = dyneq.Structure(1, causal=False)
    with pytest.raises(UsageError, match="needs a block that is causal"):
        run_probe(Needy(), silent)


def linear(matrix, centre=1.0, **options):
    a = torch.as_tensor(matrix, dtype=F64)
    return from_ode(lambda z: (z - centre) @ a.T, torch.full((2, len(a)), 1.5, dtype=F64), **options)


def test_a_centre_and_a_fold_are_undetermined_not_stable():
    for system in (
        linear([[0.0, 1.0], [-1.0, 0.0]]),
        from_ode(lambda z: -((z - 1) ** 2), torch.full((2, 1), 1.5, dtype=F64)),
    ):
        found = _summary(system, at="root")
        assert any(f.level == "undetermined" for f in found)
        assert not any("stable at" in f.text for f in found)


def test_a_map_at_the_boundary_is_undetermined():
    system = dyneq.System.from_map(lambda z: 2 - z, torch.full((2, 1), 0.5, dtype=F64))
    assert not any("the map is" in f.text for f in _summary(system, at="root"))


def test_a_flip_is_not_called_an_oscillation_of_a_pair():
    text = " ".join(f.text for f in _summary(linear([[-30.0]]), at="root"))
    assert "period 2" in text
    assert "Neimark" not in text


def test_summary_needs_no_stamp():
    probe = get_probe("spectrum")
    ds = probe.run(linear([[-30.0]]), make_params(probe, {"at": "root", "numerical_abscissa": False}))
    assert any("exceeds the critical step" in f.text for f in probe.summary(ds))


def test_unconverged_pairs_get_no_verdict(monkeypatch):
    """Krylov-Schur without restarts on a large symmetric matrix: nothing converges, so nothing is decided."""
    from dyneq.dynamics import spectra

    real = spectra.eigenpairs
    monkeypatch.setattr(spectra, "eigenpairs", lambda *args, **options: real(*args, **options, max_restarts=0))
    n = 600
    laplacian = -2 * torch.eye(n) + torch.diag(torch.ones(n - 1), 1) + torch.diag(torch.ones(n - 1), -1)
    system = from_ode(lambda z: (z - 1) @ laplacian.double(), torch.ones(2, n, dtype=F64))
    ds = run_probe("spectrum", system, depth=(1,), count=2, method="krylov", numerical_abscissa=False)
    assert (ds["status"] == "converged").all()
    assert (ds["pairs_converged"] == 0).all()
    entry = json_entry(ds.isel(depth=0))
    assert entry["samples"]["verdict"] == ["unsure", "unsure"]
    assert entry["samples"]["pairs_converged"] == [0.0, 0.0]
    assert not all(row["converged"] for row in entry["leading"])
    for name in ("error", "multiplier_error"):
        assert np.isnan(ds[name].values[ds["converged"].values == 0]).all(), "the wanted pair may be another one"
    for target in ("largest", "rightmost", "critical"):
        assert np.isnan(ds[f"{target}_error"].values[ds[f"{target}_converged"].values == 0]).all()
    found = get_probe("spectrum").summary(ds)
    assert any(f.level == "undetermined" and "no verdict" in f.text for f in found)
    assert not any("stable at" in f.text for f in found)


def test_overall_numbers_are_those_of_fixed_points_and_passing_states_stand_apart():
    """One sample at a stable root, one circling: the abscissa of the second must not pass for that of the first."""
    system = from_ode(lambda z: z.square() - 1, torch.tensor([[-1.0, -1.0], [-0.2, 0.9]], dtype=F64), eps=0.01)
    ds = run_probe("spectrum", system, depth=(60,))
    entry = json_entry(ds.isel(depth=0))
    assert entry["fixed_points"] == 1
    assert entry["abscissa"] == pytest.approx(-2.0, abs=1e-9)
    assert entry["passing"]["samples"] == 1
    assert entry["passing"]["abscissa"] > -2
    assert entry["passing"]["critical_eps"] is None


def test_a_diverged_sample_is_named_so_and_its_residual_does_not_vanish():
    system = from_ode(lambda z: z * z - 1, torch.tensor([[-1.0], [3.0]], dtype=F64))
    text = " ".join(f.text for f in get_probe("spectrum").summary(run_probe("spectrum", system, depth=(800,))))
    assert "1 of 2 samples (1) diverged" in text
    assert "passing" not in text


def test_repeated_pairs_are_listed_whole():
    r = [[-1.0, 2.0], [-2.0, -1.0]]
    system = linear(torch.block_diag(torch.tensor(r), torch.tensor(r), -3 * torch.eye(2)).tolist())
    for count in (1, 2, 3, 4, 5):
        rows = leading(run_probe("spectrum", system, depth=(1,), count=count))
        assert sum(row["mu"][1] for row in rows) == 0
        assert len(rows) >= count


def test_single_precision_certificates_cover_the_rounding():
    double = block(seed=2)
    z = find_root(double).z
    expected = torch.linalg.eigvals(Linearization(double, z).token_blocks()).flatten().numpy()
    single = block(seed=2)
    single = single.block.float().bind(single.tokens)
    lin = Linearization(single, z.float())
    spectrum = leading_spectrum(lin, [LargestModulus(0.1)], 20, generator=torch.Generator().manual_seed(0))
    pairs = spectrum.pairs.take(spectrum.leading)
    actual = np.array([np.abs(expected - mu).min() for mu in pairs.mu])
    estimated = pairs.residual * pairs.condition
    assert (actual <= 10 * estimated).all()
    assert (pairs.residual > 1e-8).all(), "a float32 Jacobian cannot have float64 residuals"


def test_root_results_say_where_each_root_was_found_from():
    ds = run_probe("spectrum", analytic.StuartLandau(), at="root", depth=(50,), numerical_abscissa=False)
    assert set(ds["start"].values[0]) <= {"relaxed", "mean", "initial", "random"}


def test_params_are_immutable():
    params = make_params(get_probe("spectrum"), {})
    with pytest.raises(Exception, match="frozen"):
        params.count = 3


def test_error_bars_are_named_and_have_the_units_of_what_they_belong_to():
    ds = run_probe("spectrum", block(), depth=(50,))
    with_bars = {"mu", "multiplier", "modulus", "largest_mu", "rightmost_mu", "critical_mu", "abscissa"}
    with_bars |= {"spectral_radius", "critical_eps", "numerical_abscissa"}
    assert {n for n, v in ds.data_vars.items() if "ancillary_variables" in v.attrs} == with_bars
    for name in with_bars:
        bar = ds[ds[name].attrs["ancillary_variables"]]
        assert bar.attrs["units"] == ds[name].attrs["units"], name
        assert set(bar.dims) <= set(ds[name].dims), name
        assert (bar.values[np.isfinite(bar.values)] >= 0).all(), name
    assert {ds[n].attrs["role"] for n in ("seconds", "matvecs")} == {"cost"}


def test_single_precision_lies_within_its_error_bars():
    """Against double precision at the very state that single precision reached."""
    single = block(seed=5, samples=6).block.float().bind(block(seed=5, samples=6).tokens)
    a = run_probe("spectrum", single, depth=(400,))
    double = block(seed=5, samples=6)
    exact = torch.linalg.eigvals(Linearization(double, relaxed(single).double()).token_blocks()).numpy()
    eps = 0.1
    expected = {
        "abscissa": exact.real.max((1, 2)),
        "spectral_radius": np.abs(1 + eps * exact).max((1, 2)),
        "critical_eps": (-2 * (1 / exact).real).min((1, 2)),
    }
    for name, values in expected.items():
        error, bar = np.abs(a[name].values[0] - values), a[f"{name}_error"].values[0]
        assert (error <= 4 * bar).all(), (name, error / bar)  # first order, and the products' own rounding
        assert (bar < 1e-4 * (1 + np.abs(values))).all(), "useful, not only safe"


def relaxed(system):
    from dyneq.dynamics.relax import relax

    return relax(system, 400).z


def planted(mu, error, converged=1.0, system=None, others=()):
    """One sample with the given eigenvalue in each token's block, the same for every target.

    ``others`` are further pairs (block, mu, error) that are no target's best.
    """
    system = system or linear([[-1.0]])
    shape, targets = ("depth", "sample", "token"), ("largest", "rightmost", "critical")
    converged = np.broadcast_to(np.asarray(converged, dtype=float), (len(mu),))
    rows = [*enumerate(mu), *((b, m) for b, m, _ in others)]
    pairs = Pairs(
        block=np.array([b for b, _ in rows]),
        mu=np.array([m for _, m in rows], dtype=complex),
        residual=np.array([*error, *(e for *_, e in others)], dtype=float),
        condition=np.ones(len(rows)),
        converged=np.append(converged == 1, np.ones(len(others), dtype=bool)),
        drift=np.zeros(len(rows)),
    )
    ds = xr.Dataset()
    for target in targets:
        ds[f"{target}_mu"] = (shape, np.array([[mu]], dtype=complex))
        ds[f"{target}_error"] = (shape, pairs.error[None, None, : len(mu)])
        ds[f"{target}_converged"] = (shape, converged[None, None].copy())
    reach = {n: xr.DataArray(r[None, None], dims=shape) for n, r in reaches(pairs, targets, 0.1, len(mu)).items()}
    return add_errors(_derive(ds, system), system, reach)


def test_the_block_with_the_larger_error_may_decide():
    ds = planted([-1.0, -1.5], [0.01, 0.75])
    # the second block reaches -0.75, above the first's -1 by 0.25; downwards the first holds it
    assert ds["abscissa_error"].item() == pytest.approx(0.25, rel=1e-12)
    # multipliers 0.9 +- 0.001 and 0.85 +- 0.075
    assert ds["spectral_radius_error"].item() == pytest.approx(0.1 * 0.75 - 0.05, rel=1e-12)


def test_critical_step_error_against_the_worst_over_the_discs():
    mu, error = [-1.0 + 2.0j, -0.5 - 0.3j], [1e-4, 2e-3]
    ds = planted(mu, error)
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 721))
    steps = [-2 * (1 / (m + e * circle)).real for m, e in zip(mu, error, strict=True)]
    middle = min(-2 * (1 / m).real for m in mu)
    worst = max(middle - min(s.min() for s in steps), min(s.max() for s in steps) - middle)
    assert worst <= ds["critical_eps_error"].item() <= 1.01 * worst


@pytest.mark.parametrize(
    ("error", "converged"), [([0.01, np.nan], 1.0), ([0.01, 0.01], [1.0, 0.0]), ([np.nan, np.nan], 1.0)]
)
def test_a_block_of_unknown_error_leaves_the_sample_without_bars(error, converged):
    ds = planted([-1.0, -5.0], error, converged)
    for name in ("abscissa", "spectral_radius", "critical_eps"):
        assert np.isfinite(ds[name]).all()
        assert np.isnan(ds[f"{name}_error"]).all(), name


def test_critical_step_of_a_flow_that_may_be_unstable_has_no_bar():
    assert np.isnan(planted([-0.01], [0.02])["critical_eps_error"]).all()
    assert np.isnan(planted([0.5], [0.02])["critical_eps_error"]).all()
    assert np.isfinite(planted([-0.01], [0.005])["critical_eps_error"]).all()


def test_another_pair_of_the_same_block_may_decide():
    ds = planted([-1.0], [0.01], others=[(0, -1.5, 0.75)])
    assert ds["abscissa_error"].item() == pytest.approx(0.25, rel=1e-12)
    assert ds["spectral_radius_error"].item() == pytest.approx(0.1 * 0.75 - 0.05, rel=1e-12)
    unknown = planted([-1.0, -2.0], [0.01, 0.01], others=[(1, -5.0, np.nan)])
    for name in ("abscissa", "spectral_radius", "critical_eps"):
        assert np.isnan(unknown[f"{name}_error"]).all(), name
    # the critical step of -4 is 1/2; that of -3 is 2/3, and 2/mu moves by at most 2 / (3 * 2) = 1/3 over its disc
    step = planted([-4.0], [0.01], others=[(0, -3.0, 1.0)])
    assert step["critical_eps_error"].item() == pytest.approx(1 / 2 - (2 / 3 - 1 / 3), rel=1e-12)


def test_critical_step_has_no_bar_where_any_disc_reaches_growth():
    assert np.isfinite(planted([-0.1], [1e-12], others=[(0, -0.2 + 10j, 0.1)])["critical_eps_error"]).all()
    assert np.isnan(planted([-0.1], [1e-12], others=[(0, -0.2 + 10j, 0.3)])["critical_eps_error"]).all()
