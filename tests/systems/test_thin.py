"""The thin block: its force written out, its memory's energy, its products, parts and gradients."""

import math

import pytest
import torch
from kinds import bind, check_parts, check_products, random_block, random_state, train

from dyneq.gradients import registry
from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint

OPTIONS = [
    {},
    {"attention_bias": True, "qk_norm": True, "damping": 0.3},
    {"constraint": "specnorm", "spectral_bound": 0.7, "attention_bias": True},
    {"constraint": "rstr", "product_norm": 0.8, "antisymmetric_share": 0.3, "attention_bias": True},
]
each = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: o.get("constraint", "free"))


def test_the_force_is_what_it_says():
    """F(z) = x - (1 + c) z + Attn(LN z) + relu(LN z Xi) Xi^T, in NumPy, token by token."""
    bound = bind(random_block("thin", damping=0.4))
    block, z = bound.block, random_state(bound)
    w = {name: p.detach().numpy() for name, p in block.named_parameters()}
    x, state = bound.x.detach().numpy(), z.numpy()
    for b in range(2):
        centred = state[b] - state[b].mean(-1, keepdims=True)
        u = centred / ((centred**2).mean(-1, keepdims=True) + 1e-5) ** 0.5 * w["ln1.weight"] + w["ln1.bias"]
        for t in range(5):
            attended = 0
            for h in (slice(0, 4), slice(4, 8)):
                scores = [(w["attn.wq.weight"][h] @ u[t]) @ (w["attn.wk.weight"][h] @ u[s]) / 2 for s in range(t + 1)]
                p = [math.exp(s) for s in scores]
                value = sum(pi / sum(p) * (w["attn.wv.weight"][h] @ u[s]) for s, pi in enumerate(p))
                attended = attended + w["attn.wo.weight"][:, h] @ value
            xi = w["memory.xi.weight"].T
            recalled = xi @ (u[t] @ xi).clip(min=0)
            expected = x[b, t] - 1.4 * state[b, t] + attended + recalled
            found = bound.force(z)[b, t].detach()
            torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-12)


@each
def test_products_and_parts(options):
    bound = bind(random_block("thin", **options))
    check_products(bound)
    check_parts(bound)


def test_the_memory_descends_its_energy():
    memory = random_block("thin").memory
    u = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    descent = -torch.func.grad(lambda v: memory.energy(v).sum())(u).detach()
    torch.testing.assert_close(memory(u), descent, rtol=0, atol=1e-13 * float(descent.abs().max()))
    scaled = memory.scaled(-0.7)
    torch.testing.assert_close(scaled(u), -0.7 * descent, rtol=0, atol=1e-13 * float(descent.abs().max()))
    assert scaled.xi is memory.xi


def test_parameters_have_their_groups_and_gradients():
    block = random_block("thin", final_norm=True)
    groups = block.parameter_groups()
    assert {g: sorted(members) for g, members in groups.items()} == {
        "attn": [f"attn.w{x}.weight" for x in "koqv"],
        "ffn": ["memory.xi.weight"],
        "ln": ["final.bias", "final.weight", "ln1.bias", "ln1.weight"],
        "emb": ["pos.weight", "tok.weight"],
        "head": ["head.weight"],
    }
    bound = bind(block)
    exact, implicit = (
        registry.parse("bptt400").gradient(bound),
        registry.parse("adjoint:t1=400,steps=400").gradient(bound),
    )
    flat = [torch.cat([p.flatten() for m in g.parameters.values() for p in m.values()]) for g in (exact, implicit)]
    torch.testing.assert_close(*flat, rtol=0, atol=1e-8 * float(flat[0].norm()))


def test_a_checkpoint_of_it_is_read_back(tmp_path, checkpoint):
    block = random_block("thin", **{**OPTIONS[3], "vocabulary": len(checkpoint.vocabulary)}).float()
    checkpoint.block = block
    for suffix in (".pt", ".safetensors"):
        save_checkpoint(tmp_path / f"a{suffix}", checkpoint)
        loaded = load_checkpoint(tmp_path / f"a{suffix}").block
        assert loaded.config == block.config
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), block.parameters(), strict=True))


def test_it_relaxes_and_trains():
    block = random_block("thin", resinit=0.1)
    before = [p.detach().clone() for p in block.parameters()]
    train(block, steps=3, lr=0.01)
    assert all(not torch.equal(a, b) for a, b in zip(before, block.parameters(), strict=True))
