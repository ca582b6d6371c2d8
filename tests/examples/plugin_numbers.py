"""The example plug-in against plain torch and NumPy; run by test_plugin_package.py where the package is installed."""

import json
import sys

import numpy as np
import pytest
import torch

import dyneq
from dyneq.dynamics.structure import check_causality
from dyneq.errors import UsageError
from dyneq.gradients import registry
from dyneq.systems.validate import check_system

ROUNDING = torch.finfo(torch.float64).eps


def chain(seed: int = 0, **options):
    from dyneq_extras_example.chain import ChainBlock, ChainConfig

    generator = torch.Generator().manual_seed(seed)
    config = ChainConfig(vocabulary=7, channels=6, tokens=5, **options)
    block = ChainBlock(config, generator).double()
    tokens = torch.randint(7, (3, 6), generator=generator)
    return block.bind(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def relaxed(system, steps):
    z = system.initial_state().detach()
    with torch.no_grad():
        for _ in range(steps):
            z = z + system.eps * system.force(z)
    return z


def speed_against_a_plain_loop():
    system = chain(eps=0.3)
    depths, tolerance = (40, 3, 0, 12), 0.02
    ds = dyneq.run_probe("speed", system, depth=depths, tolerance=tolerance)
    assert ds["depth"].values.tolist() == [0, 3, 12, 40]
    head, targets = system.block.head.weight.detach().numpy(), system.targets.numpy()
    losses = []
    for depth in (0, 3, 12, 40):
        z = relaxed(system, depth).numpy()
        logits = z @ head.T
        logits = logits - logits.max(-1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses.append(-np.take_along_axis(log_p, targets[..., None], -1)[..., 0].mean(-1))
        force = system.force(torch.from_numpy(z)).detach().numpy()
        residual = [np.linalg.norm(f) / np.linalg.norm(y) for f, y in zip(force, z, strict=True)]
        np.testing.assert_allclose(ds["force_residual"].sel(depth=depth), residual, rtol=1e-10)
    losses = np.array(losses)
    np.testing.assert_allclose(ds["loss"], losses, rtol=1e-12)
    for sample in range(3):
        near = [abs(row[sample] - losses[-1, sample]) <= tolerance for row in losses]
        expected = next(d for i, d in enumerate((0, 3, 12, 40)) if all(near[i:]))
        assert ds["settled_depth"].values[sample] == expected
    assert len(set(ds["settled_depth"].values)) > 1 or ds["settled_depth"].values[0] > 0, "the check could not fail"
    assert {f.level for f in dyneq.summary(ds)} >= {"fact"}


def a_need_is_refused_before_anything_is_computed():
    class NoLoss(dyneq.System):
        name = "no loss"

        def force(self, z, context=None):
            raise AssertionError("computed")

        def initial_state(self):
            return torch.zeros(2, 3)

    with pytest.raises(UsageError, match="needs a loss"):
        dyneq.run_probe("speed", NoLoss())


def onestep_against_autograd():
    for options, step in (({}, 0.3), ({"step": 1.0}, 1.0)):
        system = chain(eps=0.3)
        found = registry.build("onestep", {"relaxation": 25, **options}).gradient(system)
        z = relaxed(system, 25)
        torch.testing.assert_close(found.state, z, rtol=1e-14, atol=1e-14)
        parameters = [p for members in system.parameter_groups().values() for p in members.values()]
        force = system.force(z)
        surrogate = z + step * (force - force.detach())  # z in value, one step in derivative
        expected = torch.autograd.grad(system.loss(surrogate).mean(), parameters, retain_graph=True)
        mine = [t for members in found.parameters.values() for t in members.values()]
        for a, b in zip(mine, expected, strict=True):
            assert torch.linalg.norm(a - b) <= 100 * ROUNDING * torch.linalg.norm(b)
        leaf = z.clone().requires_grad_()
        g = torch.autograd.grad(system.loss(leaf).mean(), leaf)[0]
        jacobian = torch.autograd.functional.jacobian(system.force, z).reshape(z.numel(), z.numel())
        defect = (jacobian.T @ (step * g).flatten()).view_as(g) + g
        ratio = torch.linalg.vector_norm(defect.flatten(1), dim=1) / torch.linalg.vector_norm(g.flatten(1), dim=1)
        torch.testing.assert_close(found.diagnostics["adjoint_residual"], ratio, rtol=1e-11, atol=0)


def chain_against_autograd():
    system = chain(gain=1.3)
    check_system(system)
    generator = torch.Generator().manual_seed(5)
    z, context, v, w = (torch.randn(3, 5, 6, generator=generator, dtype=torch.float64) for _ in range(4))
    check_causality(system, z)
    whole = torch.autograd.functional.jacobian(system.force, z).reshape(z.numel(), z.numel())
    own = torch.autograd.functional.jacobian(lambda y: system.force(y, z), z).reshape(z.numel(), z.numel())
    blocks = whole.view(3, 5, 6, 3, 5, 6)
    for jacobian, (matvec, rmatvec) in ((whole, system.linearize(z)), (own, system.linearize_tokens(z))):
        torch.testing.assert_close(matvec(v).flatten(), jacobian @ v.flatten(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(rmatvec(w).flatten(), jacobian.T @ w.flatten(), rtol=1e-12, atol=1e-13)
    for sample in range(3):
        for token in range(5):  # the token-diagonal Jacobian holds the blocks J_tt of the whole one and nothing else
            here = own.view(3, 5, 6, 3, 5, 6)[sample, token, :, sample, token]
            torch.testing.assert_close(here, blocks[sample, token, :, sample, token])
    mixed = system.force(z, context).detach()
    for token in range(5):
        one = system.token_force(token, context)(z[:, token]).detach()
        torch.testing.assert_close(one, mixed[:, token], rtol=1e-13, atol=1e-13)
        spliced = torch.cat([context[:, :token], z[:, token:]], dim=1)
        torch.testing.assert_close(one, system.force(spliced)[:, token].detach(), rtol=1e-13, atol=1e-13)
    branches = system.branches(z)
    x = system.initial_state()
    torch.testing.assert_close(x - z + branches["own"] + branches["previous"], system.force(z), rtol=1e-13, atol=1e-13)
    grouped = {n for members in system.parameter_groups().values() for n in members}
    assert grouped == {n for n, _ in system.block.named_parameters()}


def ring_against_its_formula():
    from dyneq_extras_example.ring import ring

    ds = dyneq.run_probe("spectrum", ring(1.8), at="root", depth=(400,))
    np.testing.assert_allclose(ds["abscissa"], -1 + 0.9, atol=1e-9)
    mu = ds["rightmost_mu"].values.ravel()
    np.testing.assert_allclose(np.abs(mu.imag), 1.8 * np.sqrt(3) / 2, atol=1e-9)


CHECKS = [
    speed_against_a_plain_loop,
    a_need_is_refused_before_anything_is_computed,
    onestep_against_autograd,
    chain_against_autograd,
    ring_against_its_formula,
]

if __name__ == "__main__":
    for check in CHECKS:
        check()
    print(json.dumps([check.__name__ for check in CHECKS]))
    sys.exit(0)
