"""The mixing probe: closed forms on chains of tokens, dense inverses on blocks, leaks, losses, and what it says."""

import math

import numpy as np
import pytest
import torch

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.roots import find_root
from dyneq.errors import UsageError
from dyneq.probes.base import CERTIFICATE, COST
from dyneq.probes.mixing_decay import decay, profile
from dyneq.probes.registry import get_probe, run_probe
from dyneq.systems import analytic
from dyneq.systems.adapters import from_map, from_ode
from dyneq.systems.thick import ThickBlock, ThickConfig

F64 = torch.float64


def block(seed=0, samples=3, gain=1.0, dtype=F64, targets=True, **options):
    options = {"vocabulary": 13, "channels": 8, "heads": 2, "tokens": 6, **options}
    generator = torch.Generator().manual_seed(seed)
    built = ThickBlock(ThickConfig(**options), generator).to(dtype)
    with torch.no_grad():
        built.attn.wo.weight.mul_(gain)
        built.ffn.pj.weight.mul_(gain)
    tokens = torch.randint(0, 13, (samples, options["tokens"]), generator=generator)
    return built.bind(tokens, tokens.roll(-1, 1) if targets else None)


def chain(a=2.0, b=1.0, back=0.0, tokens=8, samples=2, causal=True, dtype=F64):
    """F_t = 1 - a z_t + b z_(t-1) + back z_(t+1) on 3 channels."""

    def force(z):
        nothing = torch.zeros_like(z[:, :1])
        before, after = torch.cat([nothing, z[:, :-1]], 1), torch.cat([z[:, 1:], nothing], 1)
        return 1 - a * z + b * before + back * after

    return from_ode(force, torch.ones(samples, tokens, 3, dtype=dtype), token_axis=1, causal=causal, name="chain")


def findings(ds):
    return [(f.level, f.text) for f in get_probe("mixing").summary(ds)]


def said(ds):
    return " ".join(text for _, text in findings(ds))


def test_a_chain_hands_on_its_ratio_and_the_decay_length_is_exact():
    """J^{-1} of the chain: dz_t = (b/a)^(t - s)/a delta, in every direction alike."""
    ds = run_probe("mixing", chain(), depth=100, source=(0, 3))
    distance = np.arange(8)
    np.testing.assert_allclose(ds["typical"], 0.5 ** (distance + 1), rtol=1e-12)
    np.testing.assert_allclose(ds["typical_error"], 0, atol=1e-12)
    for i, s in enumerate((0, 3)):
        expected = np.where(distance >= s, 0.5 ** (distance - s + 1.0), 0)
        np.testing.assert_allclose(ds["influence"][:, i], np.broadcast_to(expected, (2, 8)), rtol=1e-12)
    assert str(ds["decay"].item()) == "exponential"
    assert float(ds["decay_length"]) == pytest.approx(1 / math.log(2), rel=1e-10)
    assert float(ds["decay_length_error"]) < 1e-8
    np.testing.assert_allclose(ds["leak"], 0, atol=0)
    assert "falls by e every 1.44" in said(ds)
    assert "50 % 1 token on" in said(ds)
    assert (ds["residual"] < 1e-13).all()


def test_an_even_chain_does_not_decay_and_a_cut_one_is_isolated():
    """With b = a every later token moves as much as the first."""
    ds = run_probe("mixing", chain(a=1.0, b=1.0), depth=300, source=(0, 2))
    np.testing.assert_allclose(ds["typical"], 1, rtol=1e-12)
    assert str(ds["decay"].item()) == "none"
    assert "does not fall with the distance" in said(ds)
    ds = run_probe("mixing", chain(b=0.0), depth=100)
    assert str(ds["decay"].item()) == "isolated"
    assert "tokens do not influence one another" in said(ds)
    assert (ds["typical"].values[1:] == 0).all()
    get_probe("mixing").plot(ds)


def test_influence_on_a_block_is_that_of_the_dense_inverse_within_its_bar():
    system = block(seed=1, gain=1.5)
    ds = run_probe("mixing", system, depth=200, source=(0, 2), directions=200)
    z = find_root(system, depth=200).z
    matrix = np.stack(
        [
            torch.func.jacrev(system.select(torch.tensor([i])).force)(z[i : i + 1]).detach().reshape(48, 48).numpy()
            for i in range(3)
        ]
    )
    inverse = np.linalg.inv(matrix).reshape(3, 6, 8, 6, 8)
    for row, s in enumerate((0, 2)):
        expected = np.sqrt((inverse[:, :, :, s] ** 2).sum((2, 3)) / 8)
        found, bar = ds["influence"][:, row].values, ds["influence_error"][:, row].values
        assert (found[:, :s] == 0).all(), "earlier tokens feel nothing"
        assert (np.abs(found - expected) <= 5 * bar)[:, s:].all()
        assert (bar[:, s:] < 0.2 * expected[:, s:]).all()
        # Cauchy's inequality: norm(A^{-1})/sqrt(C) >= sqrt(C)/norm(A), Frobenius; up to the bar
        own = np.sqrt(8) / np.linalg.norm(matrix.reshape(3, 6, 8, 6, 8)[:, s, :, s], axis=(1, 2))
        assert (found[:, s] + 5 * bar[:, s] >= own).all()
    blocks = Linearization(system, z).token_blocks().numpy()
    condition = np.linalg.norm(blocks, axis=(2, 3)) * np.linalg.norm(np.linalg.inv(blocks), axis=(2, 3))
    np.testing.assert_allclose(ds["condition"], condition, rtol=1e-6)


def test_the_loss_by_position_is_the_blocks_own_at_its_root():
    system = block(samples=4, gain=1.2)
    ds = run_probe("mixing", system, depth=300)
    expected = system.token_loss(find_root(system, depth=300).z).detach().numpy()
    np.testing.assert_allclose(ds["token_loss"], expected, atol=1e-9)
    np.testing.assert_allclose(ds["token_loss_mean"], expected.mean(0), atol=1e-9)
    np.testing.assert_allclose(ds["token_loss_mean_error"], expected.std(0, ddof=1) / 2, atol=1e-9)
    assert "cross-entropy at the root" in said(ds)
    assert "no loss by position: ThickBlock has none" in said(run_probe("mixing", block(targets=False), depth=50))
    whole = from_ode(lambda z: 1 - z, torch.ones(2, 3, 2, dtype=F64), token_axis=1, loss=lambda z: z.sum((1, 2)))
    assert "gives one for each sample only" in said(run_probe("mixing", whole, depth=50))


def test_non_causal_systems_are_solved_whole_and_their_leak_is_measured():
    """A tridiagonal Toeplitz matrix of tokens, times the identity on the channels."""
    ds = run_probe("mixing", chain(back=0.5, causal=False), depth=300, source=(3,))
    matrix = -2 * np.eye(8) + np.eye(8, k=-1) + 0.5 * np.eye(8, k=1)
    expected = np.abs(np.linalg.inv(matrix)[:, 3])
    np.testing.assert_allclose(ds["influence"][0, 0], expected, rtol=1e-12)
    assert ds.attrs["method"] == "dense"
    assert ds["distance"].values.tolist() == list(range(-3, 5))
    np.testing.assert_allclose(ds["typical"], expected, rtol=1e-12)
    np.testing.assert_allclose(ds["leak"], 0.25, rtol=1e-12)
    assert ("fact", "later tokens act on earlier ones, by up to 0.25 of what a token does to itself") in findings(ds)
    figure = get_probe("mixing").plot(ds)
    np.testing.assert_allclose(np.diag(np.ma.getdata(figure.axes[1].images[0].get_array())), 2, rtol=1e-12)


def test_a_false_claim_of_causality_is_found_and_not_relied_on():
    ds = run_probe("mixing", chain(back=0.5, causal=True), depth=300, source=(3,))
    matrix = -2 * np.eye(8) + np.eye(8, k=-1) + 0.5 * np.eye(8, k=1)
    np.testing.assert_allclose(ds["influence"][0, 0], np.abs(np.linalg.inv(matrix)[:, 3]), rtol=1e-12)
    assert any(level == "warning" and "declares itself causal" in text for level, text in findings(ds))
    honest = run_probe("mixing", chain(causal=False), depth=100)
    assert (honest["leak"] == 0).all()
    assert "does not declare itself causal" in said(honest)


def test_without_tokens_the_whole_state_answers():
    """J of Stuart-Landau at 0 is r + i nu, so every unit force moves the root by 1/abs(r + i nu)."""
    system = analytic.StuartLandau()
    ds = run_probe("mixing", system, depth=50)
    np.testing.assert_allclose(ds["typical"], 1 / abs(complex(system.r, system.nu)), rtol=1e-9)
    assert "has no tokens" in said(ds)
    get_probe("mixing").plot(ds)
    with pytest.raises(UsageError, match="token 1 was to be perturbed, but StuartLandau has no tokens"):
        run_probe("mixing", system, depth=50, source=(1,))
    # a map: F = f(z) - z, so J = M - 1
    ds = run_probe("mixing", from_map(lambda z: 0.75 * z + 1, torch.zeros(1, 3, dtype=F64)), depth=50)
    np.testing.assert_allclose(ds["typical"], 4, rtol=1e-12)


def test_singular_roots_are_left_out_and_named():
    """z_1' = -z_1^2 has a double root: its token answers with no definite number, the one before it does."""

    def force(z):
        return torch.stack([1 - z[:, 0], -((z[:, 1] - 1) ** 2)], dim=1)

    system = from_ode(force, torch.ones(2, 2, 1, dtype=F64), token_axis=1, causal=True)
    ds = run_probe("mixing", system, depth=20, source=(0, 1))
    assert (ds["influence"][:, 0, 0] == 1).all()
    assert ds["influence"][:, :, 1].isnull().all()
    assert "have a singular Jacobian" in said(ds)


def test_diverged_rootless_and_single_samples():
    start = torch.tensor([[-1.5], [3.0]], dtype=F64)
    ds = run_probe("mixing", from_ode(lambda z: z * z - 1, start), depth=400)
    assert np.isfinite(ds["leak"].values).tolist() == [True, False]
    assert "median of" in said(ds)
    nothing = run_probe("mixing", from_ode(lambda z: z * z + 1, torch.full((1, 1), 3.0, dtype=F64)), depth=400)
    assert findings(nothing)[0][0] == "undetermined"
    assert "every sample diverged" in said(nothing)
    get_probe("mixing").plot(nothing)
    get_probe("mixing").text(nothing)
    one = run_probe("mixing", block(samples=1, dtype=torch.float32), depth=200)
    assert np.isfinite(one["typical"]).all()
    assert np.isfinite(one["typical_error"][:-1]).all()
    assert np.isnan(one["token_loss_mean_error"]).all()
    get_probe("mixing").plot(one)
    short = run_probe("mixing", block(tokens=1), depth=100)
    assert "no token comes after" in said(short)
    get_probe("mixing").plot(short)


def test_profile_averages_squares_over_sources_and_directions():
    response = np.zeros((1, 2, 2, 3))
    response[0, 0, :, 1], response[0, 1, :, 2] = (3.0, 5.0), (1.0, 7.0)  # distance 1 from tokens 0 and 1
    found = profile(response, [0, 1], causal=True)
    assert found.distance.tolist() == [0, 1, 2]
    squares = np.array([9.0, 25, 1, 49])
    assert found.influence[0, 1] == pytest.approx(math.sqrt(squares.mean()))
    assert found.error[0, 1] == pytest.approx(squares.std(ddof=1) / 2 / (2 * math.sqrt(squares.mean())))
    assert profile(response, [0, 1], causal=False).distance.tolist() == [-1, 0, 1, 2]


def test_the_median_has_a_distribution_free_interval_with_its_coverage():
    """Of 15 draws from a skewed law the interval's half-width covers the true median in about 68 % or more."""
    generator = np.random.default_rng(0)
    draws = np.exp(generator.normal(size=(2000, 15, 1)))
    hits = 0
    for one in draws:
        found = profile(one[:, :, None, None], [0], causal=True)
        hits += abs(found.typical[0] - 1) <= found.typical_error[0]
    # binomial scatter of 2000 trials is 1 %
    assert 0.65 < hits / 2000 < 0.95


@pytest.mark.parametrize(("law", "kind"), [("exponential", "exponential"), ("power", "power")])
def test_laws_are_told_apart_under_noise(law, kind):
    generator = np.random.default_rng(1)
    d = np.arange(64)
    truth = np.exp(-d / 9.0) if law == "exponential" else (1.0 + 0 * d) / np.maximum(d, 1) ** 1.3
    samples = 10
    response = np.zeros((samples, 2, 3, 64))
    for i, s in enumerate((0, 20)):
        noise = np.exp(0.1 * generator.normal(size=(samples, 3, 64 - s)))
        response[:, i, :, s:] = (4.0 if i else 1.0) * truth[: 64 - s] * noise
    found = decay(response, [0, 20])
    assert found.kind == kind
    assert found.samples == samples
    if law == "exponential":
        assert abs(found.length - 9) < 4 * found.length_error < 1
    else:
        assert abs(found.exponent - 1.3) < 4 * found.exponent_error < 0.2


def test_too_short_contexts_have_no_law():
    assert decay(np.ones((3, 1, 2, 3)), [0]).kind == "undetermined"
    assert decay(np.full((3, 1, 2, 9), np.nan), [0]).kind == "undetermined"
    assert "too few distances" in said(run_probe("mixing", block(tokens=3), depth=100))


def test_variables_are_described_sources_spread_and_costs_counted():
    ds = run_probe("mixing", block(), depth=100, directions=2)
    for name, variable in ds.data_vars.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs, name
    assert ds["source"].values.tolist() == [0, 1, 3, 4]
    assert ds["influence"].attrs["ancillary_variables"] == "influence_error"
    assert ds["products"].attrs["role"] == COST
    assert ds["condition"].attrs["role"] == CERTIFICATE
    # 6 rows of J, 8 columns of the token blocks, and for each force at least one sweep and the residual
    assert int(ds["products"]) >= 6 + 8 + 8 * 2
    assert int(ds["forces"]) <= 102
    figure = get_probe("mixing").plot(ds)
    assert len(figure.axes[0].lines) >= 3
    assert "distance  influence" in get_probe("mixing").text(ds)
    with pytest.raises(UsageError, match="three axes, but 1"):
        get_probe("mixing").plot(ds, [None])
    with pytest.raises(UsageError, match="tokens 0 to 5"):
        run_probe("mixing", block(), depth=10, source=(6,))
