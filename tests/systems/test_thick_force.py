"""The thick block's force against a per-token NumPy transcription of its definition, and its structural identities."""

import math

import numpy as np
import pytest
import torch
from scipy.special import erf, logsumexp

from dyneq.errors import DyneqError
from dyneq.systems.thick import ThickBlock, ThickConfig

OPTIONS = [
    {},
    {"damping": 0.0},
    {"damping": -0.5},
    {"damping": 2.0},
    {"qk_norm": True},
    {"gelu": "tanh"},
    {"ffn_bias": False},
    {"attention_bias": True},
    {"final_norm": True},
    {"attention": "fused"},
    {"attention": "fused", "qk_norm": True, "attention_bias": True},
    {"resinit": 0.1},
    {"widening": 1},
    {"heads": 1},
    {"norm_eps": 0.1, "qk_norm": True},
    {"damping": 0.3, "qk_norm": True, "gelu": "tanh", "ffn_bias": False, "attention_bias": True, "heads": 4},
]
each_option = pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "-"
)

# sums of at most 4C = 32 terms, five of them nested: a few hundred roundings of the largest number
ROUNDING = 1000 * np.finfo(np.float64).eps


def close(a, b, scale=None):
    a, b = torch.as_tensor(a).detach(), torch.as_tensor(b).detach()
    scale = float(b.abs().max()) if scale is None else scale
    torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING * max(scale, 1.0))


def numpy_force(block: ThickBlock, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """F(z; x) token by token and head by head, from the definition in SCIENCE.md section 1."""
    config, p = block.config, {name: w.detach().numpy() for name, w in block.named_parameters()}

    def layer_norm(u, which):
        centred = u - u.mean()
        return centred / math.sqrt((centred**2).mean() + config.norm_eps) * p[f"{which}.weight"] + p[f"{which}.bias"]

    def linear(u, which):
        return p[f"{which}.weight"] @ u + p.get(f"{which}.bias", 0.0)

    def rms(u):
        return u / math.sqrt((u**2).mean() + config.norm_eps) if config.qk_norm else u

    def gelu(u):
        if config.gelu == "erf":
            return u * (1 + erf(u / math.sqrt(2))) / 2
        return u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))) / 2

    d = config.channels // config.heads
    out = np.empty_like(z)
    for b, t in np.ndindex(z.shape[:2]):
        normed = [layer_norm(z[b, s], "ln1") for s in range(t + 1)]
        heads = []
        for h in range(config.heads):
            part = slice(h * d, (h + 1) * d)
            q = rms(linear(normed[t], "attn.wq")[part])
            scores = np.array([q @ rms(linear(u, "attn.wk")[part]) for u in normed]) / math.sqrt(d)
            weights = np.exp(scores - logsumexp(scores))
            heads.append(sum(w * linear(u, "attn.wv")[part] for w, u in zip(weights, normed, strict=True)))
        attended = linear(np.concatenate(heads), "attn.wo")
        fed = linear(gelu(linear(layer_norm(z[b, t], "ln2"), "ffn.fc")), "ffn.pj")
        out[b, t] = x[b, t] - (1 + config.damping) * z[b, t] + attended + fed
    return out


@each_option
def test_force_is_its_definition(make_bound, options):
    bound, z, _ = make_bound(**options)
    x = bound.block.tok.weight[bound.tokens] + bound.block.pos.weight[:5]
    with torch.no_grad():
        close(bound.force(z), numpy_force(bound.block, x.numpy(), z.numpy()))
        branches = bound.branches(z)
        close(x - (1 + bound.block.config.damping) * z + branches["attention"] + branches["ffn"], bound.force(z))


@each_option
def test_fused_and_plain_attention_agree(make_bound, options):
    plain, z, _ = make_bound(**{**options, "attention": "plain"})
    fused, _, _ = make_bound(**{**options, "attention": "fused"})
    fused.block.load_state_dict(plain.block.state_dict())
    with torch.no_grad():
        close(fused.force(z), plain.force(z))


@each_option
def test_context_holds_the_other_tokens(make_bound, options):
    """force(z, context) at t is the force of the state whose token t alone is z's; token_force is the same thing."""
    bound, z, generator = make_bound(**options)
    context = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    with torch.no_grad():
        close(bound.force(z, z), bound.force(z))
        two = bound.force(z, context)
        for t in range(5):
            mixed = torch.cat([context[:, :t], z[:, t : t + 1], context[:, t + 1 :]], dim=1)
            close(two[:, t], bound.force(mixed)[:, t])
            close(bound.token_force(t, context)(z[:, t]), two[:, t])
            close(super(type(bound), bound).token_force(t, context)(z[:, t]), two[:, t])


@each_option
def test_loss_is_the_cross_entropy_of_the_read_out(make_bound, options):
    bound, z, _ = make_bound(**options)
    p = {name: w.detach().numpy() for name, w in bound.block.named_parameters()}
    u = z.numpy()
    if options.get("final_norm"):
        u = (u - u.mean(-1, keepdims=True)) / np.sqrt(u.var(-1, keepdims=True) + 1e-5)
        u = u * p["final.weight"] + p["final.bias"]
    logits = u @ p["head.weight"].T
    picked = np.take_along_axis(logits, bound.targets.numpy()[..., None], -1)[..., 0]
    expected = logsumexp(logits, axis=-1) - picked
    with torch.no_grad():
        close(bound.token_loss(z), expected)
        close(bound.loss(z), expected.mean(1))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("damping", [0.0, -0.5, 2.0, 9.0])
def test_damping_only_rescales(make_bound, damping, qk_norm):
    """With z scaled by 1/(1 + c) and the same x, the force is unchanged and J/(1 + c) too, spectrum and all.

    The branches see z through a layer norm, B(s z) = B(z), so dB at s z is dB at z divided by s; its small constant is
    made negligible here (1e-30 against variances of order 1).
    """
    reference, z, _ = make_bound(damping=1.0, qk_norm=qk_norm, norm_eps=1e-30)
    other, _, _ = make_bound(damping=damping, qk_norm=qk_norm, norm_eps=1e-30)
    ratio = (1 + damping) / 2
    with torch.no_grad():
        close(other.force(z / ratio), reference.force(z))
    dense = torch.func.jacrev(reference.force)(z).reshape(80, 80)
    scaled = torch.func.jacrev(other.force)(z / ratio).reshape(80, 80)
    close(scaled / ratio, dense)
    abscissas = []
    for jacobian, c in ((dense, 1.0), (scaled, damping)):
        blocks = jacobian.reshape(2, 5, 8, 2, 5, 8)
        worst = max(torch.linalg.eigvals(blocks[b, t, :, b, t]).real.max().item() for b in range(2) for t in range(5))
        abscissas.append(worst / (1 + c))
    # an 8 x 8 block: its eigenvalues move by its perturbation times their condition, here below 1e3
    assert abscissas[0] == pytest.approx(abscissas[1], abs=1e3 * ROUNDING)


def test_select_restricts_to_samples_in_any_order(make_bound):
    bound, z, _ = make_bound()
    picked = torch.tensor([1, 0, 1])
    part = bound.select(picked)
    with torch.no_grad():
        close(part.force(z[picked]), bound.force(z)[picked])
        close(part.loss(z[picked]), bound.loss(z)[picked])
        assert torch.equal(part.initial_state(), bound.initial_state()[picked])
    assert part.eps == bound.eps
    assert part.samples == 3


def test_another_step_size_leaves_the_original_alone(make_bound):
    bound, z, _ = make_bound()
    half = bound.with_eps(0.05)
    assert (half.eps, bound.eps) == (0.05, 0.1)
    with torch.no_grad():
        assert torch.equal(half.force(z), bound.force(z))
    assert half.select(torch.tensor([0])).eps == 0.05
    for eps in (0.0, -1.0, float("nan")):
        with pytest.raises(DyneqError, match="eps must be positive"):
            bound.with_eps(eps)


def test_the_start_is_the_embedding_of_the_weights_at_binding(make_bound):
    bound, _, _ = make_bound()
    block = bound.block
    assert torch.equal(bound.initial_state(), block.tok.weight[bound.tokens] + block.pos.weight[:5])
    with torch.no_grad():
        block.tok.weight.mul_(2)
    again = block.bind(bound.tokens)
    assert torch.equal(again.initial_state(), block.tok.weight[bound.tokens] + block.pos.weight[:5])


def test_initial_weights_follow_the_generator_and_resinit():
    config = ThickConfig(vocabulary=50, channels=64, heads=4, tokens=32)
    one = ThickBlock(config, torch.Generator().manual_seed(5))
    same = ThickBlock(config, torch.Generator().manual_seed(5))
    small = ThickBlock(config.model_copy(update={"resinit": 0.1}), torch.Generator().manual_seed(5))
    other = ThickBlock(config, torch.Generator().manual_seed(6))
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), small.parameters(), strict=True):
        assert torch.equal(a, b)
        factor = 0.1 if name in ("attn.wo.weight", "ffn.pj.weight") else 1.0
        torch.testing.assert_close(c, factor * a, rtol=1e-6, atol=0)
    assert not torch.equal(one.tok.weight, other.tok.weight)
    # standard deviation of n normal numbers: relative error 1/sqrt(2 n), five of them allowed
    for weight, std in ((one.tok.weight, 1.0), (one.attn.wq.weight, 1 / 8), (one.ffn.pj.weight, 1 / 16)):
        assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel()))
    assert not torch.any(one.ffn.fc.bias)
    assert torch.all(one.ln1.weight == 1)


def test_parameter_groups_partition_the_parameters(make_bound):
    bound, _, _ = make_bound(final_norm=True, attention_bias=True)
    groups = bound.parameter_groups()
    assert list(groups) == ["attn", "ffn", "ln", "emb", "head"]
    flat = {name: p for members in groups.values() for name, p in members.items()}
    assert flat == dict(bound.block.named_parameters())
    assert sum(len(members) for members in groups.values()) == len(flat)
    assert set(groups["emb"]) == {"tok.weight", "pos.weight"}
    assert set(groups["head"]) == {"head.weight"}
    assert {name.split(".")[0] for name in groups["ln"]} == {"ln1", "ln2", "final"}


def test_what_cannot_be_bound_is_refused(make_bound):
    bound, z, _ = make_bound()
    block, tokens = bound.block, bound.tokens
    with pytest.raises(DyneqError, match="at most 5 tokens"):
        block.bind(torch.zeros(1, 6, dtype=torch.int64))
    with pytest.raises(DyneqError, match=r"0\.\.10.*0\.\.11"):
        block.bind(torch.tensor([[0, 11]]))
    with pytest.raises(DyneqError, match=r"-1\.\.0"):
        block.bind(torch.tensor([[0, -1]]))
    for bad in (tokens[0], tokens.int(), tokens[:0]):
        with pytest.raises(DyneqError, match="int64"):
            block.bind(bad)
    with pytest.raises(DyneqError, match="targets must have the shape"):
        block.bind(tokens, tokens[:, :4])
    with pytest.raises(DyneqError, match="bound without targets"):
        block.bind(tokens).loss(z)
    assert bound.has_loss
    assert not block.bind(tokens).has_loss


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"heads": 3}, "multiple of heads"),
        ({"damping": -1.0}, "damping"),
        ({"eps": 0.0}, "eps"),
        ({"dampin": 1}, "dampin"),
    ],
)
def test_what_is_no_block_is_refused(options, what):
    with pytest.raises(ValueError, match=what):
        ThickConfig(**{"vocabulary": 11, "channels": 8, "heads": 2, "tokens": 5, **options})
