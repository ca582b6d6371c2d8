"""Feedback alignment: exact with the weights themselves as feedback, and aligned only next to the loss without."""

import pytest
import torch
from test_estimators import bound, flat
from torch import nn

from dyneq.dynamics.relax import relax
from dyneq.errors import DyneqError, UsageError
from dyneq.gradients.adjoint import Adjoint, AdjointParams
from dyneq.gradients.base import Mark
from dyneq.gradients.fa import Fa, FaParams
from dyneq.gradients.feedback import FeedbackSystem, linear_maps, random_matrices
from dyneq.systems.adapters.function import from_map
from dyneq.systems.thick import ThickBlock, ThickConfig

NAMES = {"attn.wq", "attn.wk", "attn.wv", "attn.wo", "ffn.fc", "ffn.pj"}


def test_with_the_weights_as_feedback_it_is_the_adjoint(monkeypatch):
    system = bound(qk_norm=True, attention_bias=True, final_norm=True)
    weights = {name: m.weight.detach() for name, m in linear_maps(system).items()}
    monkeypatch.setattr("dyneq.gradients.fa.random_matrices", lambda system, seed: weights)
    found = Fa(FaParams(t1=50, steps=30)).gradient(system)
    exact = Adjoint(AdjointParams(t1=50, steps=30)).gradient(system)
    # another order of the same sums, in each of 30 steps
    torch.testing.assert_close(flat(found, system), flat(exact, system), rtol=1e-11, atol=1e-14)
    residuals = found.diagnostics["feedback_residual"], exact.diagnostics["adjoint_residual"]
    torch.testing.assert_close(*residuals, rtol=1e-9, atol=0)


def test_products_and_read_out_are_those_of_a_block_whose_backward_weights_were_replaced():
    # written out once for one token, where softmax is constant: J^T w = -(1+c) w + LN1^T Bv^T Bo^T w + LN2^T Bf D Bp w
    generator = torch.Generator().manual_seed(0)
    block = ThickBlock(ThickConfig(vocabulary=5, channels=6, heads=2, tokens=1, gelu="tanh"), generator).double()
    system = block.bind(torch.tensor([[1], [3]]), torch.tensor([[2], [0]]))
    back = random_matrices(system, 3)
    z = relax(system, 5).z
    w = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    found = FeedbackSystem(system, back).feedback(z)(w)

    leaf = z.clone().requires_grad_()
    u1, u2 = block.ln1(leaf), block.ln2(leaf)
    hidden = block.ffn.fc(u2).detach().requires_grad_()
    act = torch.nn.functional.gelu(hidden, approximate="tanh")
    (slope,) = torch.autograd.grad(act.sum(), hidden)
    to_u1 = (w @ back["attn.wo"]) @ back["attn.wv"]
    to_u2 = ((w @ back["ffn.pj"]) * slope) @ back["ffn.fc"]
    (expected,) = torch.autograd.grad([u1, u2], leaf, [to_u1, to_u2])
    torch.testing.assert_close(found, expected - 2 * w, rtol=1e-12, atol=1e-14)


def test_matrices_are_fixed_by_the_seed_and_follow_the_norms_of_the_weights():
    system = bound()
    first, again, other = random_matrices(system, 0), random_matrices(system, 0), random_matrices(system, 1)
    assert first.keys() == NAMES
    modules = dict(system.block.named_modules())
    for name, matrix in first.items():
        weight = modules[name].weight
        assert matrix.shape == weight.shape
        assert torch.equal(matrix, again[name])
        assert not torch.equal(matrix, other[name])
        torch.testing.assert_close(torch.linalg.norm(matrix), torch.linalg.norm(weight).detach(), rtol=1e-12, atol=0)
    with torch.no_grad():
        system.block.ffn.pj.weight.mul_(3)
    torch.testing.assert_close(random_matrices(system, 0)["ffn.pj"], 3 * first["ffn.pj"], rtol=1e-12, atol=0)


def test_forward_loss_and_read_out_stay_exact_and_the_block_is_left_alone():
    system = bound(final_norm=True)
    gradient = Fa(FaParams(t1=200)).gradient(system)
    exact = Adjoint(AdjointParams(t1=200)).gradient(system)
    assert torch.equal(gradient.state, exact.state)
    assert torch.equal(gradient.loss, exact.loss)
    for name in ("head.weight",):
        assert torch.equal(gradient.parameters["head"][name], exact.parameters["head"][name])
    for name in ("final.weight", "final.bias"):
        assert torch.equal(gradient.parameters["ln"][name], exact.parameters["ln"][name])
    assert all(type(m) is nn.Linear for m in linear_maps(system).values())
    assert torch.equal(flat(gradient, system), flat(Fa(FaParams(t1=200)).gradient(system), system))
    assert all(p.grad is None and p.requires_grad for p in system.block.parameters())


def cosines(system, fa, exact):
    return {
        name: float(torch.nn.functional.cosine_similarity(fa.parameters[g][name].flatten(), p.flatten(), dim=0))
        for g, members in exact.parameters.items()
        for name, p in members.items()
    }


def test_it_aligns_only_next_to_the_loss():
    # 32 channels, so that the cosine of independent directions is small; 6 blocks x 2 feedback seeds
    per_name = {}
    for seed in range(6):
        system = bound(seed, channels=32, heads=4, resinit=0.5, vocabulary=7)
        exact = Adjoint(AdjointParams(t1=200, steps=200)).gradient(system)
        assert exact.marks == {}
        for feedback in range(2):
            found = Fa(FaParams(t1=200, steps=200, seed=feedback)).gradient(system)
            assert found.diagnostics["adjoint_residual"].min() > 0.1
            assert found.marks == {}
            for name, cosine in cosines(system, found, exact).items():
                per_name.setdefault(name, []).append(cosine)
    table = {name: torch.tensor(values, dtype=torch.float64) for name, values in per_name.items()}
    # the read-out, next to the loss, is exact in every case
    assert (table["head.weight"] > 1 - 1e-12).all()
    # what enters the force directly is read out by a itself, which shares g/(1 + c) with the adjoint: partly aligned
    for name in ("attn.wo.weight", "ffn.pj.weight", "tok.weight"):
        assert 0.3 < table[name].mean() < 0.98
    # all that lies behind another map is read out through a random matrix: no alignment beyond chance on average, four
    # standard errors of the mean as the bar, and none of it anywhere near right
    for name in ("attn.wq.weight", "attn.wk.weight", "attn.wv.weight", "ffn.fc.weight"):
        mean, bar = table[name].mean(), 4 * table[name].std() / len(table[name]) ** 0.5
        assert abs(mean) <= bar
        assert table[name].abs().max() < 0.5


def test_an_unfinished_feedback_adjoint_is_marked():
    assert Mark.ADJOINT_NOT_SOLVED in Fa(FaParams(t1=400, steps=2)).gradient(bound()).marks
    assert Fa(FaParams(t1=400, steps=400)).gradient(bound(resinit=0.2)).marks == {}
    assert Fa().gradient(bound()).cost == 61 + 40 + 3


def test_what_has_no_block_of_linear_maps_is_refused():
    system = bound()
    w = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))

    class Map(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = w

        def forward(self, z):
            return torch.tanh(z @ self.w)

    bare = from_map(Map(), torch.ones(1, 2, dtype=torch.float64), loss=lambda z: z.sum(1))
    with pytest.raises(UsageError, match="no bound EquilibriumBlock"):
        Fa().gradient(bare)
    with pytest.raises(DyneqError, match="bind it with targets"):
        Fa().gradient(system.block.bind(system.tokens))
    block = system.block
    block.lost = nn.Parameter(torch.ones(2, 2).double())
    with pytest.raises(DyneqError, match="'lost' is not in one"):
        Fa().gradient(system)
    del block.lost

    class Tied(nn.Module):
        """relu(u Xi) Xi^T, one matrix used twice."""

        def __init__(self):
            super().__init__()
            self.xi = nn.Linear(8, 16, bias=False).double()

        def forward(self, u):
            return torch.relu(self.xi(u)) @ self.xi.weight

    untied, block.ffn = block.ffn, Tied()
    with pytest.raises(DyneqError, match=r"'ffn\.xi'.*tied weights"):
        Fa().gradient(system)
    block.ffn = untied
    system.block.ffn.fc = system.block.head  # a read-out that also serves the force
    system.block.ffn.pj = nn.Linear(7, 8).double()
    with pytest.raises(DyneqError, match="also serves the read-out"):
        Fa().gradient(system.block.bind(system.tokens, system.targets))
