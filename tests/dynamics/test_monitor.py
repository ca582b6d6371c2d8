"""Records of long relaxations: bounded memory, exact envelopes, time means, lost samples."""

import math
import tracemalloc

import numpy as np
import pytest
import torch

from dyneq.dynamics.blocks import Blocks
from dyneq.dynamics.monitor import observe
from dyneq.dynamics.relax import relax
from dyneq.errors import UsageError
from dyneq.systems import analytic
from dyneq.systems.adapters import from_map, from_ode

F64 = torch.float64


def run(system, steps, **options):
    return observe(system, system.initial_state(), steps, generator=torch.Generator().manual_seed(3), **options)


@pytest.mark.parametrize("length", [1, 5, 16, 17, 63, 64, 1000])
def test_blocks_are_the_largest_least_and_mean_values_whatever_the_pieces(length):
    series = torch.randn(length, 3, generator=torch.Generator().manual_seed(length), dtype=F64)
    blocks = Blocks(16, series[0])
    for piece in series.split(7):
        blocks.add(piece)
    start, count, high, low, mean = blocks.rows()
    assert int(count.sum()) == length
    assert len(start) <= 17
    for s, c, top, bottom, m in zip(start.tolist(), count.tolist(), high, low, mean, strict=True):
        part = series[s : s + c]
        assert torch.equal(top, part.amax(0))
        assert torch.equal(bottom, part.amin(0))
        assert torch.allclose(m, part.mean(0), rtol=0, atol=1e-14)


def test_memory_does_not_grow_with_the_length():
    """Numbers held, and what Python allocates on the way, of 6,000 and of five times as many steps."""
    system = from_map(lambda z: 3.9 * z * (1 - z), torch.full((2, 3), 0.3, dtype=F64))
    held, peak = [], []
    for steps in (6000, 30000):
        tracemalloc.start()
        record = run(system, steps, window=512, capacity=64)
        peak.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        held.append(record.elements)
        assert record.steps == steps
        assert len(record.residual) == 512
        assert len(record.history.start) <= 65
    assert held[1] <= held[0] * 65 / 32  # the history is between half full and full
    assert peak[1] <= 1.2 * peak[0]


def test_it_is_the_relaxation_and_its_rows_are_its_states():
    system = analytic.Lorenz()
    record = run(system, 700, window=100)
    assert torch.equal(record.z, relax(system, 700).z)
    assert record.window_steps.tolist() == list(range(600, 700))
    z = relax(system, 650).z
    assert torch.allclose(record.projections[50], z @ record.directions.mT, rtol=1e-13)
    expected = torch.linalg.vector_norm(system.force(z), dim=1) / torch.linalg.vector_norm(z, dim=1)
    assert torch.allclose(record.residual[50], expected, rtol=1e-13)
    assert torch.allclose(torch.linalg.vector_norm(record.directions, dim=1), torch.ones(8, dtype=F64))


def test_rows_at_a_distance_hold_the_last_ones():
    system = analytic.Lorenz()
    every = run(system, 1000, window=50, every=7)
    all_rows = run(system, 1000, window=1000)
    assert every.window_steps.tolist() == list(range(651, 1000, 7))
    assert torch.equal(every.residual, all_rows.residual[651::7])
    assert torch.equal(every.projections, all_rows.projections[651::7])


def test_blocks_of_the_history_are_those_of_all_rows():
    system = analytic.Lorenz()
    record = run(system, 1000, window=1000, capacity=32)
    past = record.history
    assert len(past.start) <= 33
    for n, (s, c) in enumerate(zip(past.start.tolist(), past.count.tolist(), strict=True)):
        assert torch.equal(past.residual_max[n], record.residual[s : s + c].amax(0))
        assert torch.equal(past.residual_min[n], record.residual[s : s + c].amin(0))


def test_mean_and_spread_on_a_circle():
    """Over whole turns of a rotation by 2 pi/12 about (3, 1) the mean is its centre, the spread its radius."""
    turn = analytic.RotationMap(2 * math.pi / 12, 1.0).matrix
    centre = torch.tensor([3.0, 1.0], dtype=F64)
    system = from_map(lambda z: centre + (z - centre) @ turn.mT, torch.tensor([[3.5, 1.0]], dtype=F64))
    record = run(system, 2400, window=1200)
    assert torch.allclose(record.mean, centre[None], atol=1e-11)
    assert float(record.spread[0]) == pytest.approx(0.5, abs=1e-11)
    assert record.averaged == 1200


def test_lost_samples_are_frozen_marked_and_leave_the_others_alone():
    """z -> z^2 leaves a million-fold of its start behind: overflow is at a known step; 0.5 goes to 0."""
    system = from_map(lambda z: z * z, torch.tensor([[1.5], [0.5], [math.nan]], dtype=F64).nan_to_num(2.0))
    record = run(system, 300, window=300)
    # norm first exceeds 1e8 max(1, norm(z_0)) where 1.5^(2^n) does
    n = math.ceil(math.log2(math.log(1e8 * 1.5) / math.log(1.5)))
    assert record.lost.tolist() == [n, -1, math.ceil(math.log2(math.log2(2e8)))]
    assert torch.isfinite(record.z).all()
    assert torch.isnan(record.residual[n:, 0]).all()
    assert torch.isfinite(record.residual[:n, 0]).all()
    assert float(record.z[1]) == 0
    assert torch.isnan(record.spread[0])
    assert bool(record.frozen[1])


def test_a_state_that_returns_itself_ends_the_record():
    record = run(from_ode(lambda z: 1 - z, torch.ones(2, 3, dtype=F64)), 5000)
    assert record.steps == 64
    assert record.frozen.all()
    assert torch.equal(record.mean, torch.ones(2, 3, dtype=F64))
    assert (record.spread == 0).all()


def test_tokens_and_branches_of_a_block(build):
    system = build(samples=2)
    record = run(system, 200)
    f = system.force(relax(system, 199).z).detach()
    assert torch.allclose(record.token_norm[199], torch.linalg.vector_norm(f, dim=2), rtol=1e-10)
    assert set(record.branches) == {"attention", "ffn", "state"}
    assert torch.allclose(record.branches["state"][-1], torch.linalg.vector_norm(record.z.flatten(1), dim=1))
    assert record.token_spread.shape == (2, 5)
    assert torch.allclose(torch.linalg.vector_norm(record.token_spread, dim=1), record.spread)


def test_single_precision_stays_single():
    record = run(analytic.Lorenz(z0=torch.tensor([[1.0, 1.0, 20.0]])), 100)
    assert record.z.dtype == record.residual.dtype == torch.float32


def test_bad_numbers_are_refused():
    system = analytic.Henon()
    with pytest.raises(UsageError, match="steps of at least 1"):
        run(system, 0)
    with pytest.raises(UsageError, match="every of at least 1"):
        run(system, 10, every=0)
    with pytest.raises(UsageError, match="is a map"):
        run(system, 10, eps=0.1)
    assert np.isfinite(run(analytic.StuartLandau(), 10, eps=0.02).eps)
