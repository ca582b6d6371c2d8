"""The slow sine and its response in phase, against the dense resolvent of the corrected dynamics."""

import math

import numpy as np
import pytest
import torch
from test_estimators import bound, flat
from test_nudged import cell, draw, error, has, jacobians, linear, slope

from dyneq.dynamics.relax import relax
from dyneq.errors import UsageError
from dyneq.gradients.base import Mark
from dyneq.gradients.lockin import LAG, Lockin, LockinParams, contraction_rate


def resolvent(matrices, g, w, eps):
    """-(J^T - s)^{-1} g per sample, complex, s the discrete form of i w."""
    s = (np.exp(1j * w * eps) - 1) / eps
    shifted = matrices.mT - s * torch.eye(matrices.shape[-1], dtype=torch.complex128)
    return torch.linalg.solve(shifted, -g.to(torch.complex128))


def non_normal():
    """A decaying pair and a slower mode it feeds, and their mirror image, with rates 0.3 and 0.6."""
    one = torch.tensor([[-0.3, 0.0, 0.0], [1.5, -0.5, -0.4], [0.0, 0.4, -0.5]], dtype=torch.float64)
    return torch.stack([one, 2 * one.mT])


def test_the_response_in_phase_is_the_real_part_of_the_resolvent():
    matrices, g = non_normal(), draw(2, 3)
    system = linear(matrices, g)
    for steps, periods in ((240, 1), (160, 2)):
        w = 2 * math.pi / (steps * system.eps)
        found = Lockin(LockinParams(t1=1, w=w, periods=periods)).gradient(system)
        expected = resolvent(matrices, g, w, system.eps) / 2
        # one period of settling leaves exp(-0.3 x 16) = 8e-3 of the transient at the shorter, 7e-4 at the longer
        settle = math.exp(-0.3 * steps * system.eps)
        a = found.parameters["all"]["x"]
        assert torch.linalg.norm(a - expected.real) < settle * torch.linalg.norm(expected.real)
        lag = torch.linalg.vector_norm(expected.imag, dim=1) / torch.linalg.vector_norm(expected.real, dim=1)
        torch.testing.assert_close(found.diagnostics["lag"], lag, rtol=2 * settle, atol=0)
        torch.testing.assert_close(found.diagnostics["frequency"], torch.full((2,), w).double())
        assert has(found, Mark.NUDGE_NOT_SETTLED) == [bool(x > LAG) for x in lag]


def test_after_a_long_settling_it_is_so_to_rounding():
    matrices, g = 20 * non_normal(), draw(2, 3)  # slow against the contraction, and short all the same
    system = linear(matrices, g, eps=0.01)
    found = Lockin(LockinParams(t1=1, w=2 * math.pi / 6, r=1.0)).gradient(system)
    expected = resolvent(matrices, g, 2 * math.pi / 6, system.eps).real / 2
    torch.testing.assert_close(found.parameters["all"]["x"], expected, rtol=1e-11, atol=1e-14)
    assert found.diagnostics["increment"].max() < 1e-11


def test_the_bias_falls_with_the_square_of_the_frequency():
    matrices, g = 4 * non_normal(), draw(2, 3)
    system = linear(matrices, g)
    exact = torch.linalg.solve(matrices.mT, -g) / 2
    steps = [300, 450, 675]
    frequencies = [2 * math.pi / (n * system.eps) for n in steps]
    found = [Lockin(LockinParams(t1=1, w=w, r=1.0)).gradient(system) for w in frequencies]
    errors = [float(torch.linalg.norm(f.parameters["all"]["x"] - exact) / torch.linalg.norm(exact)) for f in found]
    # the next order is that of the square of w over the smallest eigenvalue
    assert abs(slope(frequencies, errors) - 2) < (frequencies[0] / 1.2) ** 2
    # what is reported estimates it without knowing the answer: within a factor of three here
    lags = [float(f.diagnostics["lag"].max()) for f in found]
    assert all(e / 3 < lag**2 < 3 * e for lag, e in zip(lags, errors, strict=True))


def test_the_error_of_the_nudge_falls_with_the_square_of_its_amplitude():
    system = bound()
    free = Lockin(LockinParams(t1=150)).free(system)
    steps = 40
    w = 2 * math.pi / (steps * system.eps)
    g = free.g.flatten(1)
    linear_response = resolvent(jacobians(system, free.z), g, w, system.eps).real.view_as(free.z)
    amplitudes = [0.3, 0.1, 0.03]
    found = [Lockin(LockinParams(t1=150, w=w, r=r)).adjoint(system, free).a for r in amplitudes]
    errors = [float(torch.linalg.norm(a - linear_response)) for a in found]
    # settled to exp(-1.1 x 12) = 2e-6, far below
    assert abs(slope(amplitudes, errors) - 2) < amplitudes[0]


def test_a_constant_offset_drops_out_and_a_drift_does_not():
    matrices, g = 4 * non_normal(), draw(2, 3)
    w = 2 * math.pi / 30
    still = Lockin(LockinParams(t1=1, w=w)).gradient(linear(matrices, g))
    # at its start this one is no root by far: the states relax to another place and are driven about it
    pushed = linear(matrices, g, x=draw(2, 3, seed=8))
    params = LockinParams(t1=1, w=w)
    moved = Lockin(params).gradient(pushed)
    assert all(has(moved, Mark.FREE_NOT_CONVERGED))
    torch.testing.assert_close(moved.parameters["all"]["x"], still.parameters["all"]["x"], rtol=1e-10, atol=1e-13)
    # where nothing pulls back, a constant force makes the state drift; what is reported is what that adds to a
    nothing, speed = torch.zeros(2, 3, 3).double(), draw(2, 3, seed=8)
    for periods in (1, 3):
        params = LockinParams(t1=1, w=w, periods=periods, r=0.1)
        rest = Lockin(params).adjoint(linear(nothing, g), Lockin(params).free(linear(nothing, g)))
        system = linear(nothing, g, x=speed)
        adrift = Lockin(params).adjoint(system, Lockin(params).free(system))
        added = torch.linalg.vector_norm(adrift.a - rest.a, dim=1)
        expected = adrift.diagnostics["increment"] * torch.linalg.vector_norm(adrift.a, dim=1)
        torch.testing.assert_close(expected, added, rtol=1e-9, atol=0)
        assert adrift.marks[Mark.NUDGE_NOT_SETTLED].all()


def test_the_default_frequency_is_a_tenth_of_each_samples_contraction_rate():
    # normal matrices: each of their modes lags by its own w/abs(mu), which is at most a tenth; others can lag by more
    basis = torch.linalg.qr(draw(2, 3, 3, seed=4)).Q
    matrices = basis @ torch.diag_embed(torch.tensor([[-0.7, -1.1, -3.0], [-1.6, -2.0, -5.0]]).double()) @ basis.mT
    g = draw(2, 3)
    system = linear(matrices, g)
    found = Lockin(LockinParams(t1=1)).gradient(system)
    rho = (1 + system.eps * torch.linalg.eigvals(matrices)).abs().amax(1)
    rate = (1 - rho) / system.eps
    torch.testing.assert_close(found.diagnostics["contraction_rate"], rate, rtol=1e-10, atol=0)
    steps = torch.ceil(20 * math.pi / (rate * system.eps))
    torch.testing.assert_close(found.diagnostics["frequency"], 2 * math.pi / (steps * system.eps))
    assert found.diagnostics["t2"].tolist() == (2 * steps).tolist()
    assert found.diagnostics["lag"].max() < 0.11
    exact = torch.linalg.solve(matrices.mT, -g) / 2
    assert torch.linalg.norm(found.parameters["all"]["x"] - exact) < 0.02 * torch.linalg.norm(exact)
    assert found.marks == {}
    # the samples have their own periods, and one that is done waits for the others without changing
    alone = Lockin(LockinParams(t1=1)).gradient(linear(matrices[1:], g[1:]))
    expected = alone.parameters["all"]["x"][0] / 2
    torch.testing.assert_close(found.parameters["all"]["x"][1], expected, rtol=1e-12, atol=0)


def test_the_contraction_rate_of_a_block_is_that_of_its_dense_jacobian():
    system = bound(0, resinit=1.0)
    z = relax(system, 300).z.detach()
    rho = (1 + system.eps * torch.linalg.eigvals(jacobians(system, z))).abs().amax(1)
    rate, products = contraction_rate(system, z)
    torch.testing.assert_close(rate, (1 - rho) / system.eps, rtol=1e-7, atol=0)
    assert products > 0
    broken = z.clone()
    broken[0, 2] = torch.nan
    found = contraction_rate(system, broken)[0]
    assert found.isnan().tolist() == [True, False]
    torch.testing.assert_close(found[1], rate[1])


def test_what_does_not_contract_is_marked_whatever_comes_out():
    # the second grows, the third is a flow that Euler's step makes unstable
    rates = torch.tensor([[-1.0, -2.0], [0.05, -1.0], [-1.0, -25.0]], dtype=torch.float64)
    system = linear(torch.diag_embed(rates), draw(3, 2))
    found = Lockin(LockinParams(t1=1, t2=1500)).gradient(system)
    assert has(found, Mark.NUDGE_DIVERGED) == [False, True, True]
    assert found.diagnostics["contraction_rate"].sign().tolist() == [1, -1, -1]
    # what has grown little is read at its end; what grew by 1.5 a step is 1e260 there
    assert found.diagnostics["t2"].tolist()[1] == 1500
    assert found.diagnostics["t2"][2] < 100
    assert torch.isfinite(found.parameters["all"]["x"]).all()
    exact = -draw(3, 2) / rates / 3
    torch.testing.assert_close(found.parameters["all"]["x"][0], exact[0], rtol=0.02, atol=0)


def test_too_little_room_for_a_slow_drive_is_marked():
    system = linear(torch.diag_embed(torch.tensor([[-1.0, -2.0], [-0.05, -0.05]]).double()), draw(2, 2))
    found = Lockin(LockinParams(t1=1, t2=1400)).gradient(system)
    assert found.diagnostics["t2"][1] == 1400
    assert has(found, Mark.NUDGE_NOT_SETTLED) == [False, True]
    assert found.diagnostics["lag"][1] > LAG


def test_a_sample_that_overflows_keeps_its_quietest_read_out_and_spoils_no_other():
    # the second grows by 1.5 a step and leaves double precision near step 1750 of its 2000, g next to none of it
    matrices = torch.diag_embed(torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -2.0, 5.0], [-3.0, -1.0, -1.0]]).double())
    g = draw(3, 3)
    g[1, 2] = 1e-30
    found = Lockin(LockinParams(t1=1, t2=2000)).gradient(linear(matrices, g))
    a = found.parameters["all"]["x"]
    assert torch.isfinite(a).all()
    assert has(found, Mark.NUDGE_DIVERGED) == [False, True, False]
    assert found.diagnostics["lag"].isnan().tolist() == [False, True, False]
    # by hand: the unstable mode, 1e-30 x 1.5^k, drowned what the drive of a period of 1000 steps leaves near step 160
    step = int(found.diagnostics["t2"][1])
    assert 50 < step < 200
    sine = np.sin(2 * math.pi * np.arange(step) / 1000)
    d, recorded = np.zeros(3), []
    for k in range(step):
        recorded.append(d)
        d = d + 0.1 * (matrices[1].diagonal().numpy() * d - 1e-2 * sine[k] * g[1].numpy())
    fit = np.linalg.lstsq(sine[:, None], np.array(recorded), rcond=None)[0][0] / 1e-2
    np.testing.assert_allclose(a[1].numpy(), -fit / 3, rtol=1e-11, atol=1e-30)
    # the others are what they are without it
    rest = [0, 2]
    alone = Lockin(LockinParams(t1=1, t2=2000)).gradient(linear(matrices[rest], g[rest]))
    torch.testing.assert_close(a[rest], alone.parameters["all"]["x"] * 2 / 3, rtol=1e-12, atol=0)
    # a parameter that samples share has the sum of their read-outs
    shared = linear(matrices, g)
    plain = shared._force
    shared._force = lambda z, b: plain(z, b)
    shared.parameters = {"b": torch.zeros(3, dtype=torch.float64, requires_grad=True)}
    shared._jacobian = lambda z, b: matrices
    summed = Lockin(LockinParams(t1=1, t2=2000)).gradient(shared)
    torch.testing.assert_close(summed.parameters["all"]["b"], a.sum(0), rtol=1e-12, atol=1e-15)


def test_a_blow_up_that_stays_finite_is_not_read_at_its_end():
    # growing by 1.02 a step, to 5e8 by the end
    matrices = torch.diag_embed(torch.tensor([[-1.0, -2.0], [0.2, -1.0]]).double())
    found = Lockin(LockinParams(t1=1, t2=1000)).gradient(linear(matrices, draw(2, 2)))
    assert has(found, Mark.NUDGE_DIVERGED) == [False, True]
    assert found.diagnostics["t2"][1] < 100
    assert torch.linalg.norm(found.parameters["all"]["x"][1]) < torch.linalg.norm(draw(2, 2)[1])


def test_a_phase_shorter_than_a_unit_of_time_has_nothing_to_be_compared_with():
    found = Lockin(LockinParams(t1=1, w=2 * math.pi / 0.1)).gradient(linear(non_normal(), draw(2, 3), eps=0.01))
    assert found.diagnostics["t2"].tolist() == [20, 20]
    assert has(found, Mark.NUDGE_DIVERGED) == [False, False]


def test_a_drive_that_cannot_be_is_refused():
    system = cell()
    for options, message in (
        ({"w": 4.0}, "at least 4 steps a period.*lower w to 1.57"),
        ({"w": 0.01, "t2": 1000}, "628 steps a period, so 1256.*raise t2 or w"),
        ({"t2": 11, "periods": 2}, "leaves 3 steps a period; raise t2 to 12"),
    ):
        with pytest.raises(UsageError, match=message):
            Lockin(LockinParams(t1=5, **options)).gradient(system)


def test_a_block_by_default():
    system = bound()
    found = Lockin(LockinParams(t1=150)).gradient(system)
    root = Lockin(LockinParams(t1=150)).free(system)
    matrices, g = jacobians(system, root.z), root.g.flatten(1)
    w = found.diagnostics["frequency"]
    a = torch.stack(
        [
            resolvent(matrices[i : i + 1], g[i : i + 1], float(w[i]), system.eps).real[0].view_as(root.z[i])
            for i in range(2)
        ]
    )
    parameters = [p for members in system.parameter_groups().values() for p in members.values()]
    total = (system.force(root.z) * a).sum() + system.loss(root.z).mean()
    expected = torch.cat([p.flatten() for p in torch.autograd.grad(total, parameters, retain_graph=True)])
    # what is left of the error is that of the amplitude, O(r^2)
    assert error(found, system, expected) < 1e-4
    assert found.marks == {}
    assert flat(found, system).shape == expected.shape
