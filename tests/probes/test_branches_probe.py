"""The branches probe: attention statistics against a direct softmax, sizes, absorption, and what it says."""

import math

import numpy as np
import pytest
import torch

from dyneq.dynamics.relax import relax
from dyneq.dynamics.roots import find_root
from dyneq.errors import DyneqError, UsageError
from dyneq.probes.branches_summary import head_means
from dyneq.probes.registry import get_probe, run_probe
from dyneq.systems import analytic
from dyneq.systems.adapters import from_ode
from dyneq.systems.protocol import Structure, System
from dyneq.systems.statistics import STATISTICS, attention_statistics
from dyneq.systems.thick import ThickBlock, ThickConfig

F64 = torch.float64


def block(seed=0, samples=3, gain=1.0, dtype=F64, **options):
    options = {"vocabulary": 13, "channels": 8, "heads": 2, "tokens": 6, **options}
    generator = torch.Generator().manual_seed(seed)
    built = ThickBlock(ThickConfig(**options), generator).to(dtype)
    with torch.no_grad():
        built.attn.wo.weight.mul_(gain)
        built.ffn.pj.weight.mul_(gain)
    tokens = torch.randint(0, 13, (samples, options["tokens"]), generator=generator)
    return built.bind(tokens, tokens.roll(-1, 1))


def said(ds):
    return " ".join(f.text for f in get_probe("branches").summary(ds))


def by_hand(system, z):
    """Attention weights and logits token by token in numpy, from the definition."""
    attention, numbers = system.block.attn, {}
    u = torch.nn.functional.layer_norm(
        z, z.shape[-1:], system.block.ln1.weight, system.block.ln1.bias, system.block.ln1.eps
    )
    names = {"q": attention.wq, "k": attention.wk}
    samples, tokens, channels = z.shape
    d = channels // attention.heads
    for name, linear in names.items():
        raw = (u @ linear.weight.T).detach().numpy().reshape(samples, tokens, attention.heads, d)
        rms = np.sqrt((raw**2).mean(-1))
        used = raw / np.sqrt((raw**2).mean(-1, keepdims=True) + attention.norm_eps) if attention.qk_norm else raw
        numbers[name] = (raw, used, rms)
    found = {name: np.zeros((samples, attention.heads, tokens)) for name in STATISTICS}
    for b, h, t in np.ndindex(samples, attention.heads, tokens):
        q, k = numbers["q"][1][b, t, h], numbers["k"][1][b, : t + 1, h]
        logits = k @ q / math.sqrt(d)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        entropy = -(p * np.log(p)).sum()
        found["entropy"][b, h, t] = entropy
        found["relative_entropy"][b, h, t] = entropy / math.log(t + 1) if t else math.nan
        found["own_weight"][b, h, t] = p[-1]
        found["logit_min"][b, h, t], found["logit_max"][b, h, t] = logits.min(), logits.max()
        for name, long in (("q", "query"), ("k", "key")):
            found[f"{long}_rms_before"][b, h, t] = numbers[name][2][b, t, h]
            found[f"{long}_rms"][b, h, t] = np.sqrt((numbers[name][1][b, t, h] ** 2).mean())
    return found


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"attention": "fused"}])
def test_statistics_are_those_of_a_softmax_by_hand(options):
    system = block(**options)
    z = relax(system, 20).z
    expected = by_hand(system, z)
    found = attention_statistics(system, z)
    assert set(found) == set(STATISTICS)
    for name in STATISTICS:
        np.testing.assert_allclose(found[name].numpy(), expected[name], rtol=1e-11, atol=1e-13, err_msg=name)
    ds = run_probe("branches", system, depth=(20,))
    np.testing.assert_allclose(
        ds["entropy"][0].transpose("sample", "head", "token"), expected["entropy"], rtol=1e-9, atol=1e-12
    )
    spread = expected["logit_max"] - expected["logit_min"]
    np.testing.assert_allclose(ds["logit_range"][0], spread, rtol=1e-9, atol=1e-12)
    if options.get("qk_norm"):
        np.testing.assert_allclose(ds["query_rms"], 1, atol=1e-3)
        assert "normalised (RMS up to" in said(ds)


def test_uniform_attention_has_the_entropy_of_its_tokens():
    system = block()
    with torch.no_grad():
        system.block.attn.wq.weight.zero_()
    ds = run_probe("branches", system, depth=(5,))
    expected = np.log(np.arange(1, 7))
    np.testing.assert_allclose(ds["entropy"][0], np.broadcast_to(expected, (3, 2, 6)), atol=1e-14)
    np.testing.assert_allclose(ds["relative_entropy"][0, :, :, 1:], 1, atol=1e-14)
    assert np.isnan(ds["relative_entropy"][0, :, :, 0]).all()
    np.testing.assert_allclose(ds["own_weight"][0], np.broadcast_to(1 / np.arange(1, 7), (3, 2, 6)), atol=1e-15)
    assert "heads [0, 1] attend to every token alike" in said(ds)
    np.testing.assert_allclose(head_means(ds, "relative_entropy"), 1, atol=1e-14)


def test_a_hard_choice_and_a_saturated_softmax_are_said():
    system = block()
    with torch.no_grad():
        system.block.attn.wq.weight.mul_(1e4)
    ds = run_probe("branches", system, depth=(5,))
    assert (ds["entropy"] < 0.7).all()
    assert "their softmax is all but a hard choice" in said(ds)
    assert "the softmax is saturated" in said(ds)


def test_sizes_are_norms_and_their_ratios():
    system = block(gain=1.3)
    ds = run_probe("branches", system, depth=(0, 15))
    for i, depth in enumerate((0, 15)):
        z, state = relax(system, depth).z, ds.isel(depth=i)
        with torch.no_grad():
            parts = system.branches(z)
        assert state["branch"].values.tolist() == ["attention", "ffn"]
        norm = np.linalg.norm
        x, y = system.x.detach().numpy(), z.numpy()
        for j, part in enumerate(p.numpy() for p in parts.values()):
            np.testing.assert_allclose(state["token_branch_to_state"][..., j], norm(part, axis=2) / norm(y, axis=2))
            np.testing.assert_allclose(state["token_branch_to_input"][..., j], norm(part, axis=2) / norm(x, axis=2))
            np.testing.assert_allclose(
                state["branch_to_state"][:, j], norm(part.reshape(3, -1), axis=1) / norm(y.reshape(3, -1), axis=1)
            )
        both = sum(p.numpy() for p in parts.values()).reshape(3, -1)
        alone = sum(norm(p.numpy().reshape(3, -1), axis=1) for p in parts.values())
        np.testing.assert_allclose(state["cancellation"], 1 - norm(both, axis=1) / alone, atol=1e-12)
    assert ds["forces"].values.tolist() == [3, 18]


def test_at_a_root_input_branches_and_decay_balance():
    """F = 0: (1 + c) norm(z) is the norm of x plus the branches, so the three sizes obey the triangle inequality."""
    ds = run_probe("branches", block(gain=1.3), at="root", depth=(50,)).isel(depth=0)
    assert str(ds["state"].item()) == "root"
    z, x, both = 2 * ds["state_norm"], ds["input_norm"], ds["sum_to_state"] * ds["state_norm"]
    assert (z <= (x + both) * (1 + 1e-9)).all()
    assert (z >= abs(x - both) * (1 - 1e-9)).all()
    assert (ds["force_residual"] < 1e-11).all()
    assert "root: norms of the branches" in said(ds.expand_dims("depth"))


def test_absorbed_branches_are_recognised_and_healthy_ones_are_not():
    """Trap 6: the same float32 block with embeddings 1e8 times larger has residual 0 and branches it cannot feel."""
    healthy = run_probe("branches", block(dtype=torch.float32), depth=(400,))
    assert (healthy["branch_to_state"].max("branch") > 0.1).all()
    assert "cannot feel" not in said(healthy)
    system = block(dtype=torch.float32, embedding_std=1e8)
    ds = run_probe("branches", system, depth=(400,))
    assert (ds["branch_to_state"] < 1e-6).all()
    assert (ds["force_residual"] < 1e-6).all(), "it looks converged"
    assert "3 of 3 samples (0, 1, 2) cannot feel their branches" in said(ds)
    # in double precision they are felt, and still small
    ds = run_probe("branches", block(embedding_std=1e8), depth=(400,))
    assert "cannot feel" not in said(ds)
    assert "hardly move by their branches" in said(ds)


def test_dominating_and_switched_off_branches_are_said():
    assert "overrules the input" in said(run_probe("branches", block(embedding_std=1e-3, resinit=1.0), depth=(20,)))
    system = block()
    with torch.no_grad():
        system.block.attn.wo.weight.zero_()
    text = said(run_probe("branches", system, depth=(20,)))
    assert "the branch attention is exactly 0 in every sample: switched off" in text
    assert "cannot feel" not in text


class Damped(System):
    """F = x - z - b(z) with one declared branch, on a state without tokens."""

    structure = Structure()

    def __init__(self, x):
        self.x = x

    def initial_state(self):
        return self.x

    def branches(self, z):
        return {"restoring": -0.5 * z}

    def force(self, z, context=None):
        return self.x - z + self.branches(z)["restoring"]


def test_systems_without_tokens_branches_or_attention_say_so():
    ds = run_probe("branches", Damped(torch.ones(2, 4, dtype=F64)), depth=(400,))
    np.testing.assert_allclose(ds["branch_to_state"], 0.5)
    np.testing.assert_allclose(ds["branch_to_input"], 0.5 / 1.5)
    assert "token" not in ds.dims
    assert "has no attention" in said(ds)
    get_probe("branches").plot(ds)
    for system in (analytic.StuartLandau(), analytic.Henon()):
        ds = run_probe("branches", system, depth=(20,))
        assert "declares no branches" in said(ds)
        assert "has no attention" in said(ds)
        assert get_probe("branches").text(ds) is None
        get_probe("branches").plot(ds)


def test_moving_diverged_and_rootless_samples():
    system = from_ode(lambda z: z * z - 1, torch.tensor([[-1.5], [3.0]], dtype=F64))
    ds = run_probe("branches", system, depth=(3, 400))
    assert "1 of 2 samples (1) diverged and are left out" in said(ds)
    assert "depth 3: 2 of 2 samples (0, 1) still move" in said(ds)
    assert np.isnan(ds["state_norm"].values[-1]).tolist() == [False, True]
    nothing = from_ode(lambda z: z * z + 1, torch.full((1, 1), 3.0, dtype=F64))
    ds = run_probe("branches", nothing, depth=(400,))
    assert get_probe("branches").summary(ds)[0].level == "undetermined"
    with pytest.raises(DyneqError, match="nothing to draw"):
        get_probe("branches").plot(ds)
    ds = run_probe("branches", nothing, depth=(3, 400))
    get_probe("branches").plot(ds)
    ds = run_probe("branches", nothing, at="root", depth=(10,))
    assert "have no root that was found" in said(ds)


def test_one_token_one_sample_and_single_precision():
    ds = run_probe("branches", block(samples=1, tokens=1, dtype=torch.float32), depth=(50,))
    assert "attention sees one token only" in said(ds)
    assert (ds["own_weight"] == 1).all()
    assert (ds["entropy"] == 0).all()
    get_probe("branches").plot(ds)
    assert "own token" in get_probe("branches").text(ds)


def test_variables_are_described_and_the_figure_shows_the_medians():
    ds = run_probe("branches", block(samples=5), depth=(40,))
    for name, variable in ds.data_vars.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs, name
    figure = get_probe("branches").plot(ds)
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), ds["token_branch_to_state"][0, ..., 0].median("sample"))
    shown = figure.axes[1].images[0].get_array()
    assert shown.shape == (2, 6)
    np.testing.assert_allclose(np.ma.getdata(shown)[:, 1:], ds["relative_entropy"][0].mean("sample")[:, 1:])
    with pytest.raises(UsageError, match="at least 0 steps"):
        run_probe("branches", block(), depth=(-2,))
    with pytest.raises(UsageError, match="two axes, but 3"):
        get_probe("branches").plot(ds, [None] * 3)


def test_the_entropy_at_the_root_is_that_of_the_root():
    system = block(gain=1.3)
    root = find_root(system, depth=50)
    ds = run_probe("branches", system, at="root", depth=(50,))
    np.testing.assert_allclose(ds["entropy"][0], by_hand(system, root.z)["entropy"], atol=1e-9)
