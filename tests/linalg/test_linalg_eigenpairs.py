"""Krylov-Schur and dense LAPACK on matrices with known spectra, their certificates, and refusals."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyneq.linalg import (
    CallableOperator,
    CriticalStep,
    EigenResult,
    LargestMagnitude,
    LargestModulus,
    MatrixOperator,
    Rightmost,
    critical_step,
    default_tolerance,
    dense_eigenpairs,
    dense_eigenvalues,
    eigenpairs,
)
from dyneq.linalg.pairs import Pairs, certify

from .matrices import gaussian, generator, grcar, jordan, orthogonal, planted, rotation, spectrum_distance, zoo

BOTH = ("krylov-schur", "dense")


def solve(method: str, a: torch.Tensor, targets, count, **options) -> EigenResult:
    if method == "dense":
        return dense_eigenpairs(a, targets, count)
    result = eigenpairs(MatrixOperator(a), targets, count, generator=generator(3), **options)
    assert result.method == method
    return result


def check_certificates(a: torch.Tensor, r: EigenResult) -> None:
    """Compare every certificate with its definition, computed in float64 from the matrix."""
    eps = torch.finfo(a.dtype).eps
    a = a.double()
    norm = torch.linalg.matrix_norm(a, 2).numpy()
    slack = 100 * eps * norm[:, None]
    v = torch.where(torch.as_tensor(r.present)[:, :, None], r.vectors, 0).to(torch.complex128)
    mu = torch.as_tensor(np.where(r.present, r.values, 0))[:, :, None]
    residual = torch.linalg.vector_norm(v @ a.mT.to(v.dtype) - mu * v, dim=2).numpy()
    assert (np.abs(residual - r.residual) <= slack)[r.present].all()
    np.testing.assert_allclose(torch.linalg.vector_norm(v, dim=2).numpy()[r.present], 1, rtol=20 * eps)
    assert (r.scale <= norm * (1 + 100 * eps)).all()
    np.testing.assert_array_equal(r.converged[r.present], (r.residual <= r.tol * r.scale[:, None])[r.present])
    for array in (r.values, r.residual, r.condition):
        assert np.isnan(array[~r.present]).all()
    assert not r.converged[~r.present].any()
    # conjugates: adjacent, +imag first
    for values, present, vectors in zip(r.values, r.present, v, strict=True):
        assert present[: present.sum()].all()
        j = 0
        while j < present.sum():
            if values[j].imag == 0:
                j += 1
                continue
            assert values[j].imag > 0
            assert values[j + 1] == values[j].conj()
            assert torch.equal(vectors[j + 1], vectors[j].conj())
            j += 2
    if r.left_vectors is None:
        assert r.left_residual is None
        assert r.left_converged is None
        assert np.isnan(r.condition).all()
        assert r.left_matvecs == 0
        return
    assert (r.left_residual <= r.tol * norm[:, None] * (1 + 100 * eps))[r.left_converged].all()
    w = torch.where(torch.as_tensor(r.present)[:, :, None], r.left_vectors, 0).to(torch.complex128)
    np.testing.assert_allclose(torch.linalg.vector_norm(w, dim=2).numpy()[r.present], 1, rtol=20 * eps)
    good = r.left_converged
    assert not good[~r.present].any()
    # w belongs to mu: the eigenvalue of w lies within sqrt(tol) of it by the definition of a match
    error = torch.linalg.vector_norm(w.conj() @ a.to(w.dtype) - mu * w.conj(), dim=2).numpy()
    allowed = (r.tol + math.sqrt(r.tol)) * norm[:, None]
    assert (error <= allowed + slack)[good].all()
    overlap = (w.conj() * v).sum(2).abs().numpy()
    np.testing.assert_allclose(np.minimum(overlap, 1)[good], 1 / r.condition[good], rtol=1e-6, atol=100 * eps)
    assert np.isnan(r.condition[~good]).all()


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("theta", [0.0001, 0.3, 1.2, math.pi / 2, 2.5, math.pi - 0.01])
def test_a_rotation_has_its_radius_at_every_angle(method, theta):
    r = solve(method, planted(60, (theta,))[None], [LargestMagnitude()], 1)
    # normal: the residual bounds the error, and both are rounding
    np.testing.assert_allclose(np.abs(r.values), 0.99, atol=1e-9)
    np.testing.assert_allclose(r.values, [[0.99 * np.exp(1j * theta), 0.99 * np.exp(-1j * theta)]], atol=1e-9)
    np.testing.assert_allclose(r.condition, 1, rtol=1e-6)
    assert r.converged.all()
    small = eigenpairs(MatrixOperator(rotation(theta)), [LargestMagnitude()], 1, generator=generator())
    assert small.method == "dense"
    np.testing.assert_allclose(np.abs(small.values), 0.99, atol=1e-15)


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_matrix_of_the_list_in_one_batch(method, dtype):
    n, count = 64, 4
    names = list(zoo(n))
    a = torch.stack(list(zoo(n).values())).to(dtype)
    r = solve(method, a, [LargestMagnitude(), Rightmost()], count, max_restarts=40)
    check_certificates(a if method == "krylov-schur" else a.double(), r)
    exact = {name: np.linalg.eigvals(m.numpy()) for name, m in zoo(n).items()}
    for i, name in enumerate(names):
        p = r.present[i]
        if name == "grcar":
            continue  # beyond a Krylov method's reach at this condition (1e9 and more): only the flags must be honest
        assert r.converged[i][p].all(), name
        if name == "jordan":
            # defective: the residual is small, the eigenvalue is not accurate, and the condition says so or is unknown
            assert (np.isnan(r.condition[i][p]) | (r.condition[i][p] > 1e4)).all()
            continue
        bound = 2 * r.error_bound[i][p] + 100 * torch.finfo(dtype).eps * r.scale[i]
        if name in ("rotations", "repeated", "identity", "zero"):
            # normal, where the residual is a rigorous bound whatever vectors are chosen
            bound = 2 * r.residual[i][p] + 100 * torch.finfo(dtype).eps * r.scale[i]
        assert (spectrum_distance(r.values[i][p], exact[name]) <= bound).all(), name
    moduli = {name: np.abs(r.values[i][:4]) for i, name in enumerate(names)}
    atol = 10 * r.tol
    np.testing.assert_allclose(moduli["rotations"], 0.99, atol=atol)
    np.testing.assert_allclose(moduli["repeated"], 0.99, atol=atol)
    np.testing.assert_allclose(moduli["identity"], 1, atol=atol)
    assert (moduli["zero"] == 0).all()


def test_defective_matrices_are_called_ill_conditioned():
    a = jordan(40, 0.5, 0.3)[None]
    dense = dense_eigenpairs(a, [Rightmost()], None)
    check_certificates(a, dense)
    assert dense.values.shape == (1, 40)
    assert (dense.condition > 1e10).all()
    pair = torch.block_diag(jordan(2, 0.9, 0.5), torch.diag(torch.linspace(-0.5, 0.5, 48, dtype=torch.float64)))
    q = orthogonal(50)
    r = eigenpairs(MatrixOperator(q @ pair @ q.T), [Rightmost()], 2, generator=generator())
    assert (np.isnan(r.condition) | (r.condition > 1e4)).all()
    np.testing.assert_allclose(r.values, 0.9, atol=1e-5)


@pytest.mark.parametrize("method", BOTH)
def test_a_batch_equals_its_elements_one_by_one(method):
    a = torch.stack([zoo(40)[name] for name in ("rotations", "repeated", "rank")] + list(gaussian(3, 40)))
    targets = [Rightmost(), LargestModulus(0.3), CriticalStep()]
    whole = solve(method, a, targets, 2)
    for i in range(a.shape[0]):
        one = solve(method, a[i : i + 1], targets, 2)
        here, there = whole.values[i][whole.present[i]], one.values[0][one.present[0]]
        assert here.shape == there.shape
        error = np.nan_to_num(whole.error_bound[i][whole.present[i]]).max() + np.nan_to_num(one.error_bound[0]).max()
        assert spectrum_distance(here, there).max() <= 2 * error + 1e-13
        assert (one.converged[0] == one.present[0]).all()


@pytest.mark.parametrize("position", [0, 1, 30])
def test_an_exact_eigenvector_as_start_does_not_hide_the_others(position):
    n = 48
    q = orthogonal(n)
    values = torch.linspace(1.0, -1.0, n, dtype=torch.float64)
    a = (q * values) @ q.T
    start = q[:, position][None].contiguous()
    r = eigenpairs(MatrixOperator(a), [Rightmost()], 3, generator=generator(), start=start)
    assert r.converged.all()
    np.testing.assert_allclose(r.values[0].real, values[:3], atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_agreement_with_arpack_and_lapack_within_condition_times_residual(seed):
    n, k = 120, 6
    a = gaussian(1, n, seed)
    r = eigenpairs(MatrixOperator(a), [Rightmost()], k, generator=generator(seed))
    check_certificates(a, r)
    assert r.converged.all()
    assert r.left_converged.all()
    w, left, right = scipy.linalg.eig(a[0].numpy(), left=True)
    order = np.argsort(-w.real)[: r.values.shape[1]]
    np.testing.assert_allclose(np.sort(r.values[0].real), np.sort(w.real[order]), atol=1e-8)
    bound = 2 * r.error_bound[0] + 1e-12
    assert (spectrum_distance(r.values[0], w) <= bound).all()
    condition = 1 / np.abs((left.conj() * right).sum(0))
    nearest = np.abs(r.values[0][:, None] - w[None]).argmin(1)
    np.testing.assert_allclose(r.condition[0], condition[nearest], rtol=1e-5)
    start = np.random.default_rng(seed).standard_normal(n)
    arpack = scipy.sparse.linalg.eigs(a[0].numpy(), k=k, which="LR", tol=1e-12, v0=start, return_eigenvectors=False)
    assert (spectrum_distance(arpack, r.values[0]) <= bound.max() + 1e-9).all()


def test_reference_values_of_grcar_and_the_two_by_two():
    r = dense_eigenpairs(grcar(32), [Rightmost()], 1)
    np.testing.assert_allclose(r.values[0, 0].real, 1.6574333511, atol=1e-9)
    k = torch.tensor([[-1.0, 10.0], [0.0, -1.0]], dtype=torch.float64)
    r = dense_eigenpairs(k, [Rightmost()])
    np.testing.assert_allclose(r.values, -1, atol=1e-7)
    assert (r.condition > 1e7).all()


def stable(batch: int, n: int, seed: int) -> torch.Tensor:
    """Return matrices with slow real modes and fast, weakly damped oscillations away from the rightmost."""
    g = generator(seed)
    out = []
    for _ in range(batch):
        real = -0.05 - 2 * torch.rand(n - 8, dtype=torch.float64, generator=g)
        blocks = [
            torch.tensor([[a, b], [-b, a]], dtype=torch.float64)
            for a, b in (
                (-0.3 - float(torch.rand(1, generator=g)), 3 + float(torch.rand(1, generator=g))) for _ in range(4)
            )
        ]
        x = torch.eye(n, dtype=torch.float64) + 0.3 * torch.randn(n, n, dtype=torch.float64, generator=g) / math.sqrt(n)
        out.append(x @ torch.block_diag(torch.diag(real), *blocks) @ torch.linalg.inv(x))
    return torch.stack(out)


@pytest.mark.parametrize("method", BOTH)
def test_the_critical_step_is_set_by_another_mode_than_the_rightmost(method):
    a = stable(6, 60, 0)
    r = solve(method, a, [CriticalStep(), Rightmost()], 1)
    assert r.converged[r.present].all()
    for i, matrix in enumerate(a.numpy()):
        mu = np.linalg.eigvals(matrix)
        low, high = 1e-3, 10.0
        for _ in range(60):  # bisection on the spectral radius of I + eps J
            mid = 0.5 * (low + high)
            low, high = (mid, high) if np.abs(1 + mid * mu).max() < 1 else (low, mid)
        np.testing.assert_allclose(critical_step(r.values[i, :1]), low, rtol=1e-8)
        assert abs(r.values[i, 0].imag) > 2, "an oscillation sets the step"
        assert r.values[i][r.present[i]].real.max() > r.values[i, 0].real + 0.1, "and is not the rightmost"
        np.testing.assert_allclose(r.values[i][r.present[i]].real.max(), mu.real.max(), atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(36, 48),
    st.integers(1, 7),
    st.integers(0, 3),
    st.sampled_from([[Rightmost()], [LargestMagnitude()], [LargestModulus(0.2), CriticalStep()]]),
)
def test_pairs_are_never_split_and_values_are_true(seed, n, count, extra, targets):
    """Spectra of conjugate pairs only, any count, tight subspaces."""
    g = generator(seed)
    re = torch.randn(n // 2, dtype=torch.float64, generator=g)
    im = 0.1 + torch.rand(n // 2, dtype=torch.float64, generator=g)
    blocks = [
        torch.tensor([[a, b], [-b, a]], dtype=torch.float64) for a, b in zip(re.tolist(), im.tolist(), strict=True)
    ]
    inner = torch.block_diag(*blocks, *([torch.zeros(1, 1, dtype=torch.float64)] * (n % 2)))
    q = orthogonal(n, seed)
    a = (q @ inner @ q.T)[None]
    most = len(targets) * (count + 1)
    subspace = min(most + 4 + 2 * extra, n - 2)
    r = eigenpairs(
        MatrixOperator(a), targets, count, generator=g, subspace=subspace, max_restarts=20 * extra, left=False
    )
    check_certificates(a, r)
    exact = np.concatenate([re + 1j * im, re - 1j * im, np.zeros(n % 2)])
    assert r.present.all()
    # one batch element: at least `count`, whole pairs
    assert min(count, n) <= r.values.shape[1] <= most
    assert (spectrum_distance(r.values[0], exact) <= 2 * r.residual[0] + 1e-12).all()


def test_what_has_not_converged_is_returned_and_marked():
    a = gaussian(3, 200)
    r = eigenpairs(MatrixOperator(a), [Rightmost()], 3, generator=generator(), subspace=8, max_restarts=0)
    check_certificates(a, r)
    assert (r.present.sum(1) >= 3).all()
    assert not r.converged.any()
    assert (r.restarts, r.matvecs) == (0, 8 + r.values.shape[1])
    assert np.isnan(r.condition).all()
    assert not r.left_converged.any()


@pytest.mark.parametrize("max_restarts", range(5))
def test_flags_are_right_at_every_stage_of_convergence(max_restarts):
    a = torch.stack([planted(120, (0.4, 1.1), rest=0.9 + 0.01 * i, seed=i) for i in range(6)])
    r = eigenpairs(
        MatrixOperator(a), [LargestMagnitude()], 3, generator=generator(), max_restarts=max_restarts, subspace=14
    )
    check_certificates(a, r)
    assert r.present.sum() == 24
    if max_restarts == 0:
        assert not r.converged.all()


def test_of_left_vectors_of_equal_values_the_one_that_overlaps_is_matched():
    eye = torch.eye(4, dtype=torch.float64)
    values, present, scale = np.ones((1, 2), dtype=np.complex128), np.ones((1, 2), dtype=bool), np.ones(1)
    right = Pairs(values, eye[None, :2], present, scale, 0)
    left = Pairs(values, eye[None, [1, 0]], present, scale, 0)
    r = certify(MatrixOperator(eye), right, left, tol=1e-10, matvecs=0, left_matvecs=0, method="krylov-schur")
    assert r.condition.tolist() == [[1, 1]]
    assert torch.equal(r.left_vectors, r.vectors)
    # taken as they stand they are orthogonal, and that is said
    r = certify(
        MatrixOperator(eye), right, left, tol=1e-10, matvecs=0, left_matvecs=0, method="dense", corresponding=True
    )
    assert r.condition.tolist() == [[np.inf, np.inf]]
    assert r.error_bound.tolist() == [[np.inf, np.inf]]


def test_left_vectors_are_found_for_the_values_on_the_right_where_others_rank_alike():
    a = torch.stack([planted(60, (0.4, 1.2, 2.2), seed=seed) for seed in range(8)])
    r = eigenpairs(MatrixOperator(a), [LargestMagnitude()], 1, generator=generator())
    check_certificates(a, r)
    assert r.left_converged.all()
    np.testing.assert_allclose(r.condition, 1, rtol=1e-6)


def test_elements_leave_the_iteration_when_they_are_done_and_results_stay_in_place():
    n = 80
    easy = [planted(n, (0.5 + 0.1 * i,), rest=0.3, seed=i) for i in range(5)]
    hard = list(gaussian(3, n, 4))
    a = torch.stack([easy[0], hard[0], *easy[1:3], hard[1], *easy[3:], hard[2]])
    r = eigenpairs(MatrixOperator(a), [LargestMagnitude()], 2, generator=generator())
    check_certificates(a, r)
    assert r.converged[r.present].all()
    for i in range(8):
        exact = np.linalg.eigvals(a[i].numpy())
        top = np.sort(np.abs(exact))[::-1][:2]
        np.testing.assert_allclose(np.abs(r.values[i][:2]), top, atol=1e-8)


def test_float32_reaches_its_tolerance_and_knows_it():
    a = torch.stack([planted(100, (0.7, 1.9)), planted(100, (0.2, 2.9), seed=1)]).float()
    r = eigenpairs(MatrixOperator(a), [LargestMagnitude()], 4, generator=generator())
    assert r.vectors.dtype == torch.complex64
    assert r.tol == default_tolerance(torch.float32) == 64 * 2.0**-23
    assert r.converged.all()
    np.testing.assert_allclose(np.abs(r.values), 0.99, atol=2 * r.tol)
    check_certificates(a, r)


def test_products_are_counted_once_and_a_shared_counter_agrees():
    calls = []
    a = gaussian(2, 60)

    def product(m):
        def apply(v):
            calls.append(1)
            return torch.einsum("bij,bj->bi", m, v)

        return apply

    op = CallableOperator(product(a), product(a.mT), batch=2, dim=60, dtype=a.dtype, device="cpu")
    r = eigenpairs(op, [Rightmost()], 2, generator=generator())
    assert r.matvecs + r.left_matvecs == len(calls) == op.products
    assert r.matvecs > 0
    assert r.left_matvecs > 0


def test_dense_returns_everything_and_the_eigenvalues_alone():
    a = gaussian(3, 20)
    r = dense_eigenpairs(a, [Rightmost()])
    check_certificates(a, r)
    assert r.values.shape == (3, 20)
    np.testing.assert_allclose(r.values.sum(1), a.diagonal(dim1=1, dim2=2).sum(1), atol=1e-12)
    assert (np.diff(r.values.real, axis=1) <= 1e-12).all()
    alone = dense_eigenvalues(a.float())
    assert alone.dtype == np.complex128
    for i in range(3):
        assert spectrum_distance(alone[i], r.values[i]).max() < 1e-5
    # the matrix is put together from its own pairs: A = sum mu v w^H / (w^H v)
    v, w = r.vectors, r.left_vectors
    scaled = torch.as_tensor(r.values) / (w.conj() * v).sum(2)
    rebuilt = torch.einsum("bk,bki,bkj->bij", scaled, v, w.conj())
    torch.testing.assert_close(rebuilt.real, a, rtol=0, atol=1e-10)
    assert float(rebuilt.imag.abs().max()) < 1e-10


def test_small_operators_are_solved_whole_through_their_products():
    a = gaussian(2, 10)
    op = CallableOperator(
        lambda v: torch.einsum("bij,bj->bi", a, v),
        lambda v: torch.einsum("bji,bj->bi", a, v),
        batch=2,
        dim=10,
        dtype=a.dtype,
        device="cpu",
    )
    r = eigenpairs(op, [Rightmost(), LargestMagnitude()], 100, generator=generator())
    assert r.method == "dense"
    assert r.present.all()
    check_certificates(a, r)
    assert r.matvecs == 20
    assert r.left_matvecs == 10
    assert eigenpairs(MatrixOperator(gaussian(1, 34)), [Rightmost()], 1, generator=generator(), subspace=34).method == (
        "dense"
    )
    for i in range(2):
        assert spectrum_distance(np.linalg.eigvals(a[i].numpy()), r.values[i]).max() < 1e-12


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_smallest_sizes(n):
    a = gaussian(2, n)
    r = eigenpairs(MatrixOperator(a), [Rightmost()], 1, generator=generator())
    check_certificates(a, r)
    for i in range(2):
        np.testing.assert_allclose(r.values[i][0].real, np.linalg.eigvals(a[i].numpy()).real.max(), atol=1e-12)


def test_refusals():
    a = gaussian(2, 50)
    op = MatrixOperator(a)
    g = generator()
    with pytest.raises(ValueError, match="At least one target"):
        eigenpairs(op, [], 1, generator=g)
    with pytest.raises(TypeError, match="Rightmost"):
        eigenpairs(op, [Rightmost], 1, generator=g)
    with pytest.raises(ValueError, match="count=0"):
        eigenpairs(op, [Rightmost()], 0, generator=g)
    with pytest.raises(ValueError, match="at least 7"):
        eigenpairs(op, [Rightmost()], 4, generator=g, subspace=5)
    with pytest.raises(ValueError, match="tolerance"):
        eigenpairs(op, [Rightmost()], 1, generator=g, tol=0.0)
    with pytest.raises(ValueError, match="negative"):
        eigenpairs(op, [Rightmost()], 1, generator=g, max_restarts=-1)
    only = CallableOperator(lambda v: v, batch=2, dim=50, dtype=a.dtype, device="cpu")
    with pytest.raises(NotImplementedError, match="transposed"):
        eigenpairs(only, [Rightmost()], 1, generator=g)
    bad = a.clone()
    bad[1, 3, 4] = float("nan")
    with pytest.raises(ArithmeticError, match=r"\[1\]"):
        eigenpairs(MatrixOperator(bad), [Rightmost()], 1, generator=g)
    with pytest.raises(ValueError, match=r"\[1\]"):
        dense_eigenpairs(bad, [Rightmost()])
    with pytest.raises(ValueError, match=r"\[1\]"):
        dense_eigenvalues(bad)
    with pytest.raises(ValueError, match="square"):
        dense_eigenvalues(bad[0])
