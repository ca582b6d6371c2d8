"""Blocks with one part scaled: what is scaled, what is left alone, and the Jacobian of the widened attention."""

import pytest
import torch

from dyneq.errors import UsageError
from dyneq.systems import analytic
from dyneq.systems.protocol import _Selected

F64 = torch.float64
OPTIONS = [
    {},
    {"attention_bias": True, "qk_norm": True, "damping": 0.5},
    {"attention_bias": True, "heads": 1, "ffn_bias": False},
]
PARTS = ["attention", "head:0", "ffn", "antisymmetric"]


def branches_by_hand(bound, z):
    """Return what each head adds to the force, the bias of W_O, and the feed-forward branch, from the weights alone."""
    block = bound.block
    a, u = block.attn, block.ln1(z)
    d = z.shape[2] // block.config.heads
    mask = torch.full((z.shape[1], z.shape[1]), -torch.inf, dtype=F64).triu(1)
    heads = []
    for h in range(block.config.heads):
        rows = slice(h * d, (h + 1) * d)
        q, k, v = (u @ w.weight[rows].T + (0 if w.bias is None else w.bias[rows]) for w in (a.wq, a.wk, a.wv))
        if block.config.qk_norm:
            q, k = (x / (x.square().mean(-1, keepdim=True) + block.config.norm_eps).sqrt() for x in (q, k))
        p = (q @ k.mT / d**0.5 + mask).softmax(-1)
        heads.append((p, v, a.wo.weight[:, rows], a.wv.weight[rows]))
    bias = torch.zeros(z.shape[2], dtype=F64) if a.wo.bias is None else a.wo.bias
    return heads, bias, block.ffn(block.ln2(z)), u


def force_by_hand(bound, z, part, alpha):
    heads, bias, ffn, u = branches_by_hand(bound, z)
    out = bound.x - (1 + bound.block.config.damping) * z
    out = out + (alpha if part == "ffn" else 1) * ffn + (alpha if part == "attention" else 1) * bias
    for h, (p, v, w_o, w_v) in enumerate(heads):
        if part == "antisymmetric":
            m = w_o @ w_v
            s, a = (m + m.T) / 2, (m - m.T) / 2
            b_v = v - u @ w_v.T  # the bias, on every token
            out = out + p @ u @ (s + alpha * a).T + b_v @ w_o.T
        else:
            out = out + (alpha if part in ("attention", f"head:{h}") else 1) * (p @ v @ w_o.T)
    return out


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 1.7])
def test_force_is_that_of_the_weights_scaled_by_hand(make_bound, options, part, alpha):
    bound, z, _ = make_bound(**options)
    with torch.no_grad():
        scaled, expected = bound.scaled(part, alpha), force_by_hand(bound, z, part, alpha)
        torch.testing.assert_close(scaled.force(z), expected, rtol=0, atol=1e-13 * float(expected.abs().max()))
        if alpha == 1:
            torch.testing.assert_close(scaled.force(z), bound.force(z), rtol=0, atol=1e-13)
        else:
            assert float((scaled.force(z) - bound.force(z)).abs().max()) > 1e-3


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("part", PARTS)
def test_two_arguments_one_token_and_both_jacobians_agree_with_autograd(make_bound, options, part):
    bound, z, generator = make_bound(**options)
    scaled = bound.scaled(part, 0.3)
    context = z + 0.1 * torch.randn(z.shape, generator=generator, dtype=F64)
    with torch.no_grad():
        for token in range(z.shape[1]):
            # every other token from the context, by the one-argument force
            mixed = context.clone()
            mixed[:, token] = z[:, token]
            expected = scaled.force(mixed)[:, token]
            torch.testing.assert_close(scaled.force(z, context)[:, token], expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(scaled.token_force(token, context)(z[:, token]), expected, rtol=0, atol=1e-12)
    for sample in range(len(z)):
        one, point = scaled.select(torch.tensor([sample])), z[sample]
        full = torch.func.jacrev(lambda y, f=one.force: f(y[None])[0])(point)  # [token, channel, token, channel]
        diagonal = torch.zeros_like(full)
        for t in range(z.shape[1]):
            diagonal[t, :, t] = full[t, :, t]
        v = torch.randn(2, 1, *point.shape, generator=generator, dtype=F64)
        for products, matrix in ((one.linearize(point[None]), full), (one.linearize_tokens(point[None]), diagonal)):
            forward, transposed = (
                torch.einsum("tcsd,sd->tc", matrix, v[0, 0]),
                torch.einsum("tcsd,tc->sd", matrix, v[1, 0]),
            )
            torch.testing.assert_close(products[0](v[0])[0], forward, rtol=0, atol=1e-11)
            torch.testing.assert_close(products[1](v[1])[0], transposed, rtol=0, atol=1e-11)


@pytest.mark.parametrize("part", [*PARTS, "head:1"])
def test_original_is_left_alone_and_other_weights_are_shared(make_bound, part):
    bound, z, _ = make_bound(attention_bias=True)
    before = {name: p.detach().clone() for name, p in bound.block.named_parameters()}
    force = bound.force(z).detach()
    scaled = bound.scaled(part, 0.5)
    changed = {"ffn": {"ffn.pj.weight", "ffn.pj.bias"}, "attention": {"attn.wo.weight", "attn.wo.bias"}}
    changed["antisymmetric"] = {"attn.wv.weight", "attn.wv.bias", "attn.wo.weight", "attn.wo.bias"}
    mine, theirs = dict(bound.block.named_parameters()), dict(scaled.block.named_parameters())
    for name, p in mine.items():
        assert torch.equal(p, before[name])
        if name not in changed.get(part, {"attn.wo.weight", "attn.wo.bias"}):
            assert theirs[name] is p
    assert theirs["attn.wo.weight"].requires_grad
    assert torch.equal(bound.force(z), force)
    twice = bound.scaled(part, 0.5).scaled(part, 2.0)  # scaling again undoes it: S + alpha A keeps its S
    torch.testing.assert_close(twice.force(z), force, rtol=0, atol=1e-12)


def test_knocked_out_attention_is_a_block_without_w_o(make_bound):
    bound, z, _ = make_bound(attention_bias=True)
    scaled = bound.scaled("attention", 0.0)
    with torch.no_grad():
        bound.block.attn.wo.weight.zero_()
        bound.block.attn.wo.bias.zero_()
        assert torch.equal(scaled.force(z), bound.force(z))


def test_all_heads_and_the_bias_make_the_whole_attention(make_bound):
    bound, z, _ = make_bound(attention_bias=True)
    heads = bound
    for part in bound.parts[1:3]:
        heads = heads.scaled(part, 0.25)
    whole = bound.scaled("attention", 0.25).force(z) + 0.75 * bound.block.attn.wo.bias
    torch.testing.assert_close(heads.force(z), whole, rtol=0, atol=1e-13)


def test_products_of_the_heads_keep_s_and_scale_a(make_bound):
    bound, _, _ = make_bound()
    with torch.no_grad():
        m = torch.stack(
            [bound.block.attn.wo.weight[:, i : i + 4] @ bound.block.attn.wv.weight[i : i + 4] for i in (0, 4)]
        )
        torch.testing.assert_close(bound.head_products(), m, rtol=0, atol=1e-14)
        half = bound.scaled("antisymmetric", 0.5).head_products()
    torch.testing.assert_close(half, 0.75 * m + 0.25 * m.mT, rtol=0, atol=1e-14)


def test_selected_samples_and_step_stay_when_scaled(make_bound):
    bound, z, _ = make_bound()
    for part in (bound.select(torch.tensor([1])), _Selected(bound, torch.tensor([1]))):
        scaled = part.with_eps(0.03).scaled("antisymmetric", 0.0)
        assert scaled.parts == bound.parts
        assert scaled.eps == 0.03
        expected = bound.scaled("antisymmetric", 0.0).force(z)[1:]
        torch.testing.assert_close(scaled.force(z[1:]), expected, rtol=0, atol=1e-13)
        assert scaled.head_products().shape == (2, 8, 8)


def test_fused_form_takes_wider_values(make_bound):
    plain, z, _ = make_bound()
    fused, _, _ = make_bound(attention="fused")
    expected = plain.scaled("antisymmetric", 0.4).force(z)
    torch.testing.assert_close(fused.scaled("antisymmetric", 0.4).force(z), expected, rtol=0, atol=1e-13)


def test_unknown_parts_are_errors_in_words(make_bound):
    bound, _, _ = make_bound()
    assert bound.parts == ("attention", "head:0", "head:1", "ffn", "antisymmetric")
    for part in ("head:2", "head:x", "head", "head:-1"):
        with pytest.raises(UsageError, match=r"head:0 to head:1"):
            bound.scaled(part, 0.5)
    with pytest.raises(UsageError, match="did you mean 'attention'"):
        bound.scaled("atention", 0.5)
    with pytest.raises(UsageError, match="finite factor"):
        bound.scaled("ffn", float("nan"))
    system = analytic.StuartLandau()
    assert system.parts == ()
    assert system.head_products() is None
    with pytest.raises(UsageError, match="has no parts to scale"):
        system.scaled("attention", 0.5)
