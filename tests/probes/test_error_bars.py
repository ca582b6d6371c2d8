"""Error bars against what the true numbers are: other pairs of a block, roots that are off, rounding, pairing."""

import numpy as np
import pytest
import torch
import xarray as xr

from dyneq.catalog.diff import compare
from dyneq.dynamics.correction import root_displacement
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.relax import relax
from dyneq.dynamics.spectra import Pairs
from dyneq.probes.base import least_cost_pairs
from dyneq.probes.registry import get_probe, run_probe
from dyneq.probes.spectrum_match import match_spectra
from dyneq.systems.adapters import from_ode
from dyneq.systems.protocol import Structure, System

F64 = torch.float64


def linear(matrices, eps=0.1):
    """dz/dt = A (z - 1), one A a sample, at its root."""
    a = torch.as_tensor(matrices)
    return from_ode(lambda z: torch.einsum("bij,bj->bi", a, z - 1), torch.ones(a.shape[:2], dtype=a.dtype), eps=eps)


class Chain(System):
    """Every token a cubic of its own input, the logistic map of the one before: errors grow from token to token."""

    name = "chain"
    eps = 0.5
    structure = Structure(1, True)

    def __init__(self, tokens, dtype, cubic=0.0):
        self.z0, self.cubic = torch.full((1, tokens, 1), 0.3, dtype=dtype), cubic

    def initial_state(self):
        return self.z0

    def force(self, z, context=None):
        """Return 3.9 p (1 - p) - z - cubic z^3 with the token p before."""
        c = z if context is None else context
        p = torch.cat([torch.full_like(c[:, :1], 0.3), c[:, :-1]], 1)
        # the same constant in either precision
        return float(torch.tensor(3.9)) * p * (1 - p) - z - self.cubic * z**3


def fold(extra=0):
    """A double root at 1, where mu = 0 and -1 (and -2, -3, ...)."""

    def force(z):
        y = z - 1
        rates = -torch.arange(2, 2 + extra, dtype=z.dtype)
        first = torch.stack([-(y[:, 0] ** 2), -y[:, 1] - 0.3 * y[:, 1] ** 2 + y[:, 0]], 1)
        return torch.cat([first, rates * y[:, 2:]], 1)

    z0 = torch.full((2, 2 + extra), 1.25, dtype=F64)
    z0[:, :2] = torch.tensor([[1.5, 1.4], [1.9, 0.8]])
    return from_ode(force, z0, eps=0.01 if extra else 0.1)


def test_an_ill_conditioned_pair_behind_the_rightmost_one_is_in_the_bar():
    a = np.diag([-1, -1 - 1e-10, -3, -4, -5.0])
    a[1, 2] = 1e7
    ds = run_probe("spectrum", linear(a[None]), depth=(1,), numerical_abscissa=False, method="dense", count=5)
    a[2, 1] = 0.5 * float(ds["rightmost_residual"].item())
    moved = np.linalg.eigvals(a)
    assert 1e-3 < moved.real.max() - float(ds["abscissa"].item()) <= float(ds["abscissa_error"].item())
    radius = np.abs(1 + 0.1 * moved).max()
    assert abs(radius - float(ds["spectral_radius"].item())) <= float(ds["spectral_radius_error"].item())


def test_multipliers_carry_the_rounding_of_one_plus_eps_mu():
    """The same matrix with its coordinates in another order has the same spectrum."""
    g = torch.Generator().manual_seed(5)
    a = torch.randn(400, 4, 4, generator=g, dtype=F64) / 3 - torch.eye(4, dtype=F64)
    p = torch.eye(4, dtype=F64)[torch.tensor([2, 0, 3, 1])]
    options = {"depth": (1,), "numerical_abscissa": False, "count": 1600}
    first, second = (run_probe("spectrum", linear(x, 1e-3), **options) for x in (a, p @ a @ p.T))
    rows = {r.name: r for r in compare(first, second).rows}
    assert rows["multiplier"].moved > 100
    assert rows["multiplier"].beyond == rows["modulus"].beyond == 0
    assert rows["multiplier"].ratio.value > 0.05, "useful, not only safe"


@pytest.mark.parametrize("dim", [2, 3, 6])
def test_numerical_abscissa_of_single_precision_is_within_its_bar(dim):
    a = torch.randn(60, dim, dim, generator=torch.Generator().manual_seed(dim))
    ds = run_probe("spectrum", linear(a), depth=(1,))
    exact = np.linalg.eigvalsh((a.double() + a.double().mT).numpy() / 2)[:, -1]
    error, bar = np.abs(ds["numerical_abscissa"].values[0] - exact), ds["numerical_abscissa_error"].values[0]
    assert (error <= bar).all()
    assert (bar < 2e-5).all()
    assert "not certified" in ds["numerical_abscissa_error"].attrs["long_name"]


@pytest.mark.parametrize(("extra", "method"), [(0, "dense"), (34, "krylov")])
def test_at_a_double_root_the_bars_reach_the_true_eigenvalue(extra, method):
    system, options = fold(extra), {"at": "root", "method": method, "count": 2}
    results = [run_probe("spectrum", system, depth=(d,), **options) for d in (100, 300)]
    for ds in results:
        assert (ds["status"] == "converged").all()
        assert (np.abs(ds["abscissa"]) > 1e-9).all(), "the true abscissa is 0, the residual near the rounding"
        assert (np.abs(ds["abscissa"]) <= ds["abscissa_error"]).all()
        assert (ds["abscissa_error"] < 1e-5).all()
        assert (ds["rightmost_residual"] < 1e-9).all(), "the residual remains that of the pair"
        exact = np.linalg.eigvalsh([[0, 0.5], [0.5, -1]])[-1]
        assert (np.abs(ds["numerical_abscissa"] - exact) <= ds["numerical_abscissa_error"]).all()
    assert not any(r.beyond for r in compare(*results).rows)


def test_roots_of_single_precision_have_their_error_in_the_bars_of_token_blocks():
    single = run_probe("spectrum", Chain(16, torch.float32, cubic=0.05), depth=(50,), at="root")
    double = run_probe("spectrum", Chain(16, F64, cubic=0.05), depth=(50,), at="root")
    assert (single["status"] == "converged").all()
    error = np.abs(single["largest_mu"] - double["largest_mu"])
    plain = single["largest_residual"] * single["largest_condition"]
    assert float((error / plain).max()) > 4, "residual and condition alone do not cover it"
    assert (error <= single["largest_error"]).all()
    assert (single["largest_error"] < 1e-2).all()


def test_bars_of_relaxed_states_are_those_of_the_pairs_alone():
    ds = run_probe("spectrum", Chain(5, F64, cubic=0.5), depth=(3,))
    np.testing.assert_array_equal(ds["error"], ds["residual"] * ds["condition"])
    assert "relaxed state without the error of that state" in ds["abscissa_error"].attrs["long_name"]


def test_displacement_is_the_whole_newton_correction():
    system = Chain(12, F64, cubic=0.5)
    z = relax(system, 200).z
    z = z + 1e-9 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    d = root_displacement(system, z, generator=torch.Generator().manual_seed(0))
    exact = -torch.linalg.solve(Linearization(system, z).dense(), system.force(z).flatten(1)).view_as(z)
    torch.testing.assert_close(d, exact, rtol=1e-3, atol=1e-14)
    wide = from_ode(lambda x: 1 - x - x**3, torch.full((1, 800), 0.7, dtype=F64))  # by GMRES
    z = wide.initial_state()
    d = root_displacement(wide, z, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(d, wide.force(z) / (1 + 3 * z**2), rtol=0.1, atol=0)


def test_displacement_is_unknown_where_one_token_is_far_off():
    system = Chain(30, F64)
    z = relax(system, 200).z
    z[:, -1] *= 1.2
    far = torch.linalg.vector_norm(0.2 / 1.2 * z[:, -1]) / torch.linalg.vector_norm(z)
    assert far < 0.1, "of the whole sample it is little"
    assert root_displacement(system, z, generator=torch.Generator().manual_seed(0)).isnan().all()


def test_an_unconverged_pair_has_no_bar_however_well_conditioned():
    one = np.ones(3)
    pairs = Pairs(
        np.zeros(3, dtype=int), -one + 0j, 1e-3 * one, 2 * one, np.array([True, False, True]), np.array([0, 0, 1e-2])
    )
    np.testing.assert_allclose(pairs.error, [2e-3, np.nan, 2 * (1e-3 + 2e-2)])


def test_displacement_is_unknown_where_the_jacobian_is_singular_or_the_step_is_long():
    z = torch.tensor([[1.0], [1.5], [1.001]], dtype=F64)
    d = root_displacement(from_ode(lambda z: (z - 1) ** 2, z), z, generator=torch.Generator().manual_seed(0))
    assert d.isnan().flatten().tolist() == [True, True, False]
    assert d[2].item() == pytest.approx(-5e-4, rel=1e-9)
    singular = run_probe("spectrum", from_ode(lambda z: -((z - 1) ** 3), z[:1]), depth=(1,), at="root", count=1)
    for name in ("error", "abscissa_error", "numerical_abscissa_error"):
        assert np.isnan(singular[name]).all(), name


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_distance_has_the_errors_passed_on_from_token_to_token_in_its_bar(dtype):
    system = Chain(20, dtype)
    ds, z = run_probe("root", system, depth=5), relax(system, 5).z.numpy().ravel().astype(np.longdouble)
    root, p = [], np.longdouble(np.float64(system.z0[0, 0, 0]))
    p = p if dtype is torch.float32 else np.longdouble(0.3)
    rate = np.longdouble(np.float32(3.9))
    for _ in range(20):
        p = rate * p * (1 - p)
        root.append(p)
    exact = np.sqrt(((z - root) ** 2).sum() / np.square(root).sum())
    error, eps = abs(float(ds["distance"][0] - exact)), torch.finfo(dtype).eps
    assert 4 * eps < error <= float(ds["distance_error"][0]) < 1e5 * eps
    torn = run_probe("root", Chain(45, torch.float32), depth=5)
    assert np.isnan(torn["distance_error"]).all(), "nothing is known of the last tokens"


def test_distance_from_a_double_root_is_within_its_bar():
    ds = run_probe("root", fold(), depth=100)
    exact = torch.linalg.vector_norm(relax(fold(), 100).z - 1, dim=1).numpy() / np.sqrt(2)
    assert (np.abs(ds["distance"] - exact) <= 1.01 * ds["distance_error"]).all()  # exactly twice, to first order


def spectrum(mu):
    """A spectrum of one token with these eigenvalues."""
    values = np.atleast_2d(np.asarray(mu, dtype=complex))
    place = {name: (("depth", "mode"), np.zeros(values.shape)) for name in ("mode_sample", "mode_token")}
    coords = {"depth": [1], "mode": np.arange(values.shape[1]), "sample": [0]}
    return xr.Dataset({"mu": (("depth", "mode"), values), **place}, coords)


@pytest.mark.parametrize("mu", [[0, -1], [-1, -2, -3, -4], [0.03, -1.01, -2.02, -3.0], [-1 + 1j, -1 - 1j]])
def test_a_rigid_shift_pairs_every_eigenvalue_with_its_own(mu):
    mu = np.asarray(mu, dtype=complex)
    for shift in (-1.0, 1.0, -2.5):
        a, b = match_spectra(spectrum(mu), spectrum(mu + shift))
        np.testing.assert_allclose(b["mu"] - a["mu"], shift, rtol=1e-12)


@pytest.mark.parametrize("shift", [-1.0, 1.0])
@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_further_roots_are_paired_in_order_when_all_move(shift, order):
    def roots(distances):
        other = {"other_sample": ("other", np.zeros(2, dtype=int)), "other_distance": ("other", distances)}
        return xr.Dataset(other, {"sample": [0]})

    before = np.array([3.0, 2.0])
    a, b = get_probe("root").match(roots(before), roots((before + shift)[order]))
    np.testing.assert_allclose(b["other_distance"] - a["other_distance"], shift)


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200])
def test_pairs_do_not_depend_on_the_unit(unit):
    x = unit * np.arange(3.0)
    rows, columns = least_cost_pairs(np.abs(x[:, None] - (x + unit)[::-1][None]))
    assert rows.tolist() == [0, 1, 2]
    assert columns.tolist() == [2, 1, 0]
    assert [len(i) for i in least_cost_pairs(np.zeros((0, 2)))] == [0, 0]
    assert [len(i) for i in least_cost_pairs(np.zeros((2, 3)))] == [2, 2]
