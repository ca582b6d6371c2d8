"""Small blocks of any kind whose every parameter is random, their batches, and optimiser steps on them."""

import torch

from dyneq.gradients import registry
from dyneq.systems.block import BoundBlock
from dyneq.systems.checkpoint import block_of_kind

SIZES = {"vocabulary": 11, "channels": 8, "heads": 2, "tokens": 5}


def random_block(kind: str, seed: int = 1, **options):
    """Return a float64 block; biases and gains, which start at 0 and 1, are moved off these."""
    generator = torch.Generator().manual_seed(seed)
    found = block_of_kind(kind)
    block = found(found.Config(**{**SIZES, **options}), generator).double()
    with torch.no_grad():
        for p in block.parameters():
            if p.ndim == 1:
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=0.3)
    return block


def bind(block, samples: int = 2, tokens: int = 5, seed: int = 2) -> BoundBlock:
    """Return the block on a random batch of its own task."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(block.config.vocabulary, (samples, tokens + 1), generator=generator)
    return block.bind(*block.examples(text[:, :-1], text[:, 1:], generator))


def random_state(bound: BoundBlock, seed: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(bound.initial_state().shape, generator=generator, dtype=torch.float64)


def train(block, steps: int = 5, lr: float = 0.1, optimizer=torch.optim.Adam, **options) -> None:
    """Take large optimiser steps along the gradient of the loss after 20 relaxation steps."""
    taken = optimizer(block.parameters(), lr=lr, **options)
    for step in range(steps):
        gradient = registry.parse("bptt20").gradient(bind(block, seed=step))
        for group, members in block.parameter_groups().items():
            for name, p in members.items():
                p.grad = gradient.parameters[group][name]
        taken.step()


def dense(function, z: torch.Tensor) -> torch.Tensor:
    """Return the Jacobian of a function of the state ``[sample, token, channel]`` as one matrix, by torch."""
    n = z.numel()
    return torch.func.jacrev(function)(z).detach().reshape(n, n)


def check_products(bound: BoundBlock, seed: int = 4) -> None:
    """Compare whole and token-diagonal products, and both one-token forces, with the dense Jacobian by torch."""
    z = random_state(bound, seed)
    j = dense(bound.force, z)
    generator = torch.Generator().manual_seed(5)
    v, w = (torch.randn(z.shape, generator=generator, dtype=z.dtype) for _ in range(2))
    close = {"rtol": 0, "atol": 100 * torch.finfo(z.dtype).eps * float(j.abs().sum(1).max())}
    kept = v.clone(), w.clone(), z.clone()
    matvec, rmatvec = bound.linearize(z)
    torch.testing.assert_close(matvec(v).flatten(), j @ v.flatten(), **close)
    torch.testing.assert_close(rmatvec(w).flatten(), j.T @ w.flatten(), **close)
    if bound.structure.causal:
        samples, tokens, channels = z.shape
        blocks = j.reshape(samples, tokens, channels, samples, tokens, channels)
        above = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        for b in range(samples):
            assert not blocks[b, :, :, b].permute(0, 2, 1, 3)[above].any()
        own = torch.stack([torch.stack([blocks[b, t, :, b, t] for t in range(tokens)]) for b in range(samples)])
        matvec, rmatvec = bound.linearize_tokens(z)
        torch.testing.assert_close(matvec(v), torch.einsum("btij,btj->bti", own, v), **close)
        torch.testing.assert_close(rmatvec(w), torch.einsum("btij,bti->btj", own, w), **close)
        force = bound.force(z).detach()
        for t in range(tokens):
            of = bound.token_force(t, z)
            torch.testing.assert_close(of(z[:, t]), force[:, t], **close)
            derivative = torch.func.jacrev(of)(z[:, t])
            for b in range(samples):
                torch.testing.assert_close(derivative[b, :, b], own[b, t], **close)
        rows = torch.tensor([1, 0, 1]), torch.tensor([4, 0, 2])
        torch.testing.assert_close(bound.rows_force(*rows, z)(z[rows]), force[rows], **close)
        torch.testing.assert_close(bound.force(z, z).detach(), force, **close)
    assert all(torch.equal(a, b) for a, b in zip((v, w, z), kept, strict=True))


def check_parts(bound: BoundBlock) -> None:
    """Every part is a term of the force that a factor scales: F is affine in the factor, and 1 changes nothing."""
    z = random_state(bound)
    assert bound.parts
    for part in bound.parts:
        at = {alpha: bound.scaled(part, alpha).force(z).detach() for alpha in (-1.0, 0.0, 1.0, 2.0)}
        torch.testing.assert_close(at[1.0], bound.force(z).detach(), rtol=0, atol=1e-13 * float(z.abs().max() + 10))
        if bound.parts != ("recurrent", "antisymmetric"):  # where the rectification is not affine
            for alpha in (-1.0, 2.0):
                expected = (1 - alpha) * at[0.0] + alpha * at[1.0]
                torch.testing.assert_close(at[alpha], expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
        assert not torch.equal(at[0.0], at[1.0])
