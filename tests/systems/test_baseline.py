"""The baseline: an ordinary transformer, its gradient plain back-propagation, that no relaxation is asked of."""

import pytest
import torch
from kinds import bind, check_products, random_block, random_state
from torch.nn import functional

from dyneq import run_probe
from dyneq.errors import UsageError
from dyneq.gradients import registry
from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint
from dyneq.systems.protocol import Time


def plain_loss(block, tokens, targets):
    """The model written with torch's own layers, in the order of a pre-norm transformer."""
    h = functional.embedding(tokens, block.tok.weight) + block.pos.weight[: tokens.shape[1]]
    for layer in block.layers:
        u = functional.layer_norm(h, (8,), layer.ln1.weight, layer.ln1.bias)
        a = layer.attn
        q, k, v = (
            functional.linear(u, p.weight, p.bias).unflatten(-1, (2, 4)).transpose(1, 2) for p in (a.wq, a.wk, a.wv)
        )
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        h = h + functional.linear(o, a.wo.weight, a.wo.bias)
        w = functional.layer_norm(h, (8,), layer.ln2.weight, layer.ln2.bias)
        h = h + layer.ffn.pj(functional.gelu(layer.ffn.fc(w)))
    if block.final is not None:
        h = functional.layer_norm(h, (8,), block.final.weight, block.final.bias)
    logits = functional.linear(h, block.head.weight)
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


OPTIONS = [{}, {"layers": 3, "final_norm": True, "attention_bias": True}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("spec", ["bptt1", "bptt7", "adjoint:t1=3,steps=2", "aep:t1=2,t2=3,beta=1e-6"])
def test_its_gradient_is_plain_back_propagation(options, spec):
    block = random_block("bp", **options)
    bound = bind(block)
    graph = plain_loss(block, bound.tokens, bound.targets)
    named, loss = dict(block.named_parameters()), float(graph.detach())
    expected = dict(zip(named, torch.autograd.grad(graph, list(named.values())), strict=True))
    found = registry.parse(spec).gradient(bound)
    assert float(found.loss.mean()) == pytest.approx(loss, rel=1e-13)
    assert not found.marks
    assert not found.diagnostics["force_residual"].any()
    # the nudge is exact up to the curvature of the loss, and rounding over beta
    tolerance = 1e-8 if spec.startswith("aep") else 1e-12
    for members in found.parameters.values():
        for name, value in members.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance * loss)


def test_as_a_system_it_starts_at_its_root_and_stays():
    bound = bind(random_block("bp"))
    assert (bound.time, bound.eps, bound.relaxes) == (Time.MAP, 1.0, False)
    assert not bound.force(bound.initial_state()).any()
    assert bound.select(torch.tensor([1])).relaxes is False
    check_products(bound)
    z = random_state(bound)
    assert torch.equal(z + bound.force(z), z + (bound.x - z))
    with pytest.raises(UsageError, match="is a map: it has no step size to change"):
        bound.block.bind(bound.tokens, eps=0.1)
    with pytest.raises(UsageError, match="no parts"):
        bound.scaled("attention", 0.0)


@pytest.mark.parametrize("probe", ["spectrum", "residual", "census", "diagnose"])
def test_probes_of_a_relaxation_say_that_there_is_none(probe):
    with pytest.raises(UsageError, match=f"'{probe}' looks at a relaxation, but BaselineBlock computes .* in one pass"):
        run_probe(probe, bind(random_block("bp")))


def test_its_parameters_have_their_groups():
    groups = random_block("bp", layers=2, final_norm=True).parameter_groups()
    assert sorted(groups["attn"]) == [f"layers.{i}.attn.w{x}.weight" for i in (0, 1) for x in "koqv"]
    assert sorted(groups["ffn"]) == [
        f"layers.{i}.ffn.{x}.{k}" for i in (0, 1) for x in ("fc", "pj") for k in ("bias", "weight")
    ]
    assert len(groups["ln"]) == 10
    assert sorted(groups["emb"]) == ["pos.weight", "tok.weight"]
    assert list(groups["head"]) == ["head.weight"]


def test_a_checkpoint_of_it_is_read_back(tmp_path, checkpoint):
    checkpoint.block = random_block("bp", vocabulary=len(checkpoint.vocabulary), layers=2).float()
    save_checkpoint(tmp_path / "a.pt", checkpoint)
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert loaded.block.config == checkpoint.block.config
    assert loaded.bind(2).has_loss
