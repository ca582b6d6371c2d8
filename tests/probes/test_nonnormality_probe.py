"""The nonnormality probe against dense algebra of whole Jacobians, analytic systems, and bad input."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from matplotlib.figure import Figure

from dyneq.catalog.diff import compare
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.nonnormality import explicit_blocks, token_numerical_abscissa, whole_sample
from dyneq.dynamics.roots import find_root
from dyneq.errors import UsageError
from dyneq.probes.branch_norm import branch_jacobian_norm, branch_jacobian_squares
from dyneq.probes.registry import get_probe, make_params, run_probe
from dyneq.systems import analytic
from dyneq.systems.adapters import from_map, from_ode
from dyneq.systems.thick import ThickBlock, ThickConfig

F64 = torch.float64
PROBE = "nonnormality"


def block(seed=0, samples=3, gain=1.0, tokens=6, dtype=F64, **options):
    options = {"vocabulary": 13, "channels": 8, "heads": 2, "tokens": tokens, **options}
    generator = torch.Generator().manual_seed(seed)
    built = ThickBlock(ThickConfig(**options), generator).to(dtype)
    with torch.no_grad():
        built.attn.wo.weight.mul_(gain)
        built.ffn.pj.weight.mul_(gain)
    batch = torch.randint(0, 13, (samples, tokens), generator=generator)
    return built.bind(batch, batch.roll(-1, 1))


def dense(system):
    """The whole Jacobians at the root by torch's own derivative of the force, float64."""
    z = find_root(system, depth=400).z
    one = torch.func.jacrev(lambda y: system.force(y).sum(0))  # samples never interact
    j = one(z).flatten(0, z.ndim - 2)
    n = z[0].numel()
    return j.reshape(n, z.shape[0], n).permute(1, 0, 2).detach().numpy(), z


@pytest.fixture(name="measured", scope="module")
def _measured():
    system = block(samples=4)
    return system, run_probe(PROBE, system, depth=400, vectors=64, blocks=3, grid=16), dense(system)[0]


def test_whole_sample_against_the_dense_jacobian(measured):
    _, ds, j = measured
    values = np.linalg.eigvals(j)
    norm = np.linalg.norm(j, axis=(1, 2))
    symmetric = 0.5 * (j + j.transpose(0, 2, 1))
    skew = 0.5 * (j - j.transpose(0, 2, 1))
    omega = np.linalg.eigvalsh(symmetric)[:, -1]
    gap = np.abs(ds["numerical_abscissa"].values - omega)
    assert (gap <= ds["numerical_abscissa_error"].values + 1e-12).all()
    # token blocks are well conditioned: their eigenvalues are good to rounding times condition
    np.testing.assert_allclose(ds["abscissa"], values.real.max(axis=1), atol=1e-6)
    exact = {
        "norm": norm,
        "antisymmetric_share": np.linalg.norm(skew, axis=(1, 2)) / norm,
        # eigenvalues of the blocks, because those of the whole J are the worse of the two
        "departure": np.sqrt(norm**2 - _sum_of_squares(j, 8)),
    }
    exact["relative_departure"] = exact["departure"] / norm
    for name, value in exact.items():
        z = (ds[name].values - value) / ds[f"{name}_error"].values
        assert (np.abs(z) < 4.5).all(), (name, z)  # of Student's t with 63 degrees of freedom, 4 samples
        assert (ds[f"{name}_error"].values < 0.05 * value).all(), "an error bar that says something"


def _sum_of_squares(j, channels):
    tokens = j.shape[1] // channels
    cut = [slice(t * channels, (t + 1) * channels) for t in range(tokens)]
    return sum(np.square(np.abs(np.linalg.eigvals(j[:, c, c]))).sum(axis=1) for c in cut)


def test_token_blocks_against_lapack(measured):
    _, ds, j = measured
    for token in range(6):
        cut = slice(8 * token, 8 * token + 8)
        a = j[:, cut, cut]
        norm = np.linalg.norm(a, axis=(1, 2))
        at = ds.isel(token=token)
        symmetric = 0.5 * (a + a.transpose(0, 2, 1))
        np.testing.assert_allclose(at["token_numerical_abscissa"], np.linalg.eigvalsh(symmetric)[:, -1], atol=1e-10)
        values = np.linalg.eigvals(a)
        departure = np.sqrt(norm**2 - np.square(np.abs(values)).sum(axis=1))
        np.testing.assert_allclose(at["token_departure"], departure, rtol=1e-8)
        np.testing.assert_allclose(at["token_norm"], norm, rtol=1e-10)
        share = np.linalg.norm(a - a.transpose(0, 2, 1), axis=(1, 2)) / 2 / norm
        np.testing.assert_allclose(at["token_antisymmetric_share"], share, rtol=1e-9)


def test_growth_against_dense_powers(measured):
    _, ds, j = measured
    m = np.eye(j.shape[1]) + 0.1 * j
    largest = []
    for a in m:
        power, norms = np.eye(len(a)), []
        for _ in range(201):
            norms.append(np.linalg.norm(power, 2))
            power = a @ power
        largest.append(max(norms))
    assert (ds["growth"].values <= np.array(largest) * (1 + 1e-9)).all(), "a lower bound"
    np.testing.assert_allclose(ds["growth"], largest, rtol=1e-5)
    assert set(ds["growth_status"].values) == {"lower bound"}
    # the powers of a token block are a part of those of the whole sample
    assert (ds["token_growth"].max("token") <= np.array(largest) * (1 + 1e-9)).all()
    sample, token = int(ds["block_sample"][0]), int(ds["block_token"][0])
    cut = slice(8 * token, 8 * token + 8)
    a = j[sample, cut, cut]
    assert float(ds["token_growth"][sample, token]) == pytest.approx(float(ds["block_growth"][0]))
    assert float(ds["token_growth"][sample, token]) == float(ds["token_growth"].max()), "ranked by growth"
    attained = np.linalg.norm(scipy.linalg.expm(float(ds["flow_growth_time"][0]) * a), 2)
    assert float(ds["flow_growth"][0]) == pytest.approx(attained, rel=1e-9)
    assert 1 <= float(ds["kreiss"][0]) <= float(ds["flow_growth"][0]) * (1 + 1e-9)
    grid = ds["real"].values[None, :] + 1j * ds["imag"].values[:, None]
    sigma = np.linalg.svd(grid[..., None, None] * np.eye(8) - a, compute_uv=False)[..., -1]
    np.testing.assert_allclose(ds["sigma_min"], sigma, atol=1e-9)


def test_shear_of_the_reference():
    system = analytic.Shear()
    ds = run_probe(PROBE, system, depth=2000, level=(0.1,), grid=12)
    np.testing.assert_allclose(ds["numerical_abscissa"], 4.0, atol=1e-9)
    np.testing.assert_allclose(ds["kreiss"], 2.6, rtol=1e-9)
    np.testing.assert_allclose(ds["flow_growth"], 3.715955228, atol=2e-9)
    np.testing.assert_allclose(ds["flow_growth_time"], 0.979796, atol=1e-6)
    np.testing.assert_allclose(ds["departure"], 10.0, rtol=1e-13)
    # sigma_min(z - J) = eps at abs(z + 1)^2 = eps^2 + eps k
    np.testing.assert_allclose(ds["pseudospectral_abscissa"], -1 + np.sqrt(0.1**2 + 1.0), atol=1e-10)
    # the double eigenvalue is too ill-conditioned to call stable, but a power that contracts proves it
    assert set(ds["growth_status"].values) == {"complete"}
    assert int(ds["block_token"][0]) == -1


def test_grcar_and_jordan_of_the_reference():
    ds = run_probe(PROBE, analytic.Grcar(), depth=1, at="relaxed", level=(0.1,), grid=12, blocks=1)
    np.testing.assert_allclose(ds["numerical_abscissa"], 2.9459949997, atol=1e-6)
    np.testing.assert_allclose(ds["abscissa"], 1.6574333511, atol=1e-8)
    np.testing.assert_allclose(ds["pseudospectral_abscissa"], 2.5918590981, atol=1e-9)
    assert set(ds["growth_status"].values) == {"unbounded"}
    assert np.isnan(ds["growth"]).all()
    jordan = analytic.Jordan()
    n, value, k = jordan.matrix.shape[-1], float(jordan.matrix[0, 0]), float(jordan.matrix[0, 1])
    ds = run_probe(PROBE, jordan, depth=1, at="relaxed", blocks=1, grid=12)
    np.testing.assert_allclose(ds["numerical_abscissa"], value + k * np.cos(np.pi / (n + 1)), atol=1e-6)


def test_normal_systems_have_none_of_it():
    """A skew part makes J asymmetric, and leaves it normal: asymmetry near 2, departure 0, no growth, Kreiss 1."""
    j = torch.tensor([[-0.1, 3.0], [-3.0, -0.1]], dtype=F64)
    ds = run_probe(PROBE, analytic.LinearFlow(j, eps=0.01), at="relaxed", depth=1, grid=12)
    assert float(ds["asymmetry"].min()) > 1.99
    np.testing.assert_allclose(ds["antisymmetric_share"], 3 / np.sqrt(9.01), rtol=1e-12)
    np.testing.assert_allclose(ds["departure"], 0, atol=1e-13)
    np.testing.assert_allclose(ds["growth"], 1)
    np.testing.assert_allclose(ds["kreiss"], 1, atol=1e-9)
    np.testing.assert_allclose(ds["pseudospectral_abscissa"] - ds["level"], -0.1, atol=1e-12)
    text = " ".join(f.text for f in get_probe(PROBE).summary(ds))
    assert "no perturbation found ever grows" in text
    assert "is normal" in text


def test_a_map_has_its_own_boundary_and_no_flow():
    m = torch.tensor([[0.5, 4.0], [0.0, 0.5]], dtype=F64)
    ds = run_probe(PROBE, analytic.LinearMap(m), depth=200, grid=12)
    powers = [np.linalg.norm(np.linalg.matrix_power(m.numpy(), n), 2) for n in range(40)]
    np.testing.assert_allclose(ds["growth"], max(powers), rtol=1e-12)
    assert (ds["growth_step"] == int(np.argmax(powers))).all()
    assert not {"abscissa", "flow_growth", "pseudospectral_abscissa", "block_abscissa"} & set(ds.data_vars)
    np.testing.assert_allclose(ds["eigenvalue"].real, 0.5, atol=1e-7)
    z = ds["real"].values[None, :] + 1j * ds["imag"].values[:, None]
    sigma = np.linalg.svd(z[..., None, None] * np.eye(2) - m.numpy(), compute_uv=False)[..., -1]
    np.testing.assert_allclose(ds["sigma_min"], sigma, atol=1e-13)
    assert isinstance(get_probe(PROBE).plot(ds), Figure)
    assert get_probe(PROBE).text(ds)


def test_unstable_samples_are_not_blamed_on_non_normality():
    ds = run_probe(PROBE, analytic.StuartLandau(), depth=50, grid=12)
    assert set(ds["growth_status"].values) == {"unbounded"}
    assert np.isinf(ds["kreiss"]).all()
    text = " ".join(f.text for f in get_probe(PROBE).summary(ds))
    assert "unbounded because of an eigenvalue" in text
    # a stable flow whose step is too large is told apart
    ds = run_probe(PROBE, analytic.HopfNormalForm(eps=0.5), depth=50, grid=12)
    text = " ".join(f.text for f in get_probe(PROBE).summary(ds))
    assert "a stable flow that Euler's step makes unstable" in text


def test_error_bars_of_whole_samples_are_calibrated():
    """Over seeds, errors of the share, norm and departure of a small block are as large as their bars say."""
    system = block(samples=2, tokens=4)
    j, z = dense(system)
    norm = np.linalg.norm(j, axis=(1, 2))
    exact = {
        "norm": norm,
        "departure": np.sqrt(norm**2 - _sum_of_squares(j, 8)),
        "antisymmetric_share": np.linalg.norm(j - j.transpose(0, 2, 1), axis=(1, 2)) / 2 / norm,
    }
    linearization = Linearization(system, z)
    blocks = explicit_blocks(linearization, 64)
    scores = {name: [] for name in exact}
    plain = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        found = whole_sample(linearization, blocks, 16, generator)
        for name, value in exact.items():
            estimate = getattr(found, name)
            scores[name].append((estimate.value - value) / estimate.error)
        bare = whole_sample(linearization, None, 16, generator)
        assert bare.departure is None
        plain.append((bare.norm.value - norm) / bare.norm.error)
    for name, z_scores in [*scores.items(), ("plain", plain)]:
        z_scores = np.array(z_scores)
        assert np.abs(z_scores.mean(axis=0)).max() < 0.9, name  # 1/sqrt(30) is 0.18
        assert 0.75 < z_scores.std() < 1.35, name


def test_blocks_too_large_to_be_formed():
    system = block()
    ds = run_probe(PROBE, system, depth=200, largest_block=4, growth_steps=30)
    assert "kreiss" not in ds
    assert "departure" not in ds
    z = find_root(system, depth=200).z
    blocks = Linearization(system, z).token_blocks()
    exact = torch.linalg.eigvalsh(0.5 * (blocks + blocks.mT))[..., -1]
    gap = np.abs(ds["token_numerical_abscissa"].values - exact.numpy())
    assert (gap <= ds["token_numerical_abscissa_error"].values + 1e-9).all()
    values, error = token_numerical_abscissa(Linearization(system, z), torch.Generator().manual_seed(0))
    assert values.shape == error.shape == (18,)
    assert any("too large" in f.text for f in get_probe(PROBE).summary(ds))
    assert isinstance(get_probe(PROBE).plot(ds), Figure)


def test_branch_norm_is_the_measure_and_agrees_with_dense_autograd():
    system = block(samples=2, tokens=4)
    ds = run_probe(PROBE, system, depth=300, vectors=48, blocks=1, grid=8)
    z = find_root(system, depth=300).z
    names = ["attention", "ffn", "all"]
    assert list(ds["branch"].values) == names
    measure = branch_jacobian_norm(system, z, torch.Generator().manual_seed(0), 48)
    for name in names:
        np.testing.assert_allclose(ds["branch_norm"].sel(branch=name), measure[name].detach(), rtol=1e-9)

    def branch(name):
        def of(y):
            parts = system.branches(y)
            return (sum(parts.values()) if name == "all" else parts[name]).sum(0)

        return of

    for name in names:
        j = torch.func.jacrev(branch(name))(z).detach()  # [token, channel, sample, token, channel]
        exact = j.square().sum((0, 1, 3, 4)).sqrt().numpy()
        score = (ds["branch_norm"].sel(branch=name).values - exact) / ds["branch_norm_error"].sel(branch=name).values
        assert np.abs(score).max() < 4.5
    # J is the sum of the branches less its decay
    jac = Linearization(system, z).dense()
    decay = (1 + system.block.config.damping) * torch.eye(jac.shape[1], dtype=F64)
    j = torch.func.jacrev(branch("all"))(z).detach()
    exact = torch.linalg.matrix_norm(jac + decay).numpy()
    np.testing.assert_allclose(j.square().sum((0, 1, 3, 4)).sqrt().numpy(), exact, rtol=1e-10)


def test_branch_norm_is_differentiable():
    """The gradient by a weight is that of finite differences of the same random vectors."""
    system = block(samples=2, tokens=4)
    z = find_root(system, depth=300).z
    weight = system.block.ffn.pj.weight

    def value():
        return branch_jacobian_norm(system, z, torch.Generator().manual_seed(3), 4)["all"].sum()

    (gradient,) = torch.autograd.grad(value(), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    errors = []
    for step in (1e-2, 1e-3):
        with torch.no_grad():
            weight.add_(step * direction)
        above = value().detach()
        with torch.no_grad():
            weight.sub_(2 * step * direction)
        below = value().detach()
        with torch.no_grad():
            weight.add_(step * direction)
        errors.append(abs(float((above - below) / (2 * step) - (gradient * direction).sum())))
    assert errors[1] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.2), "of second order in the step"
    # where the state carries a graph its derivative is kept
    free = z.clone().requires_grad_()
    branch_jacobian_norm(system, free, torch.Generator().manual_seed(3), 2)["ffn"].sum().backward()
    assert float(free.grad.abs().max()) > 0
    # a branch that is switched off has norm 0 and a finite gradient
    with torch.no_grad():
        system.block.attn.wo.weight.zero_()
    norms = branch_jacobian_norm(system, z, torch.Generator().manual_seed(0), 2)
    assert (norms["attention"] == 0).all()
    (gradient,) = torch.autograd.grad(norms["attention"].sum(), system.block.attn.wo.weight)
    assert torch.isfinite(gradient).all()


def test_branch_norm_without_branches_and_unbiased_squares():
    with pytest.raises(UsageError, match="declares no branches"):
        branch_jacobian_norm(analytic.Shear(), torch.zeros(4, 2, dtype=F64), torch.Generator(), 1)
    with pytest.raises(UsageError, match="at least 1 random vector"):
        branch_jacobian_norm(block(), torch.zeros(3, 6, 8, dtype=F64), torch.Generator(), 0)
    squares = branch_jacobian_squares(block(), torch.ones(3, 6, 8, dtype=F64), torch.Generator().manual_seed(0), 5)
    assert all(s.shape == (5, 3) for s in squares.values())


def test_lost_and_passing_samples_are_named():
    system = from_ode(lambda z: z.square() - 1, torch.tensor([[0.0, 0.5], [3.0, 0.0]], dtype=F64), eps=0.1)
    ds = run_probe(PROBE, system, at="relaxed", depth=300, grid=8)
    assert ds["growth_status"].values.tolist()[1] == "left out"
    assert np.isnan(ds["norm"][1])
    assert np.isfinite(ds["norm"][0])
    assert any("1 of 2 samples (1) have no usable state" in f.text for f in get_probe(PROBE).summary(ds))
    assert int(ds["block_sample"][0]) == 0
    gone = from_ode(lambda z: z.square() + 1, torch.ones(2, 2, dtype=F64), eps=0.1)
    ds = run_probe(PROBE, gone, at="relaxed", depth=300)
    findings = get_probe(PROBE).summary(ds)
    assert findings[0].level == "undetermined"
    early = run_probe(PROBE, block(), at="relaxed", depth=2, grid=8, blocks=1)
    assert any("passing state" in f.text for f in get_probe(PROBE).summary(early))


def test_a_batch_of_one_and_single_precision_and_no_dynamics():
    ds = run_probe(PROBE, block(samples=1, dtype=torch.float32), depth=300, grid=8, blocks=1)
    exact = run_probe(PROBE, block(samples=1, dtype=torch.float32), depth=300, grid=8, blocks=1)
    assert ds["norm"].values == exact["norm"].values, "the seed decides"
    double = run_probe(PROBE, block(samples=1), depth=300, grid=8, blocks=1)
    for name in ("norm", "departure", "numerical_abscissa", "growth"):
        # the weights are drawn in single precision in both, so that only rounding differs
        np.testing.assert_allclose(ds[name], double[name], rtol=2e-3)
    still = from_map(lambda z: 0 * z, torch.ones(1, 1, dtype=F64))
    ds = run_probe(PROBE, still, depth=5, grid=8)
    assert float(ds["growth"][0]) == 1
    assert float(ds["norm"][0]) == 1, "J = M - 1"
    flat = from_ode(lambda z: 0 * z, torch.ones(2, 3, dtype=F64))
    ds = run_probe(PROBE, flat, depth=5, grid=8)
    assert set(ds["growth_status"].values) <= {"stability undetermined", "complete"}
    assert (ds["departure"] == 0).all()
    assert np.isnan(ds["asymmetry"]).all()
    assert get_probe(PROBE).summary(ds)
    assert isinstance(get_probe(PROBE).plot(ds), Figure)
    assert get_probe(PROBE).text(ds)


def test_every_variable_has_a_name_and_units_and_the_first_finding_is_the_summary(measured):
    _, ds, _ = measured
    for name, variable in ds.data_vars.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs, name
        bar = variable.attrs.get("ancillary_variables")
        assert bar is None or bar in ds.data_vars
        if name.startswith(("token_", "block_")) and name not in ("block_sample", "block_token"):
            assert "token" in variable.attrs["long_name"] or "error" in name or "step" in name or "complete" in name
    assert json.loads(ds.attrs["params"])["vectors"] == 64
    findings = get_probe(PROBE).summary(ds)
    assert "perturbations grow" in findings[0].text
    assert any("omega" in f.text for f in findings)
    text = get_probe(PROBE).text(ds)
    assert "token blocks looked at closely" in text
    figure = get_probe(PROBE).plot(ds)
    assert len(figure.axes) == 2
    own = Figure().subplots(1, 2)
    assert get_probe(PROBE).plot(ds, own) is own[0].figure
    with pytest.raises(UsageError, match="two axes"):
        get_probe(PROBE).plot(ds, own[:1])


def test_results_are_compared_block_by_block(measured):
    system, ds, _ = measured
    other = run_probe(PROBE, system, depth=400, vectors=64, blocks=5, grid=10, rank="departure", seed=1)
    a, b = get_probe(PROBE).match(ds, other)
    for name in ("block_sample", "block_token"):
        assert a[name].values.tolist() == b[name].values.tolist()
    assert a.attrs["unmatched"].get("block", 0) == 3 - a.sizes["block"]
    np.testing.assert_allclose(a["kreiss"], b["kreiss"], rtol=1e-6)
    np.testing.assert_allclose(a["eigenvalue"], b["eigenvalue"], atol=1e-8)
    # another seed: estimates agree within their bars, measured numbers to rounding
    gap = np.abs(a["departure"] - b["departure"]) / np.hypot(a["departure_error"], b["departure_error"])
    assert float(gap.max()) < 4.5
    comparison = compare(ds, other)
    assert "kreiss" not in comparison.unlike
    assert "sigma_min" in comparison.unlike


def test_wrong_parameters_are_sentences():
    probe = get_probe(PROBE)
    for wrong, message in (
        ({"level": (0.0,)}, "positive"),
        ({"vectors": 3}, "greater than or equal to 4"),
        ({"growth_steps": 0}, "greater than or equal to 1"),
        ({"grid": 4}, "greater than or equal to 8"),
        ({"at": "peak"}, "root"),
    ):
        with pytest.raises(UsageError, match=message):
            make_params(probe, wrong)
    with pytest.raises(UsageError, match=r"tokens 0\.\.5"):
        run_probe(PROBE, block(), token=6)
    with pytest.raises(UsageError, match="no token blocks"):
        run_probe(PROBE, analytic.Shear(), token=0)
    ds = run_probe(PROBE, block(), depth=100, token=2, rank="rightmost", blocks=2, grid=8, growth_steps=20)
    assert ds["block_token"].values.tolist() == [2, 2]
    assert float(ds["block_abscissa"][0]) >= float(ds["block_abscissa"][1])
