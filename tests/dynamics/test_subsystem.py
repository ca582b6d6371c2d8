"""Tokens as systems of their own: the force is that of the whole, and so are roots and Jacobians."""

import pytest
import torch

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.roots import find_root
from dyneq.dynamics.subsystem import TokenSystem
from dyneq.errors import DyneqError
from dyneq.systems.analytic import StuartLandau
from dyneq.systems.protocol import System

SAMPLES, TOKENS = [2, 0, 1, 0], [3, 0, 4, 3]


@pytest.fixture
def block(build):
    system = build(seed=3, gain=1.5)
    generator = torch.Generator().manual_seed(1)
    return system, torch.randn(system.initial_state().shape, generator=generator, dtype=torch.float64)


@torch.no_grad()
def test_force_is_that_of_the_whole(block):
    system, z = block
    alone = TokenSystem(system, z, SAMPLES, TOKENS)
    assert torch.allclose(alone.force(z[SAMPLES, TOKENS]), system.force(z)[SAMPLES, TOKENS], rtol=0, atol=1e-13)
    assert torch.equal(alone.initial_state(), system.initial_state()[SAMPLES, TOKENS])


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"attention_bias": False}])
def test_rows_in_one_call_equal_rows_by_token(build, options):
    """The block's own way against the protocol's, which calls the token force once a token."""
    system = build(seed=1, **options)
    z = torch.randn(system.initial_state().shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    at = torch.tensor(SAMPLES), torch.tensor(TOKENS)
    together, by_token = system.rows_force(*at, z), System.rows_force(system, *at, z)
    y = z[SAMPLES, TOKENS] + 0.1
    assert torch.allclose(together(y), by_token(y), rtol=0, atol=1e-13)


@torch.no_grad()
def test_rows_in_one_call_with_a_scaled_antisymmetric_share(build):
    """There the values are twice as wide as the queries."""
    system = build(seed=1).scaled("antisymmetric", 0.5)
    z = torch.randn(system.initial_state().shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alone = TokenSystem(system, z, SAMPLES, TOKENS)
    assert torch.allclose(alone.force(z[SAMPLES, TOKENS]), system.force(z)[SAMPLES, TOKENS], rtol=0, atol=1e-13)


@torch.no_grad()
def test_jacobian_is_the_diagonal_block(block):
    system, z = block
    alone = TokenSystem(system, z, SAMPLES, TOKENS)
    own = Linearization(alone, z[SAMPLES, TOKENS]).dense()
    blocks = Linearization(system, z).token_blocks()[SAMPLES, TOKENS]
    assert torch.allclose(own, blocks, rtol=0, atol=1e-12)


def test_root_is_that_of_the_whole(build):
    """With the earlier tokens at their roots, each token's root is its part of the whole root."""
    system = build(seed=5, gain=0.5)
    whole = find_root(system, depth=100)
    assert whole.found.all()
    alone = TokenSystem(system, whole.z, SAMPLES, TOKENS)
    found = find_root(alone, depth=100)
    assert found.found.all()
    assert torch.allclose(found.z, whole.z[SAMPLES, TOKENS], rtol=0, atol=1e-9)


@torch.no_grad()
def test_selection_and_step(block):
    system, z = block
    alone = TokenSystem(system, z, SAMPLES, TOKENS).with_eps(0.03)
    part = alone.select(torch.tensor([3, 1]))
    assert part.rows == [(0, 3), (0, 0)]
    assert part.eps == 0.03
    y = z[SAMPLES, TOKENS]
    assert torch.allclose(part.force(y[[3, 1]]), alone.force(y)[[3, 1]], rtol=0, atol=1e-13)


def test_bad_rows_are_refused(block):
    system, z = block
    with pytest.raises(DyneqError, match=r"samples 0\.\.2 and tokens 0\.\.4"):
        TokenSystem(system, z, [0], [5])
    with pytest.raises(DyneqError, match="at least one sample"):
        TokenSystem(system, z, [], [])
    with pytest.raises(DyneqError, match="causal"):
        TokenSystem(StuartLandau(), torch.zeros(4, 2), [0], [0])
