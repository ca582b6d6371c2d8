"""Stochastic norms and ratios: unbiased, with error bars that cover as often as they should."""

import math

import numpy as np
import pytest
import torch

from dyneq.linalg import MatrixOperator, jackknife, random_products

from .matrices import gaussian, generator, grcar


def probes(a, vectors=32, seed=0, **options):
    return random_products(MatrixOperator(a), vectors, generator=generator(seed), **options)


def test_squares_are_unbiased_and_their_errors_calibrated():
    """The z-scores of a batch of 400 independent estimates have mean 0 and the spread of Student's t."""
    n, vectors, repeats = 12, 16, 400
    a = gaussian(1, n)[0].expand(repeats, -1, -1)
    found = probes(a, vectors)
    square = float(a[0].square().sum())
    values = 0.5 * (found.forward + found.backward) * np.square(found.scale)[:, None]
    mean, error = values.mean(axis=1), values.std(axis=1, ddof=1) / math.sqrt(vectors)
    assert abs(mean.mean() - square) < 4 * mean.std() / math.sqrt(repeats), "unbiased"
    z = (mean - square) / error
    expected = math.sqrt((vectors - 1) / (vectors - 3))  # of t with vectors - 1 degrees of freedom
    assert z.std() == pytest.approx(expected, abs=4 * expected / math.sqrt(2 * repeats) + 0.1)


@pytest.mark.parametrize("quantity", ["frobenius", "antisymmetric_share"])
@pytest.mark.parametrize("seed", [0, 1])
def test_error_bars_of_roots_and_ratios_are_calibrated(quantity, seed):
    n, vectors, repeats = 15, 32, 400
    a = gaussian(1, n, seed=seed)[0] + 0.5 * torch.eye(n).double()
    exact = {
        "frobenius": float(torch.linalg.matrix_norm(a)),
        "antisymmetric_share": float(torch.linalg.matrix_norm(a - a.T) / 2 / torch.linalg.matrix_norm(a)),
    }[quantity]
    found = getattr(probes(a.expand(repeats, -1, -1), vectors, seed=seed), quantity)()
    z = (found.value - exact) / found.error
    # one standard error: 68 %; the bias of a root is half its relative variance, here a tenth of an error
    assert abs(z.mean()) < 0.35
    assert 0.85 < z.std() < 1.25
    assert np.mean(np.abs(z) < 2) == pytest.approx(0.95, abs=0.04)


def test_error_falls_with_the_root_of_the_number_of_vectors():
    a = gaussian(1, 20)[0].expand(60, -1, -1)
    few, many = (float(probes(a, v).frobenius().error.mean()) for v in (16, 256))
    assert few / many == pytest.approx(4.0, rel=0.15)


def test_known_asymmetries():
    """2 for a skew matrix although it is normal; 0 for a symmetric one; about sqrt 2 for Gaussian noise."""
    n = 200
    noise = gaussian(1, n)[0]
    skew, symmetric = noise - noise.T, noise + noise.T
    found = probes(torch.stack([skew, symmetric, noise])).asymmetry()
    np.testing.assert_allclose(found.value[:2], [2.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(found.error[:2], 0.0, atol=1e-12)
    # E norm(Jv - J^T v)/norm(Jv) -> sqrt(2) as n grows; SCIENCE.md has 1.43 of smaller ones
    assert found.value[2] == pytest.approx(math.sqrt(2), abs=4 * found.error[2] + 0.03)
    share = probes(torch.stack([skew, symmetric, noise])).antisymmetric_share()
    np.testing.assert_allclose(share.value[:2], [1.0, 0.0], atol=1e-12)
    # E norm_F(K)^2 / norm_F(J)^2 = (n - 1) / 2 n for independent entries
    assert share.value[2] == pytest.approx(math.sqrt(0.5 * (n - 1) / n), abs=5 * share.error[2] + 0.01)


def test_part_between_blocks():
    """A - D on shared vectors: with D the diagonal blocks, the square of the rest is estimated alone."""
    n, parts = 5, 4
    a = gaussian(3, n * parts, seed=2)
    blocks = torch.stack([a[:, i * n : (i + 1) * n, i * n : (i + 1) * n] for i in range(parts)], 1)
    rest = a.clone()
    for i in range(parts):
        rest[:, i * n : (i + 1) * n, i * n : (i + 1) * n] = 0
    found = probes(a, minus=MatrixOperator(blocks.flatten(0, 1)))
    expected = probes(rest)
    np.testing.assert_allclose(
        found.forward * found.scale[:, None] ** 2, expected.forward * expected.scale[:, None] ** 2
    )
    np.testing.assert_allclose(
        found.backward * found.scale[:, None] ** 2, expected.backward * expected.scale[:, None] ** 2
    )


def test_degenerate_operators():
    zero, eye = torch.zeros(1, 3, 3).double(), torch.eye(3).double()[None]
    found = probes(torch.cat([zero, eye]))
    np.testing.assert_allclose(found.frobenius().value, [0, math.sqrt(3)], rtol=1e-14)
    np.testing.assert_allclose(found.frobenius().error, 0, atol=1e-14)
    assert (found.antisymmetric_share().value == 0).all()
    assert np.isnan(found.asymmetry().value[0]), "0/0 is not a number"
    assert found.asymmetry().value[1] == 0
    one = probes(torch.full((1, 1, 1), -2.0))
    assert one.frobenius().value[0] == pytest.approx(2, rel=1e-6)


def test_huge_tiny_and_single_precision_norms():
    a = grcar(10)[None]
    exact = float(torch.linalg.matrix_norm(a))
    for scale in (1e-200, 1e200):
        found = probes(scale * a).frobenius()
        assert found.value[0] / scale == pytest.approx(exact, abs=5 * found.error[0] / scale)
    single = probes(a.float() * 1e30)
    assert np.isfinite(single.frobenius().value).all()
    assert single.frobenius().value[0] / 1e30 == pytest.approx(probes(a).frobenius().value[0], rel=1e-5)


def test_jackknife_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(0).normal(size=(3, 50))
    found = jackknife(lambda v: v, x)
    np.testing.assert_allclose(found.value, x.mean(axis=1))
    np.testing.assert_allclose(found.error, x.std(axis=1, ddof=1) / math.sqrt(50), rtol=1e-12)


def test_jackknife_of_a_root_agrees_with_the_delta_method():
    x = 5 + np.random.default_rng(1).normal(size=(2, 400))
    found = jackknife(np.sqrt, x)
    mean, error = x.mean(axis=1), x.std(axis=1, ddof=1) / 20
    np.testing.assert_allclose(found.error, error / (2 * np.sqrt(mean)), rtol=1e-3)


def test_refusals():
    with pytest.raises(ValueError, match="at least 4"):
        probes(torch.eye(3)[None], 3)
    bad = torch.stack([torch.eye(2), torch.full((2, 2), math.inf)]).double()
    with pytest.raises(ArithmeticError, match=r"\[1\]"):
        probes(bad)
