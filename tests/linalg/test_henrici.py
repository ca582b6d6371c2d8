"""Henrici's departure from normality against analytic values and against perturbed matrices."""

import math

import numpy as np
import pytest
import torch

from dyneq.linalg import departure_from_normality

from .matrices import gaussian, generator, grcar, jordan, orthogonal, planted, zoo

ULP = np.finfo(np.float64).eps


def test_normal_matrices_have_no_departure():
    n = 24
    q = orthogonal(n)
    symmetric = q @ torch.diag(torch.linspace(-3, 2, n, dtype=torch.float64)) @ q.T
    skew = torch.triu(gaussian(1, n)[0], 1)
    normal = torch.stack([planted(n, (0.3, 1.2)), symmetric, skew - skew.T, q, torch.eye(n).double(), 0 * q])
    found = departure_from_normality(normal)
    # the Schur form of a matrix within backward_error, which itself is of the order of n ulp
    assert (found.departure <= found.backward_error + 1e-300).all()
    assert (found.backward_error <= 100 * n * ULP * found.norm + 1e-300).all()
    # the textbook difference loses half of the digits: sqrt(n ulp)
    assert (found.relative < 1e-13).all()
    np.testing.assert_allclose(found.antisymmetric_share[[1, 2, 4, 5]], [0, 1, 0, 0], atol=1e-15)


def test_departure_of_triangular_and_two_by_two_matrices():
    # A upper triangular with distinct diagonal: the Schur form is A itself
    for n, value, k in ((2, -1.0, 10.0), (7, 0.5, 0.3)):
        a = jordan(n, value, k) + torch.diag(torch.linspace(0, 1, n, dtype=torch.float64))
        found = departure_from_normality(a[None])
        assert found.departure[0] == pytest.approx(k * math.sqrt(n - 1), rel=1e-14)
    # [[a, b], [-c, a]] has a pair a +- i sqrt(bc): departure b - c
    pair = torch.tensor([[[1.0, 5.0], [-2.0, 1.0]]], dtype=torch.float64)
    found = departure_from_normality(pair)
    assert found.departure[0] == pytest.approx(3.0, rel=1e-14)
    np.testing.assert_allclose(np.sort_complex(found.values[0]), [1 - 1j * 10**0.5, 1 + 1j * 10**0.5], rtol=1e-14)
    one = departure_from_normality(torch.full((1, 1, 1), -2.5, dtype=torch.float64))
    assert (one.departure[0], one.norm[0], one.values[0, 0]) == (0.0, 2.5, -2.5)


@pytest.mark.parametrize("n", [6, 31])
def test_agreement_with_eigenvalues(n):
    a = torch.stack([*zoo(n).values(), *gaussian(4, n)])
    found = departure_from_normality(a)
    values = np.linalg.eigvals(a.numpy())
    norm = np.linalg.norm(a.numpy(), axis=(1, 2))
    difference = norm**2 - np.square(np.abs(values)).sum(axis=1)
    # rounding of the difference itself, and the sensitivity of sums of squares of (defective) eigenvalues
    np.testing.assert_allclose(found.departure**2, difference, atol=1e-9 * float(norm.max() ** 2))
    np.testing.assert_allclose(found.norm, norm, rtol=1e-14)
    k, s = found.antisymmetric, found.symmetric
    np.testing.assert_allclose(k**2 + s**2, norm**2, rtol=1e-13, atol=1e-300)
    exact = np.sort_complex(values[-4:].round(9))
    np.testing.assert_allclose(np.sort_complex(found.values[-4:].round(9)), exact, atol=1e-8)


def test_error_is_the_sharp_first_order_bound():
    a = gaussian(6, 12, seed=3)
    uncertainty = 1e-6
    found = departure_from_normality(a, uncertainty)
    worst = np.zeros(6)
    g = generator(1)
    for _ in range(200):
        noise = torch.randn(6, 12, 12, generator=g, dtype=torch.float64)
        noise *= uncertainty / torch.linalg.matrix_norm(noise)[:, None, None]
        worst = np.maximum(worst, np.abs(departure_from_normality(a + noise).departure - found.departure))
    assert (worst < found.error).all()
    # a random direction in 144 dimensions shows a few of the 12 standard deviations of the worst one
    assert (worst > found.error / 20).all()


def test_error_is_not_known_without_eigenvectors_and_scales_do_not_overflow():
    # a triple root: the sum of squares of its eigenvalues moves by the power 2/3 of a change, not in proportion
    triple = departure_from_normality(jordan(3, 1.0, 1.0)[None], 1e-12)
    assert np.isnan(triple.error).all()
    changed = jordan(3, 1.0, 1.0)
    changed[2, 0] = 1e-12
    assert abs(departure_from_normality(changed[None]).departure - triple.departure) > 1e-9
    small = departure_from_normality(grcar(8)[None])
    for scale in (1e-200, 1e200):
        found = departure_from_normality(scale * grcar(8)[None])
        np.testing.assert_allclose(found.departure / scale, small.departure, rtol=1e-12)
        np.testing.assert_allclose(found.values / scale, small.values, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found.relative, small.relative, rtol=1e-12)


def test_refusals():
    with pytest.raises(ValueError, match="square"):
        departure_from_normality(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"\[1\].*not finite"):
        departure_from_normality(torch.tensor([[[1.0]], [[math.nan]]]))
