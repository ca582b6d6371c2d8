"""Logarithms of singular values of long products, against multiple precision and LAPACK."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyneq.linalg.graded import GradedProduct

F64 = torch.float64


def product_of(factors):
    product = GradedProduct(factors.shape[1:], factors.device)
    for factor in factors:
        product.multiply(factor)
    return product


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 3), st.integers(0, 4), st.integers(0, 10**6))
def test_short_products_agree_with_lapack(size, batch, length, seed):
    factors = torch.randn(length, batch, size, size, generator=torch.Generator().manual_seed(seed), dtype=F64)
    dense = torch.eye(size, dtype=F64).expand(batch, size, size)
    for factor in factors:
        dense = factor @ dense
    expected = torch.linalg.svdvals(dense)
    product = GradedProduct((batch, size, size), torch.device("cpu"))
    for factor in factors:
        product.multiply(factor)
    found = product.log_singular_values()
    assert found.shape == (batch, size)
    # LAPACK's own error is an ulp of the largest singular value, times what the explicit product lost before
    lost = 1e-13 * torch.stack([torch.linalg.matrix_norm(f, 2) for f in factors]).prod(0) if length else 1e-13
    assert ((found.exp() - expected).abs() <= lost.unsqueeze(-1) if length else (found.abs() <= lost)).all()


@pytest.mark.parametrize("size", [3, 6])
def test_a_product_that_no_float_can_hold_agrees_with_900_digits(size):
    """Singular values from e^230 to e^-208: QR factors, as the exponents come, against the explicit product."""
    factors = torch.randn(300, size, size, generator=torch.Generator().manual_seed(1), dtype=F64)
    q = torch.eye(size, dtype=F64)
    product, exact = GradedProduct((size, size), q.device), mpmath.eye(size)
    with mpmath.workdps(900):
        for factor in factors:
            q, r = torch.linalg.qr(factor @ q)
            product.multiply(r)
            exact = mpmath.matrix(factor.tolist()) * exact
        values = sorted((mpmath.log(s) for s in mpmath.svd_r(exact, compute_uv=False)), reverse=True)
        expected = torch.tensor([float(v) for v in values], dtype=F64)
    # 300 factors, each with a relative error of some ulps times its condition (of order 100)
    assert (product.log_singular_values() - expected).abs().max() < 300 * 100 * torch.finfo(F64).eps * 10


def test_zeros_are_minus_infinity_and_nothing_overflows():
    zero = torch.zeros(1, 2, 2, dtype=F64)
    assert product_of(zero[None]).log_singular_values().isneginf().all()
    half = torch.diag(torch.tensor([2.0, 0.0], dtype=F64))
    found = product_of(half.expand(3, 1, 2, 2)).log_singular_values()[0]
    assert found[0] == pytest.approx(3 * torch.tensor(2.0, dtype=F64).log().item(), rel=1e-15)
    assert found[1] == -torch.inf
    huge = torch.diag(torch.tensor([1e200, 1e-200], dtype=F64)).expand(50, 1, 2, 2)
    expected = 50 * 200 * torch.tensor(10.0, dtype=F64).log()
    assert product_of(huge).log_singular_values()[0] == pytest.approx(torch.stack([expected, -expected]), rel=1e-13)
