"""The energy block: a conservative force with a symmetric Jacobian, trained on masked completion and nothing else."""

import copy

import pytest
import torch
from kinds import bind, check_parts, check_products, dense, random_block, random_state, train

from dyneq.errors import DyneqError, UsageError
from dyneq.gradients import registry
from dyneq.systems.checkpoint import EvaluationBatch
from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint
from dyneq.train.data import Corpus
from dyneq.train.recipe import load_recipe
from dyneq.train.trainer import Trainer

MASK = 11


def check_conservative(bound):
    """F = -dE/dz by torch, and the dense Jacobian of F is symmetric to rounding."""
    z = random_state(bound)
    gradient = torch.func.grad(lambda y: bound.energy(y).sum())(z).detach()
    force = bound.force(z).detach()
    torch.testing.assert_close(force, -gradient, rtol=0, atol=1e-13 * float(gradient.abs().max()))
    j = dense(bound.force, z)
    torch.testing.assert_close(j, j.T, rtol=0, atol=1e-13 * float(j.abs().sum(1).max()))
    assert (j - torch.diag(torch.diagonal(j))).any()
    return z, j


@pytest.mark.parametrize("options", [{}, {"damping": 0.3, "heads": 4, "widening": 2}, {"tokens": 1}])
def test_the_force_is_conservative_at_any_weights_and_after_optimiser_steps(options):
    block = random_block("energy", **options)
    bound = bind(block, tokens=options.get("tokens", 5))
    check_conservative(bound)
    train(block, steps=3, lr=0.3) if not options else None
    check_conservative(bind(block, tokens=options.get("tokens", 5), seed=9))


def test_the_energy_is_what_it_says():
    """Written out over tokens and heads in plain sums."""
    bound = bind(random_block("energy", damping=0.4))
    block, z, x = bound.block, random_state(bound), bound.x.detach()
    with torch.no_grad():
        u, wq, wk, xi = block.ln(z), block.attn.wq.weight, block.attn.wk.weight, block.memory.xi.weight
        for b in range(2):
            total = 0.7 * (z[b] ** 2).sum() - (x[b] * z[b]).sum()
            for t in range(5):
                total -= 0.5 * ((xi @ u[b, t]).clamp(min=0) ** 2).sum()
                for h in (slice(0, 4), slice(4, 8)):
                    scores = torch.stack([(wq[h] @ u[b, t]) @ (wk[h] @ u[b, s]) / 2 for s in range(5)])
                    total -= 2 * scores.exp().sum().log()
            torch.testing.assert_close(bound.energy(z)[b], total, rtol=1e-13, atol=0)


def test_products_parts_and_branches():
    bound = bind(random_block("energy"))
    check_products(bound)
    check_parts(bound)
    z = random_state(bound)
    rebuilt = bound.x - 2 * z + sum(bound.branches(z).values())
    torch.testing.assert_close(rebuilt, bound.force(z), rtol=0, atol=1e-13 * float(rebuilt.detach().abs().max()))
    check_conservative(bound.scaled("attention", -0.5).scaled("memory", 2.0))


def test_the_relaxation_descends_the_energy():
    bound = bind(random_block("energy", resinit=0.3))
    z, values = bound.initial_state().detach(), []
    with torch.no_grad():
        for _ in range(200):
            values.append(bound.energy(z))
            z = z + 0.02 * bound.force(z)
    steps = torch.stack(values).diff(dim=0)
    assert (steps <= 1e-13 * torch.stack(values).abs().max()).all()
    assert (steps[0] < -1e-6).all()


def test_ep_needs_no_correction_here():
    """J = J^T: the uncorrected nudge is right up to beta^2, which it is not on any other block."""
    block = random_block("energy", resinit=0.2)
    bound = bind(block)
    flat = {}
    for spec in ("adjoint:t1=120,steps=120", "ep:t1=120,t2=120,beta=0.02", "ep:t1=120,t2=120,beta=0.01"):
        gradient = registry.parse(spec).gradient(bound)
        flat[spec] = torch.cat([p.flatten() for m in gradient.parameters.values() for p in m.values()])
    exact, coarse, fine = flat.values()
    errors = [float((g - exact).norm() / exact.norm()) for g in (coarse, fine)]
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)  # the order of a centred difference


def test_the_loss_is_that_of_masked_tokens():
    block = random_block("energy", mask_share=0.4)
    text = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(0))
    tokens, targets = block.examples(text, text.roll(-1, 1), torch.Generator().manual_seed(1))
    assert torch.equal(targets, text)
    assert ((tokens == MASK).sum(1) == 2).all()
    assert torch.equal(tokens[tokens != MASK], text[tokens != MASK])
    again, _ = block.examples(text, text, torch.Generator().manual_seed(1))
    assert torch.equal(tokens, again)
    bound = block.bind(tokens, targets)
    z = random_state(bound)
    logp = block.logits(z).log_softmax(-1)
    for b in range(3):
        hidden = [t for t in range(5) if tokens[b, t] == MASK]
        expected = -sum(logp[b, t, text[b, t]] for t in hidden) / len(hidden)
        torch.testing.assert_close(bound.loss(z)[b], expected, rtol=1e-13, atol=0)
    assert bound.loss_terms == 2
    chosen = bound.select(torch.tensor([2, 0]))
    torch.testing.assert_close(chosen.loss(z[[2, 0]]), bound.loss(z)[[2, 0]], rtol=1e-14, atol=0)
    (g,) = torch.autograd.grad(bound.loss(z.requires_grad_()).sum(), z)
    assert (g[tokens == MASK] != 0).any(-1).all()
    assert not g[tokens != MASK].any()


def test_a_causal_language_model_is_refused_with_the_reason():
    block = random_block("energy")
    text = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))
    reason = "cannot be a causal language model.*conservative.*leak the future"
    with pytest.raises(UsageError, match=reason):
        block.bind(text[:, :-1], text[:, 1:])
    with pytest.raises(UsageError, match="sample 0 has no masked token"):
        block.bind(text[:, :-1], text[:, :-1])
    tokens, targets = block.examples(text[:, :-1], text[:, 1:], torch.Generator().manual_seed(0))
    with pytest.raises(UsageError, match=reason):
        block.bind(tokens, text[:, 1:])
    tokens[0] = MASK
    with pytest.raises(DyneqError, match="as many masked tokens as the others, but the numbers go from 1 to 5"):
        block.bind(tokens, targets)
    assert not block.bind(text[:, :-1]).has_loss


def test_what_needs_causality_is_refused():
    bound = bind(random_block("energy"))
    z = random_state(bound)
    for ask in (lambda: bound.linearize_tokens(z), lambda: bound.token_force(0, z), lambda: bound.force(z, z)):
        with pytest.raises(DyneqError, match="causal"):
            ask()
    for ask in (lambda: bound.block.token_force(0, z, z), lambda: bound.block.linearize(z, z, True)):
        with pytest.raises(DyneqError, match="causal"):
            ask()


def test_a_causal_mask_would_leave_attention_without_its_key_side():
    """Why it is not causal: the force on an early token does depend on later ones, through their queries."""
    bound = bind(random_block("energy"))
    _, j = check_conservative(bound)
    blocks = j.reshape(2, 5, 8, 2, 5, 8)
    assert blocks[0, 0, :, 0, 4].abs().max() > 1e-6
    torch.testing.assert_close(blocks[0, 0, :, 0, 4], blocks[0, 4, :, 0, 0].T, rtol=0, atol=1e-13)


def test_checkpoints_with_masked_batches_are_read_back(tmp_path, checkpoint):
    vocabulary = len(checkpoint.vocabulary)
    block = random_block("energy", vocabulary=vocabulary).float()
    text = checkpoint.evaluation.tokens
    tokens, targets = block.examples(text, text, torch.Generator().manual_seed(0))
    checkpoint.block, checkpoint.evaluation = block, EvaluationBatch(tokens, targets, checkpoint.evaluation.source)
    for suffix in (".pt", ".safetensors"):
        save_checkpoint(tmp_path / f"a{suffix}", checkpoint)
        loaded = load_checkpoint(tmp_path / f"a{suffix}")
        assert loaded.block.config == block.config
        assert torch.equal(loaded.evaluation.tokens, tokens)
        torch.testing.assert_close(loaded.bind().loss(loaded.bind().x), checkpoint.bind().loss(checkpoint.bind().x))
    checkpoint.evaluation = EvaluationBatch(tokens, tokens, {})
    save_checkpoint(tmp_path / "b.pt", checkpoint)
    with pytest.raises(DyneqError, match=f"has {vocabulary} symbols, but its evaluation batch uses {vocabulary}"):
        load_checkpoint(tmp_path / "b.pt")  # a mask is no symbol to be completed


def test_training_masks_and_continues_bit_for_bit():
    """The masks come from the run's own generator, so that a resumed run draws the same ones."""
    recipe = load_recipe(
        overrides=[
            *("block.kind=energy", "block.channels=8", "block.heads=2", "block.tokens=6", "data.evaluation_samples=4"),
            *("run.batch=3", "run.relaxation=5", "gradient=bptt5", "run.steps=6"),
        ]
    )
    corpus = Corpus("text", "the cat sat on the mat and the dog sat on the log " * 20)
    whole, first = Trainer(recipe, corpus), Trainer(recipe, corpus)
    assert torch.equal(whole.evaluation.tokens, first.evaluation.tokens)
    hidden = whole.evaluation.tokens == whole.block.mask
    assert (hidden.sum(1) == 1).all()
    assert torch.equal(whole.evaluation.tokens[~hidden], whole.evaluation.targets[~hidden])
    losses = [whole.update()["loss"] for _ in range(6)]
    assert [first.update()["loss"] for _ in range(3)] == losses[:3]
    kept = copy.deepcopy(first.checkpoint(with_state=True))
    second = Trainer(recipe, corpus)
    second.restore(kept, kept.block.state_dict())
    assert [second.update()["loss"] for _ in range(3)] == losses[3:]
    for one, two in zip(whole.block.parameters(), second.block.parameters(), strict=True):
        assert torch.equal(one, two)
    assert whole.evaluate()["validation_loss"] == second.evaluate()["validation_loss"]
