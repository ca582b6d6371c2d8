"""Transient growth, dense and matrix-free, against analytic values, SciPy and exhaustive search."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from dyneq.linalg import MatrixOperator, flow_growth, kreiss_lower_bound, power_growth, transient_growth
from dyneq.linalg.growth import Power

from .matrices import gaussian, generator, grcar, jordan, orthogonal, planted, rotation

F64 = torch.float64


def shear(k=10.0):
    return torch.tensor([[-1.0, k], [0.0, -1.0]], dtype=F64)


def stable_zoo(n=14):
    """Stable maps M with transient growth, `[batch, n, n]`."""
    g = gaussian(4, n, seed=5)
    upper = torch.triu(g, 1)
    radius = torch.linalg.eigvals(g).abs().amax(1)
    decay = torch.linspace(0.2, 0.97, n, dtype=F64)
    return torch.cat([0.95 * g / radius[:, None, None], torch.diag(decay) + 0.9 * upper, jordan(n, 0.6, 0.6)[None]])


def exhaustive(m, horizon):
    """norm(M^n) for every n by NumPy alone."""
    out = np.empty((len(m), horizon + 1))
    for i, a in enumerate(m.numpy()):
        power = np.eye(len(a))
        for n in range(horizon + 1):
            out[i, n] = np.linalg.norm(power, 2)
            power = a @ power
    return out


def test_shear_flow_of_the_reference():
    found = flow_growth(shear(), 50.0)
    # analytic: REFERENCE.md. The value is flat at its maximum, so its time is good to the root of rounding
    assert found.value == pytest.approx(3.715955228, abs=2e-9)
    assert found.time == pytest.approx(0.979796, abs=1e-6)
    assert found.contracted_by < 50
    assert np.linalg.norm(scipy.linalg.expm(found.contracted_by * shear().numpy()), 2) <= 1


def test_flow_growth_is_attained_and_not_exceeded_on_a_fine_grid():
    for seed in range(3):
        j = gaussian(1, 10, seed=seed)[0] + 2 * torch.triu(gaussian(1, 10, seed=seed + 9)[0], 1)
        j = j - (float(torch.linalg.eigvals(j).real.max()) + 0.2) * torch.eye(10).double()
        found = flow_growth(j, 100.0)
        attained = np.linalg.norm(scipy.linalg.expm(found.time * j.numpy()), 2)
        assert found.value == pytest.approx(attained, rel=1e-12)
        times = np.linspace(0, found.contracted_by, 3001)
        grid = max(np.linalg.norm(scipy.linalg.expm(t * j.numpy()), 2) for t in times)
        assert found.value >= grid * (1 - 1e-9)


def test_flows_that_do_not_grow_or_do_not_stop():
    q = orthogonal(6)
    normal = q @ torch.diag(torch.linspace(-3, -0.1, 6, dtype=F64)) @ q.T
    for j in (normal, torch.zeros(3, 3, dtype=F64), -torch.ones(1, 1, dtype=F64)):
        found = flow_growth(j, 10.0)
        assert (found.value, found.time) == (1.0, 0.0)
        assert np.isfinite(found.contracted_by)
    skew = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    assert flow_growth(skew, 10.0).value == pytest.approx(1.0, abs=1e-13)
    growing = flow_growth(torch.eye(2, dtype=F64), 3.0)
    assert math.isnan(growing.contracted_by)
    assert flow_growth(1e150 * shear(), 1e-148).value == pytest.approx(3.715955228, abs=2e-9)


def test_powers_are_the_largest_of_all_by_exhaustive_search():
    m = stable_zoo()
    found = power_growth(m, 300)
    curve = exhaustive(m, 300)
    np.testing.assert_allclose(found.value, curve.max(axis=1), rtol=1e-12)
    assert (found.steps == curve.argmax(axis=1)).all()
    assert found.complete.all()
    assert found.contracts.all()
    seen = np.isfinite(found.curve)
    np.testing.assert_allclose(found.curve[seen], curve[seen], rtol=1e-11)
    # where it stopped, norm(M^N) <= 1, and so nothing larger comes later
    last = seen.sum(axis=1) - 1
    assert (curve[np.arange(len(m)), last] <= 1 + 1e-12).all()


def test_powers_of_the_euler_shear_follow_the_formula():
    """M = [[1 - e, ek], [0, 1 - e]]: M^n = (1 - e)^(n-1) [[1 - e, n e k], [0, 1 - e]]."""
    e, k = 0.1, 10.0
    n = np.arange(201)
    largest = np.empty(201)
    for i in n:
        block = (1 - e) ** max(i - 1, 0) * np.array([[1 - e, i * e * k], [0, 1 - e]]) if i else np.eye(2)
        largest[i] = np.linalg.svd(block, compute_uv=False)[0]
    found = power_growth((torch.eye(2, dtype=F64) + e * shear())[None], 200)
    assert found.value[0] == pytest.approx(largest.max(), rel=1e-13)
    assert found.steps[0] == largest.argmax()
    # SciPy has no part in the formula; as eps falls the growth of the map tends to that of the flow, to first order
    gaps = []
    for eps in (0.1, 0.05, 0.025, 0.0125):
        value = power_growth((torch.eye(2, dtype=F64) + eps * shear())[None], 2000).value[0]
        gaps.append(value - flow_growth(shear(), 50.0).value)
    ratios = np.array(gaps[:-1]) / np.array(gaps[1:])
    assert ratios[-1] == pytest.approx(2.0, abs=0.1), "order 1 in eps"


def test_marginal_and_degenerate_powers():
    m = torch.stack(
        [torch.eye(2, dtype=F64), torch.zeros(2, 2, dtype=F64), rotation(1.0, 1.0), 0.5 * torch.eye(2).double()]
    )
    found = power_growth(m, 50)
    np.testing.assert_allclose(found.value, 1.0, atol=1e-13)
    assert (found.steps == 0).all()
    assert found.complete.all()
    assert found.contracts.tolist() == [False, True, False, True]
    blown = power_growth(torch.full((1, 1, 1), 1e200, dtype=F64), 5)
    assert blown.value[0] == 1e200, "overflow ends the look, incomplete"
    assert not blown.complete[0]
    with pytest.raises(ValueError, match="at least one step"):
        power_growth(m, 0)


@pytest.mark.parametrize("seed", range(3))
def test_matrix_free_growth_is_attained_and_finds_the_largest(seed):
    m = stable_zoo()
    dense = power_growth(m, 200)
    op = MatrixOperator(m)
    found = transient_growth(op, 200, generator=generator(seed))
    # a lower bound of the largest, attained by its vector, so never above it
    assert (found.value <= dense.value * (1 + 1e-12)).all()
    np.testing.assert_allclose(found.value, dense.value, rtol=1e-6)
    assert (found.steps == dense.steps).all()
    known = np.isfinite(found.residual)
    singular = np.array(
        [
            np.linalg.svd(np.linalg.matrix_power(a, n), compute_uv=False)[0]
            for a, n in zip(m.numpy(), found.steps, strict=True)
        ]
    )
    assert (np.abs(found.value - singular)[known] <= found.residual[known] + 1e-9).all()
    assert found.products == op.products, "every product is counted once"
    assert not found.at_horizon.any()
    at = found.curve[np.arange(len(m)), found.steps]
    np.testing.assert_allclose(at, found.value, rtol=1e-14)
    bounded = np.isfinite(found.curve)
    assert (found.curve[bounded] <= exhaustive(m, 200)[bounded] * (1 + 1e-10)).all()


def test_matrix_free_growth_in_parts_and_of_one_plus_eps_j():
    m = stable_zoo()
    j = (m - torch.eye(m.shape[1]).double()) / 0.1
    whole = transient_growth(MatrixOperator(j), 120, generator=generator(), eps=0.1)
    parts = transient_growth(
        MatrixOperator(j), 120, generator=generator(), eps=0.1, part=lambda index: MatrixOperator(j[index])
    )
    np.testing.assert_allclose(parts.value, whole.value, rtol=1e-6)
    assert parts.products <= whole.products
    np.testing.assert_allclose(whole.value, power_growth(m, 120).value, rtol=1e-6)


def test_matrix_free_growth_at_the_horizon_and_without_growth():
    op = MatrixOperator(torch.stack([planted(8, (0.3,)), 0 * orthogonal(8), torch.eye(8).double(), orthogonal(8)]))
    found = transient_growth(op, 40, generator=generator())
    np.testing.assert_allclose(found.value, 1.0, atol=1e-12)
    assert (found.steps == 0).all()
    assert (found.residual == 0).all()
    growing = transient_growth(MatrixOperator(1.1 * torch.eye(3).double()[None]), 12, generator=generator())
    assert growing.at_horizon[0]
    assert growing.value[0] == pytest.approx(1.1**12, rel=1e-12)
    one = transient_growth(MatrixOperator(torch.full((1, 1, 1), 0.5).double()), 3, generator=generator())
    assert one.value[0] == 1
    single = transient_growth(MatrixOperator(stable_zoo().float()), 60, generator=generator())
    np.testing.assert_allclose(single.value, power_growth(stable_zoo(), 60).value, rtol=1e-4)


def test_powers_have_an_exponent_of_their_own():
    m = gaussian(3, 6)
    steps = torch.tensor([0, 3, 7])
    v = torch.randn(3, 6, dtype=F64, generator=generator())
    expected = torch.stack([torch.linalg.matrix_power(a, int(n)) @ x for a, n, x in zip(m, steps, v, strict=True)])
    op = Power(MatrixOperator(m), steps)
    torch.testing.assert_close(op.matvec(v), expected)
    w = torch.randn(3, 6, dtype=F64, generator=generator(1))
    left, right = (op.matvec(v) * w).sum(1), (v * op.rmatvec(w)).sum(1)
    torch.testing.assert_close(left, right)


def test_growth_lies_between_the_bounds_of_the_kreiss_matrix_theorem():
    for m in stable_zoo():
        bound = kreiss_lower_bound(m, "map").value
        growth = power_growth(m[None], 400).value[0]
        assert 1 - 1e-12 <= bound <= growth * (1 + 1e-9) <= math.e * len(m) * bound * 1.2
    j = grcar(16) - 2.5 * torch.eye(16).double()
    assert kreiss_lower_bound(j).value <= flow_growth(j, 100.0).value * (1 + 1e-9)


def test_refusals():
    with pytest.raises(ValueError, match="at least one step"):
        transient_growth(MatrixOperator(torch.eye(2)), 0, generator=generator())
    with pytest.raises(ArithmeticError, match="not finite"):
        transient_growth(MatrixOperator(1e200 * torch.eye(2).double()), 10, generator=generator())
    with pytest.raises(ValueError, match="positive finite time"):
        flow_growth(torch.eye(2), 0.0)
    with pytest.raises(ValueError, match="one real square matrix"):
        flow_growth(torch.zeros(2, 2, 2), 1.0)
