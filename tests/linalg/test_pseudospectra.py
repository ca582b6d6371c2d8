"""Pseudospectra and Kreiss constants against analytic values, SciPy and brute force."""

import math

import numpy as np
import pytest
import torch

from dyneq.linalg import kreiss_lower_bound, pseudospectral_abscissa, smallest_singular_values

from .matrices import gaussian, grcar, jordan, orthogonal, planted, rotation

F64 = torch.float64


def test_singular_values_on_a_grid_by_lapack():
    a = gaussian(1, 9)[0]
    points = np.array([[0.3 + 0.7j, 0.3 - 0.7j], [-2.0, 1.5j]])
    expected = [[np.linalg.svd(z * np.eye(9) - a.numpy(), compute_uv=False)[-1] for z in row] for row in points]
    found = smallest_singular_values(a, points)
    # of the size of norm(z - A) times rounding
    np.testing.assert_allclose(found, expected, atol=1e-14)
    assert found[0, 0] == found[0, 1], "conjugate points of a real matrix are computed once"
    huge = smallest_singular_values(1e250 * a, 1e250 * points)
    np.testing.assert_allclose(huge / 1e250, expected, atol=1e-14)


def test_singular_values_of_a_normal_matrix_are_distances():
    a = planted(12, (0.4, 2.0))
    z = np.linspace(-1, 1, 7)[:, None] + 1j * np.linspace(-1, 1, 6)
    values = np.linalg.eigvals(a.numpy())
    distance = np.abs(z[..., None] - values).min(axis=-1)
    np.testing.assert_allclose(smallest_singular_values(a, z), distance, atol=1e-13)


def test_grcar_abscissas_of_the_reference():
    a = grcar(32)
    assert np.linalg.eigvals(a.numpy()).real.max() == pytest.approx(1.6574333511, abs=1e-7)
    found = pseudospectral_abscissa(a, 0.1)
    assert found.value == pytest.approx(2.5918590981, abs=1e-10)
    assert found.certified
    assert found.margin < 1e-10
    sigma = np.linalg.svd(found.point * np.eye(32) - a.numpy(), compute_uv=False)[-1]
    assert sigma == pytest.approx(0.1, abs=1e-13), "the point returned lies on the boundary"


@pytest.mark.parametrize("eps", [1e-3, 0.1, 10.0])
def test_normal_matrices_have_discs(eps):
    a = planted(14, (0.4, 2.0))
    alpha = np.linalg.eigvals(a.numpy()).real.max()
    found = pseudospectral_abscissa(a, eps)
    assert found.value == pytest.approx(alpha + eps, abs=1e-13 * (1 + eps))
    assert found.certified


@pytest.mark.parametrize("k", [0.5, 10.0, 1e3])
def test_two_by_two_shear(k):
    """sigma_min(z - A) = eps of [[-1, k], [0, -1]] at abs(z + 1)^2 = eps^2 + eps k."""
    a = torch.tensor([[-1.0, k], [0.0, -1.0]], dtype=F64)
    for eps in (1e-4, 0.1, 2.0):
        exact = -1 + math.sqrt(eps**2 + eps * k)
        found = pseudospectral_abscissa(a, eps)
        assert found.value == pytest.approx(exact, abs=1e-11 * (1 + k))


@pytest.mark.parametrize("seed", range(4))
def test_random_matrices_against_brute_force(seed):
    a = gaussian(1, 10, seed=seed)[0] + torch.triu(gaussian(1, 10, seed=seed + 20)[0], 1)
    eps = 0.05
    found = pseudospectral_abscissa(a, eps)
    assert found.certified
    z = found.value + 1e-6 + 1j * np.linspace(-8, 8, 4001)
    values = np.linalg.svd(z[:, None, None] * np.eye(10) - a.numpy(), compute_uv=False)[:, -1]
    assert values.min() > eps, "nothing of the pseudospectrum lies further right"
    # and a rank-one change of that size puts an eigenvalue there
    u, s, v = np.linalg.svd(found.point * np.eye(10) - a.numpy())
    moved = np.linalg.eigvals(a.numpy() + s[-1] * np.outer(u[:, -1], v[-1]))
    assert np.abs(moved - found.point).min() < 1e-6
    assert s[-1] == pytest.approx(eps, abs=1e-12)


def test_abscissas_grow_with_eps_and_scale_with_the_matrix():
    a = grcar(12)
    values = [pseudospectral_abscissa(a, eps).value for eps in (1e-6, 1e-4, 1e-2, 1.0)]
    assert values == sorted(values)
    for scale in (1e-200, 1e200):
        assert pseudospectral_abscissa(scale * a, scale * 1e-2).value / scale == pytest.approx(values[2], rel=1e-10)
    zero = pseudospectral_abscissa(torch.zeros(3, 3, dtype=F64), 0.5)
    assert zero.value == pytest.approx(0.5, abs=1e-14)
    assert pseudospectral_abscissa(-torch.ones(1, 1, dtype=F64), 0.25).value == pytest.approx(-0.75, abs=1e-14)
    single = pseudospectral_abscissa(grcar(12).float(), 1e-2)
    assert single.value == pytest.approx(values[2], abs=1e-10), "small integers are exact in single precision"


@pytest.mark.parametrize("k", [3.0, 10.0, 100.0, 1e4])
def test_kreiss_constant_of_the_shear(k):
    a = torch.tensor([[-1.0, k], [0.0, -1.0]], dtype=F64)
    found = kreiss_lower_bound(a)
    assert found.value == pytest.approx(k / 4 + 1 / k, rel=1e-10)
    z = found.point
    sigma = np.linalg.svd(z * np.eye(2) - a.numpy(), compute_uv=False)[-1]
    assert z.real / sigma == pytest.approx(found.value, abs=found.rounding + 1e-12), "attained"


def test_kreiss_constant_of_normal_matrices_is_one():
    n = 16
    q = orthogonal(n)
    flow = (
        q
        @ torch.block_diag(rotation(2.0, 1.0), rotation(1.7, 2.0), -torch.diag(torch.linspace(0.1, 3, n - 4).double()))
        @ q.T
    )
    # both pairs lie left of the axis, as cos(2.0) and cos(1.7) are negative
    for a, time in (
        (flow, "flow"),
        (planted(n, (0.3, 1.2)), "map"),
        (torch.zeros(2, 2).double(), "flow"),
        (-torch.eye(1).double(), "flow"),
        (torch.eye(3).double() * 0.5, "map"),
    ):
        assert kreiss_lower_bound(a, time).value == pytest.approx(1.0, abs=1e-9)


def test_kreiss_constant_of_a_scaled_map_and_brute_force():
    m = jordan(10, 0.5, 0.8)
    found = kreiss_lower_bound(m, "map")
    radius = 1 + np.geomspace(1e-3, 10, 200)
    angle = np.linspace(0, np.pi, 61)
    z = radius[:, None] * np.exp(1j * angle)
    sigma = np.linalg.svd(z[..., None, None] * np.eye(10) - m.numpy(), compute_uv=False)[..., -1]
    brute = ((np.abs(z) - 1) / sigma).max()
    assert brute <= found.value * (1 + 1e-9)
    assert found.value == pytest.approx(brute, rel=1e-3), "the grid is that coarse"
    for seed in range(4):
        j = gaussian(1, 8, seed=seed)[0] + 3 * torch.triu(gaussian(1, 8, seed=seed + 30)[0], 1)
        j = j - (float(torch.linalg.eigvals(j).real.max()) + 0.1) * torch.eye(8).double()
        grid = np.geomspace(1e-3, 30, 60)[:, None] + 1j * np.linspace(0, 8, 161)
        sigma = np.linalg.svd(grid[..., None, None] * np.eye(8) - j.numpy(), compute_uv=False)[..., -1]
        assert kreiss_lower_bound(j).value >= (grid.real / sigma).max() * (1 - 1e-9)


def test_kreiss_constant_is_infinite_where_unstable_and_scales():
    unstable = kreiss_lower_bound(torch.diag(torch.tensor([0.1, -1.0], dtype=F64)))
    assert unstable.value == math.inf
    assert unstable.point == pytest.approx(0.1)
    assert kreiss_lower_bound(torch.eye(2).double() * 1.5, "map").value == math.inf
    on_axis = kreiss_lower_bound(rotation(1.0, 1.0), "map")
    assert on_axis.value == pytest.approx(1.0, abs=1e-6), "rounding does not decide"
    a = jordan(10, -1.0, 3.0)
    small = kreiss_lower_bound(a).value
    for scale in (1e-200, 1e200):
        assert kreiss_lower_bound(scale * a).value == pytest.approx(small, rel=1e-7)


def test_refusals():
    with pytest.raises(ValueError, match="positive finite eps"):
        pseudospectral_abscissa(grcar(4), 0.0)
    with pytest.raises(ValueError, match="'flow' or a 'map'"):
        kreiss_lower_bound(grcar(4), "both")
    with pytest.raises(ValueError, match="not finite"):
        pseudospectral_abscissa(torch.full((2, 2), math.nan), 0.1)
    with pytest.raises(ValueError, match="square"):
        smallest_singular_values(torch.zeros(2, 3), np.zeros(1, dtype=complex))
