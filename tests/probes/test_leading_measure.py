"""The leading multipliers as a differentiable measure: against dense algebra, finite differences and spectrum."""

import numpy as np
import pytest
import torch

from dyneq.dynamics.relax import relax
from dyneq.probes.leading import leading_modes, leading_moduli
from dyneq.probes.registry import run_probe
from dyneq.systems.adapters import from_ode
from tests.dynamics.conftest import build


def dense_moduli(system, z):
    """The largest abs(1 + eps mu) of every token block, from torch's Jacobian and NumPy's eigenvalues."""
    samples, tokens, channels = z.shape
    found = np.zeros((samples, tokens))
    for i in range(samples):
        one = system.select(torch.tensor([i]))
        whole = torch.autograd.functional.jacobian(one.force, z[i : i + 1]).reshape(tokens, channels, tokens, channels)
        for t in range(tokens):
            found[i, t] = np.abs(1 + system.eps * np.linalg.eigvals(whole[t, :, t].numpy())).max()
    return found


def generator():
    return torch.Generator().manual_seed(0)


def test_moduli_are_those_of_dense_blocks():
    system = build(samples=2, gain=3.0)
    z = relax(system, 50).z
    modes = leading_modes(system, z, generator())
    moduli = leading_moduli(system, z, modes)
    expected = dense_moduli(system, z)
    assert modes.usable.all()
    np.testing.assert_allclose(moduli.detach().numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(np.abs(modes.multiplier), expected, rtol=1e-10)
    assert (modes.multiplier.imag != 0).any()  # complex pairs are among them


@pytest.mark.parametrize("above", [0.0, 0.9, 100.0])
def test_vectors_are_taken_where_they_are_asked_for(above):
    system = build(samples=2, gain=3.0)
    z = relax(system, 50).z
    some, every = leading_modes(system, z, generator(), above=above), leading_modes(system, z, generator())
    size = dense_moduli(system, z)
    wanted = (size >= above) | (size == size.max(1, keepdims=True))
    assert (some.usable == wanted).all()
    np.testing.assert_allclose(np.abs(some.multiplier), size, rtol=1e-10)
    moduli = leading_moduli(system, z, some)
    np.testing.assert_allclose(moduli.detach().numpy()[wanted], size[wanted], rtol=1e-10)
    weights = [system.block.attn.wv.weight, system.block.ffn.fc.weight]
    rows = torch.from_numpy(wanted)
    expected = torch.autograd.grad(leading_moduli(system, z, every)[rows].sum(), weights)
    for a, b in zip(torch.autograd.grad(moduli[rows].sum(), weights), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert np.isnan(some.residual[~wanted]).all()
    assert not some.right[~rows].any()


def test_large_blocks_by_krylov_agree_with_dense(monkeypatch):
    system = build(samples=2, gain=3.0)
    z = relax(system, 50).z
    monkeypatch.setattr("dyneq.probes.leading.TOKEN_DENSE_LIMIT", 0)
    modes = leading_modes(system, z, generator())
    np.testing.assert_allclose(leading_moduli(system, z, modes).detach().numpy(), dense_moduli(system, z), rtol=1e-8)


@pytest.mark.parametrize("by", ["weights", "state"])
def test_the_derivative_agrees_with_finite_differences(by):
    system = build(samples=2, gain=3.0)
    z = relax(system, 50).z
    modes = leading_modes(system, z, generator())
    source = torch.Generator().manual_seed(7)
    weights = [system.block.attn.wv.weight, system.block.ffn.fc.weight, system.block.ln1.weight]
    leaf = z.clone().requires_grad_()
    total = leading_moduli(system, leaf if by == "state" else z, modes).sum()
    wanted = [leaf] if by == "state" else weights
    found = torch.autograd.grad(total, wanted)
    direction = [torch.randn(w.shape, generator=source, dtype=torch.float64) for w in wanted]
    slope = sum(float((g * d).sum()) for g, d in zip(found, direction, strict=True))

    def shifted(h):
        if by == "state":
            return dense_moduli(system, z + h * direction[0]).sum()
        with torch.no_grad():
            for w, d in zip(weights, direction, strict=True):
                w.add_(d, alpha=h)
            value = dense_moduli(system, z).sum()
            for w, d in zip(weights, direction, strict=True):
                w.sub_(d, alpha=h)
        return value

    h = 1e-4
    expected = (8 * (shifted(h) - shifted(-h)) - (shifted(2 * h) - shifted(-2 * h))) / (12 * h)
    assert abs(slope) > 1e-3
    assert abs(slope - expected) <= 1e-6 * abs(expected)


def test_spectrum_reports_the_same_radius():
    system = build(samples=2, gain=3.0)
    ds = run_probe("spectrum", system, depth=(60,), numerical_abscissa=False)
    z = relax(system, 60).z
    moduli = leading_moduli(system, z, leading_modes(system, z, generator())).detach().numpy()
    np.testing.assert_allclose(ds["spectral_radius"].values.ravel(), moduli.max(axis=1), rtol=1e-10)


def test_without_tokens_a_whole_sample_has_one():
    matrix = torch.tensor([[-0.1, 2.0, 0.0], [-2.0, -0.1, 0.0], [0.0, 0.0, -0.5]], dtype=torch.float64)
    z0 = torch.ones(2, 3, dtype=torch.float64)
    system = from_ode(lambda z: z @ matrix.T, z0, eps=0.1)
    modes = leading_modes(system, z0, generator())
    expected = np.abs(1 + 0.1 * (-0.1 + 2j))
    np.testing.assert_allclose(np.abs(modes.multiplier), np.full((2, 1), expected), rtol=1e-12)
    np.testing.assert_allclose(
        leading_moduli(system, z0, modes).detach().numpy(), np.full((2, 1), expected), rtol=1e-12
    )
