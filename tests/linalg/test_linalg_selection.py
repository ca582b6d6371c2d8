"""Targets, the choice of what is wanted and kept, and the reordering of Schur forms: no pair is ever split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import lapack

from dyneq.linalg import CriticalStep, LargestMagnitude, LargestModulus, Rightmost, Target, critical_step
from dyneq.linalg.schur import _reorder_leniently, _uncut, leading_subspace, schur
from dyneq.linalg.selection import keep, leading, nearest, partner

TARGETS = [[Rightmost()], [LargestMagnitude()], [CriticalStep(), LargestModulus(0.1)], [Rightmost(), LargestModulus(1)]]


@st.composite
def quasi_triangular(draw):
    """Draw a real matrix with planted real and complex eigenvalues, of even size."""
    seed = draw(st.integers(0, 10**6))
    pairs = draw(st.integers(0, 6))
    reals = draw(st.integers(0 if pairs else 1, 4)) * 2
    rng = np.random.default_rng(seed)
    m = 2 * pairs + reals
    if m == 0:
        pairs, m = 1, 2
    # few distinct values, so that keys tie within and between kinds
    grid = draw(st.sampled_from([1, 2, 5]))
    t = np.triu(rng.standard_normal((m, m)), 1) * draw(st.sampled_from([0.0, 0.1, 1.0]))
    for j in range(pairs):
        a, b = rng.integers(-grid, grid + 1), rng.integers(1, grid + 1)
        t[2 * j : 2 * j + 2, 2 * j : 2 * j + 2] = [[a, b], [-b, a]]
    for j in range(2 * pairs, m):
        t[j, j] = rng.integers(-grid, grid + 1)
    q = np.linalg.qr(rng.standard_normal((m, m)))[0]
    return q @ t @ q.T


@settings(max_examples=150, deadline=None)
@given(quasi_triangular(), st.sampled_from(TARGETS), st.integers(1, 5), st.integers(0, 100))
def test_no_choice_splits_a_pair(matrix, targets, count, extra):
    m = matrix.shape[0]
    values, t, z = schur(matrix[None])
    rank, wanted = leading(values, targets, count)
    other = partner(values)
    np.testing.assert_array_equal(values, np.take_along_axis(values, other, 1).conj())
    np.testing.assert_array_equal(wanted, np.take_along_axis(wanted, other, 1))
    for target in targets:
        key = target.key(values[0].real + 1j * abs(values[0].imag))
        # the best `count` and nothing worse, apart from one partner
        among = np.sort(key[wanted[0]])[::-1]
        np.testing.assert_array_equal(among[: min(count, m)], np.sort(key)[::-1][: min(count, m)])
    assert min(count, m) <= wanted.sum() <= len(targets) * (count + 1)
    low = wanted.sum() + wanted.sum() % 2
    size = int(low + 2 * (extra % ((m - low) // 2 + 1)))
    kept = keep(values, rank, wanted, size)
    assert kept.sum() == size
    assert (kept | ~wanted).all()
    np.testing.assert_array_equal(kept, np.take_along_axis(kept, other, 1))
    q, s = leading_subspace(t, z, kept, size)
    norm = np.linalg.norm(matrix) + 1e-300
    # rounding of the Schur form and of at most m^2 exchanges
    assert np.linalg.norm(matrix @ q[0] - q[0] @ s[0]) <= 100 * m * np.finfo(float).eps * norm
    np.testing.assert_allclose(q[0].T @ q[0], np.eye(size), atol=1e-13)


def test_the_cut_inside_a_pair_takes_the_next_real_value_instead():
    values = np.array([[3.0, 2 + 1j, 2 - 1j, 1.0, 0.5 + 1j, 0.5 - 1j]])
    rank, wanted = leading(values, [Rightmost()], 1)
    assert wanted.tolist() == [[True, False, False, False, False, False]]
    assert keep(values, rank, wanted, 2).tolist() == [[True, False, False, True, False, False]]
    assert keep(values, rank, wanted, 4).tolist() == [[True, True, True, True, False, False]]
    assert leading(values, [Rightmost()], 2)[1].tolist() == [[True, True, True, False, False, False]]
    for size, m in ((3, 6), (2, 5)):
        with pytest.raises(ValueError, match="even"):
            keep(values[:, :m], rank[:, :m], wanted[:, :m], size)
    with pytest.raises(ValueError, match="at most 2 wanted"):
        keep(values, rank, np.ones_like(wanted), 2)


def test_nearest_takes_each_value_once_and_pairs_whole():
    values = np.array([[3.0, 2 + 1j, 2 - 1j, 1.0], [0.0, 1.0, 5.0, 6.0]])
    to = np.array([[2 + 1.1j, 2 - 1.1j, 1.9 + 1j], [0.9, 1.1, complex(np.nan, np.nan)]])
    # 1.9 + i finds its pair taken, and 1 is then nearer than 3
    assert nearest(values, to).tolist() == [[False, True, True, True], [True, True, False, False]]


def close_pairs(rng) -> np.ndarray:
    """Return a quasi-triangular matrix of nearly equal, badly scaled pairs, which LAPACK may refuse to exchange."""
    pairs = rng.integers(2, 5)
    t = np.triu(rng.standard_normal((2 * pairs, 2 * pairs)), 1) * 10.0 ** rng.integers(0, 8)
    apart = 10.0 ** rng.uniform(-16, -6)
    for j in range(0, 2 * pairs, 2):
        real = 1 + apart * rng.standard_normal()
        t[j : j + 2, j : j + 2] = [
            [real, 10.0 ** rng.integers(-2, 8)],
            [-(10.0 ** rng.integers(-8, 1)), real],
        ]
    far = np.array([[-5.0, 1.0], [-1.0, -5.0]])
    return np.block([[far, rng.standard_normal((2, 2 * pairs))], [np.zeros((2 * pairs, 2)), t]])


def test_eigenvalues_too_close_to_exchange_leave_a_valid_subspace():
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        t = close_pairs(rng)
        m = t.shape[0]
        select = np.zeros((1, m), dtype=bool)
        select[0, -2:] = True
        z = np.eye(m)
        info = lapack.dtrsen(select[0].astype(np.int32), t, z, job="N", lwork=m)[-1]
        if not info:
            continue
        refused += 1
        q, s = leading_subspace(t[None], z[None], select, 2)
        assert np.linalg.norm(t @ q[0] - q[0] @ s[0]) <= 100 * m * np.finfo(float).eps * np.linalg.norm(t)
        np.testing.assert_allclose(q[0].T @ q[0], np.eye(2), atol=1e-13)
        assert s[0, 1, 0] != 0, "a pair leads, whole"
        # the selection moved on to a twin near 1 and not to the pair near -5 that stood first
        assert abs(np.trace(s[0]) / 2 - 1) < 1e-5
    assert refused > 5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(0, 2), st.integers(1, 4))
def test_block_by_block_exchange_agrees_with_dtrsen(seed, pairs, reals, count):
    """The way round a refusal, taken where nothing is refused: the same subspace."""
    rng = np.random.default_rng(seed)
    m = 2 * (pairs + reals + 1)
    # well separated: real parts are distinct integers, one a block, in any order
    place = rng.permutation(pairs + 2 * reals + 2)
    t = 0.1 * np.triu(rng.standard_normal((m, m)), 2)
    low = 0
    for value in place:
        width = 2 if value < pairs else 1
        t[low : low + width, low : low + width] = np.array([[value, 1], [-1, value]])[:width, :width]
        low += width
    q0 = np.linalg.qr(rng.standard_normal((m, m)))[0]
    values, t, z = schur((q0 @ t @ q0.T)[None])
    rank, wanted = leading(values, [Rightmost()], count)
    size = int(wanted.sum() + wanted.sum() % 2)
    kept = keep(values, rank, wanted, size)
    q, _ = leading_subspace(t, z, kept, size)
    t_other, q_other = _reorder_leniently(t[0], z[0], kept[0], size, 0)
    projector = q[0] @ q[0].T
    np.testing.assert_allclose(q_other[:, :size] @ q_other[:, :size].T, projector, atol=1e-10)
    np.testing.assert_allclose(q_other @ t_other @ q_other.T, z[0] @ t[0] @ z[0].T, atol=1e-11)


@pytest.mark.parametrize("low", [0, 1, 2])
def test_a_cut_through_a_pair_is_moved_by_a_real_value_from_either_side(low):
    t = np.diag([1.0, 2.0, 3.0, 4.0])
    t[low + 1, low + 1] = t[low, low]
    t[low, low + 1], t[low + 1, low] = 1.0, -1.0
    cut = low + 1
    assert t[cut, cut - 1] != 0
    moved, q = _uncut(t, np.eye(4), cut, 0)
    assert moved[cut, cut - 1] == 0
    np.testing.assert_allclose(q @ moved @ q.T, t, atol=1e-14)
    with pytest.raises(ArithmeticError, match="element 7"):
        _uncut(t[low : low + 2, low : low + 2], np.eye(2), 1, 7)


def test_critical_step_is_where_the_multiplier_leaves_the_unit_circle():
    rng = np.random.default_rng(0)
    mu = -rng.uniform(0.01, 3, 50) + 1j * rng.standard_normal(50)
    step = critical_step(mu)
    np.testing.assert_allclose(abs(1 + step * mu), 1, rtol=1e-13)
    assert (abs(1 + 0.99 * step * mu) < 1).all()
    assert (abs(1 + 1.01 * step * mu) > 1).all()
    # SCIENCE: mu = -0.248 +- 2.672i has eps* 0.069; Euler map a=-.1, b=1: -2a/(a^2+b^2)
    np.testing.assert_allclose(critical_step(np.array([-0.248 + 2.672j, -0.1 + 1j])), [0.0689, 0.2 / 1.01], rtol=1e-3)
    assert np.isnan(critical_step(np.array([0.0, 1.0, 1j]))).all()
    np.testing.assert_allclose(critical_step(np.array([-1e-200 + 0j])), [2e200])


def test_critical_step_ranks_by_step_and_puts_unstable_modes_first():
    mu = np.array([-1 + 0j, -0.5 + 2j, 0.1 + 0j, -3 + 0j, 0j, 2 + 0j, -1e-9 + 0j])
    order = np.argsort(-CriticalStep().key(mu))
    assert mu[order].tolist() == [2, 0.1, 0, -0.5 + 2j, -3, -1, -1e-9]


class Bad(Target):
    def key(self, mu):
        return np.full(mu.shape, np.nan)


def test_refusals():
    with pytest.raises(ValueError, match="positive step"):
        LargestModulus(0.0)
    with pytest.raises(ValueError, match="no NaN"):
        leading(np.zeros((1, 2), dtype=complex), [Bad()], 1)
