"""GMRES against dense solutions, and its honesty about systems it cannot solve."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyneq.linalg import GmresStatus, MatrixOperator
from dyneq.linalg import solve as gmres

from .matrices import gaussian, generator, grcar, rank_deficient


def right_hand_side(batch: int, n: int, seed: int = 9) -> torch.Tensor:
    return torch.randn(batch, n, dtype=torch.float64, generator=generator(seed))


def explicit(a: torch.Tensor, x: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    return torch.linalg.vector_norm(b - torch.einsum("bij,bj->bi", a, x), dim=1).numpy()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("restart", [7, 30, 200])
def test_agreement_with_a_dense_solution(restart, transposed):
    a = gaussian(4, 50) - 1.6 * torch.eye(50, dtype=torch.float64)
    b = right_hand_side(4, 50)
    op = MatrixOperator(a).T if transposed else MatrixOperator(a)
    r = gmres(op, b, generator=generator(), restart=restart)
    dense = a.mT if transposed else a
    assert r.converged.all()
    assert set(r.status) == {GmresStatus.CONVERGED}
    # |x - x*| <= norm(A^-1) * residual
    inverse = 1 / torch.linalg.svdvals(a)[:, -1].numpy()
    error = torch.linalg.vector_norm(r.x - torch.linalg.solve(dense, b), dim=1).numpy()
    assert (error <= inverse * r.residual * (1 + 1e-6) + 1e-12).all()
    np.testing.assert_allclose(r.residual, explicit(dense, r.x, b), atol=1e-13)
    np.testing.assert_allclose(r.relative_residual, r.residual / torch.linalg.vector_norm(b, dim=1).numpy())


def test_elements_that_are_easy_hard_singular_and_trivial_in_one_batch():
    n = 40
    eye = torch.eye(n, dtype=torch.float64)
    shift = torch.roll(eye, 1, 0)  # restarted GMRES makes no progress at all on a cyclic shift
    a = torch.stack([eye, 3 * eye + gaussian(1, n)[0], shift, rank_deficient(n, 5), torch.zeros_like(eye), eye])
    b = right_hand_side(6, n)
    b[2] = eye[0]
    b[5] = 0
    r = gmres(MatrixOperator(a), b, generator=generator(), restart=20, max_products=400)
    states = [s.name for s in r.status]
    assert states == ["CONVERGED", "CONVERGED", "STAGNATED", "STAGNATED", "STAGNATED", "CONVERGED"]
    np.testing.assert_allclose(r.residual, explicit(a, r.x, b), atol=1e-13)
    assert r.converged.tolist() == [True, True, False, False, False, True]
    assert (r.relative_residual[2:5] > 0.5).all()
    assert (r.relative_residual <= 1 + 1e-15).all(), "never worse than it began"
    assert not r.x[5].any()
    # with the whole space the shift is solved
    assert gmres(MatrixOperator(shift), b[2:3], generator=generator(), restart=n).converged.all()


def test_a_consistent_singular_system_is_solved():
    a = rank_deficient(30, 6)[None]
    b = torch.einsum("bij,bj->bi", a, right_hand_side(1, 30))
    r = gmres(MatrixOperator(a), b, generator=generator())
    assert r.converged.all()
    np.testing.assert_allclose(r.residual, explicit(a, r.x, b), atol=1e-14)


def test_running_out_of_products_says_so():
    a = grcar(100)[None]
    b = right_hand_side(1, 100)
    op = MatrixOperator(a)
    r = gmres(op, b, generator=generator(), max_products=12)
    assert r.status == (GmresStatus.MAX_PRODUCTS,)
    assert not r.converged.any()
    assert r.products == op.products == 12
    assert 1e-10 < r.relative_residual[0] < 1


def test_a_start_is_used():
    a = gaussian(2, 30) - 2 * torch.eye(30, dtype=torch.float64)
    b = right_hand_side(2, 30)
    exact = torch.linalg.solve(a, b)
    r = gmres(MatrixOperator(a), b, generator=generator(), x0=exact)
    assert r.products == 1
    assert r.converged.all()
    far = gmres(MatrixOperator(a), b, generator=generator(), x0=1e6 * exact)
    assert far.converged.all()
    zero = gmres(MatrixOperator(a), 0 * b, generator=generator(), x0=exact, max_products=3)
    assert np.isinf(zero.relative_residual).all()


def test_float32_reaches_its_tolerance():
    a = (gaussian(3, 60) - 2 * torch.eye(60, dtype=torch.float64)).float()
    b = right_hand_side(3, 60).float()
    r = gmres(MatrixOperator(a), b, generator=generator())
    assert r.x.dtype == torch.float32
    assert r.converged.all()
    hopeless = gmres(MatrixOperator(a), b, generator=generator(), tol=1e-14)
    assert set(hopeless.status) == {GmresStatus.STAGNATED}
    assert (hopeless.relative_residual < 1e-5).all()


def test_more_products_never_give_a_worse_answer():
    # once float32 is exhausted, half of all cycles make the residual a little larger
    a = (gaussian(40, 30) - 2 * torch.eye(30, dtype=torch.float64)).float()
    b = right_hand_side(40, 30).float()
    last = np.full(40, np.inf)
    for products in range(11, 100, 11):
        r = gmres(MatrixOperator(a), b, generator=generator(), restart=10, max_products=products, tol=1e-14)
        assert (r.residual <= last).all()
        last = r.residual
    assert not r.converged.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_inconsistent_singular_system_is_solved_in_the_least_squares_sense(dtype):
    q = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64, generator=generator(2)))[0]
    a = (q[:, :6] * torch.linspace(1, 2, 6, dtype=torch.float64)) @ q[:, :6].T
    a = a.expand(10, -1, -1)
    b = right_hand_side(10, 30)
    r = gmres(MatrixOperator(a.to(dtype)), b.to(dtype), generator=generator())
    outside = b.T - q[:, :6] @ (q[:, :6].T @ b.T)
    assert set(r.status) == {GmresStatus.STAGNATED}
    np.testing.assert_allclose(r.residual, outside.norm(dim=0), rtol=1000 * torch.finfo(dtype).eps)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(0, 12), st.integers(1, 15), st.integers(0, 10**6))
def test_the_reported_residual_is_the_true_one_for_any_rank(batch, n, rank, restart, seed):
    a = torch.stack([rank_deficient(n, min(rank, n), seed + i) * n for i in range(batch)])
    b = right_hand_side(batch, n, seed)
    r = gmres(MatrixOperator(a), b, generator=generator(seed), restart=restart, max_products=60)
    norm = torch.linalg.vector_norm(b, dim=1).numpy()
    size = torch.linalg.matrix_norm(a, 2).numpy() * torch.linalg.vector_norm(r.x, dim=1).numpy()
    assert (np.abs(explicit(a, r.x, b) - r.residual) <= 1e-14 * (norm + size) * n).all()
    assert (r.residual <= norm * (1 + 1e-15)).all()
    np.testing.assert_array_equal(r.converged, r.residual <= 1e-10 * norm)
    assert r.products <= 60
    assert [s is GmresStatus.CONVERGED for s in r.status] == r.converged.tolist()


def test_refusals():
    op = MatrixOperator(gaussian(2, 5))
    g = generator()
    b = torch.ones(2, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="b for"):
        gmres(op, b[:, :4], generator=g)
    with pytest.raises(ValueError, match="x0 for"):
        gmres(op, b, generator=g, x0=b.float())
    with pytest.raises(ValueError, match="b holds"):
        gmres(op, b / 0, generator=g)
    with pytest.raises(ValueError, match="restart >= 1"):
        gmres(op, b, generator=g, restart=0)
    with pytest.raises(ArithmeticError, match="not finite"):
        gmres(MatrixOperator(torch.full((2, 5, 5), float("nan"), dtype=torch.float64)), b, generator=g)
