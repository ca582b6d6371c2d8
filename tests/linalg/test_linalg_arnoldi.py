"""The factorisation: its relation and orthonormality at every size, through breakdowns and restarts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyneq.linalg import LargestMagnitude, MatrixOperator, arnoldi
from dyneq.linalg.arnoldi import Arnoldi
from dyneq.linalg.schur import leading_subspace, schur
from dyneq.linalg.selection import keep, leading

from .matrices import gaussian, generator, zoo


def check(a: torch.Tensor, f: Arnoldi) -> None:
    """Check A V = V H + v h^T and V V^T = I to rounding: c * sqrt(n) * size * eps, relative to norm(A)."""
    j, n = f.size, a.shape[1]
    bound = 10 * np.sqrt(n) * f.steps * torch.finfo(a.dtype).eps
    rows = f.basis[:, : j + 1].double()
    left = rows[:, :j] @ a.double().mT
    right = f.projected[:, : j + 1, :j].mT @ rows
    norm = torch.linalg.matrix_norm(a.double(), 2).clamp(min=1e-120)
    defect = torch.linalg.matrix_norm(left - right) / norm
    assert float(defect.max()) <= bound, f"relation {defect} at size {j}"
    used = rows if j < n else rows[:, :j]
    gram = used @ used.mT - torch.eye(used.shape[1], dtype=torch.float64)
    assert float(gram.abs().max()) <= bound, f"orthonormality {gram.abs().amax((1, 2))} at size {j}"
    if j == n:
        assert not f.basis[:, n].any()


def truncate(f: Arnoldi, size: int) -> None:
    """Restart with the leading part of the Schur form."""
    m = f.size
    values, t, z = schur(f.projected[:, :m, :m].numpy())
    rank, wanted = leading(values, [LargestMagnitude()], 1)
    q, small = leading_subspace(t, z, keep(values, rank, wanted, size), size)
    coupling = np.einsum("bi,bij->bj", f.projected[:, m, :m].numpy(), q)
    f.restart(*(torch.as_tensor(x) for x in (q, small, coupling)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [16, 40])
def test_relation_holds_at_every_size_and_through_restarts(n, dtype):
    a = torch.stack([*zoo(n).values(), *gaussian(2, n)]).to(dtype)
    f = Arnoldi(MatrixOperator(a), 16, generator=generator())
    for size in range(1, 17):
        f.extend(size)
        check(a, f)
    for kept in (8, 4, 10):
        truncate(f, kept)
        check(a, f)
        f.extend(12)
        check(a, f)
        f.extend()
        check(a, f)
    # three passes of the identity and of zero break down at every step, a random matrix never
    breakdowns = dict(zip([*zoo(n), "g", "h"], f.breakdowns.tolist(), strict=True))
    steps = 16 + 8 + 12 + 6
    assert breakdowns["identity"] == breakdowns["zero"] == steps
    if n > 16:
        assert breakdowns["g"] == breakdowns["h"] == 0


def test_an_exact_eigenvector_breaks_down_once_and_the_others_go_on():
    n = 24
    a = torch.diag(torch.arange(1.0, n + 1, dtype=torch.float64)).expand(2, n, n).clone()
    start = torch.ones(2, n, dtype=torch.float64)
    start[0] = torch.eye(n, dtype=torch.float64)[3]
    f = Arnoldi(MatrixOperator(a), 10, generator=generator(), start=start)
    f.extend()
    check(a, f)
    assert f.breakdowns.tolist() == [1, 0]
    assert f.projected[0, 1, 0] == 0
    assert f.projected[0, 0, 0] == 4


def test_an_invariant_subspace_of_dimension_two_is_found():
    a = torch.block_diag(*[torch.tensor([[0.0, -k], [k, 0.0]], dtype=torch.float64) for k in range(1, 9)])
    start = torch.zeros(1, 16, dtype=torch.float64)
    start[0, 4] = 1e-200
    f = Arnoldi(MatrixOperator(a), 5, generator=generator(), start=start)
    f.extend(2)
    assert f.projected[0, 2, 1] == 0
    np.testing.assert_allclose(np.linalg.eigvals(f.projected[0, :2, :2].numpy()).imag, [3, -3], atol=1e-14)
    f.extend()
    check(a[None], f)


@pytest.mark.parametrize("size", [1e-310, 1e-154, 1e-110, 1e150])
def test_tiny_and_huge_operators_keep_an_orthonormal_basis(size):
    a = size * gaussian(2, 12)
    f = Arnoldi(MatrixOperator(a), 8, generator=generator())
    f.extend()
    check(a, f)
    # squares underflow below 1e-154, with loss of digits before that, and such an operator counts as zero
    assert bool((f.breakdowns == (8 if size < 1e-150 else 0)).all())


def test_the_scale_is_a_lower_bound_of_the_norm():
    a = gaussian(4, 30)
    f = Arnoldi(MatrixOperator(a), 20, generator=generator())
    f.extend()
    norm = torch.linalg.matrix_norm(a, 2)
    assert bool((f.scale <= norm * (1 + 1e-14)).all())
    assert bool((f.scale > 0.5 * norm).all())


def test_select_continues_the_named_elements():
    a = gaussian(4, 20)
    f = Arnoldi(MatrixOperator(a), 12, generator=generator())
    f.extend(6)
    f.select(torch.tensor([3, 1]))
    f.extend()
    check(a[[3, 1]], f)


def test_the_same_seed_gives_the_same_basis(monkeypatch):
    a = gaussian(40, 12)
    bases = []
    for cache in (2**21, 2**21, 1):
        monkeypatch.setattr(arnoldi, "_CACHE_BYTES", cache)
        f = Arnoldi(MatrixOperator(a), 8, generator=generator(5))
        f.extend()
        check(a, f)
        bases.append(f.basis)
    assert torch.equal(bases[0], bases[1])
    # orthogonalised in parts of 16 elements
    torch.testing.assert_close(bases[0], bases[2], rtol=0, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 9), st.integers(0, 10**6))
def test_relation_for_random_rank(batch, n, rank, seed):
    g = generator(seed)
    rank = min(rank, n)
    a = torch.randn(batch, n, rank, dtype=torch.float64, generator=g) @ torch.randn(
        batch, rank, n, dtype=torch.float64, generator=g
    )
    f = Arnoldi(MatrixOperator(a), n, generator=g)
    f.extend()
    check(a, f)
    # a full factorisation is a similarity: the spectrum is A's, so are its elementary invariants
    h = f.projected[:, :n, :n]
    scale = float(torch.linalg.matrix_norm(a).max()) + 1e-300
    assert float((h.diagonal(dim1=1, dim2=2).sum(1) - a.diagonal(dim1=1, dim2=2).sum(1)).abs().max()) <= 1e-12 * scale
    assert float((torch.linalg.matrix_norm(h) - torch.linalg.matrix_norm(a)).abs().max()) <= 1e-12 * scale


def test_refusals():
    op = MatrixOperator(gaussian(2, 5))
    with pytest.raises(ValueError, match="1 to 5 steps"):
        Arnoldi(op, 6, generator=generator())
    with pytest.raises(ValueError, match="start vectors"):
        Arnoldi(op, 3, generator=generator(), start=torch.ones(2, 4, dtype=torch.float64))
    for bad in (0.0, float("nan"), float("inf")):
        start = torch.ones(2, 5, dtype=torch.float64)
        start[1] = bad
        with pytest.raises(ValueError, match="finite and not zero"):
            Arnoldi(op, 3, generator=generator(), start=start)
