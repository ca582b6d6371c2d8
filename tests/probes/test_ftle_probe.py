"""The ftle probe: readings of systems of known kind, reference checkpoints, what is said, what is refused."""

import json
import math
from importlib.resources import files

import numpy as np
import pytest
import torch

import dyneq
from dyneq.cli.main import run as command
from dyneq.dynamics.finite_time import finite_time_exponents
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.lyapunov import token_exponents
from dyneq.dynamics.relax import relax
from dyneq.dynamics.roots import find_root
from dyneq.dynamics.stepping import Stepper
from dyneq.dynamics.trajectory import Recorder
from dyneq.errors import DyneqError, UsageError
from dyneq.probes.registry import get_probe, run_probe
from dyneq.systems import analytic
from dyneq.systems.adapters import from_map, from_ode
from dyneq.systems.thick import ThickBlock, ThickConfig

F64 = torch.float64


def said(ds):
    return [f"{f.level}: {f.text}" for f in get_probe("ftle").summary(ds)]


def block(samples=3, tokens=4, gain=0.4):
    generator = torch.Generator().manual_seed(0)
    made = ThickBlock(ThickConfig(vocabulary=13, channels=8, heads=2, tokens=tokens), generator).double()
    with torch.no_grad():
        made.attn.wo.weight.mul_(gain)
        made.ffn.pj.weight.mul_(gain)
    return made.bind(torch.randint(0, 13, (samples, tokens), generator=generator))


def test_a_cycle_is_neutral_with_dimension_1():
    r = 0.5
    system = analytic.StuartLandau(r=r, eps=0.05)
    ds = run_probe("ftle", system, horizon=600, scheme="rk4")
    assert set(ds["reading"].values) == {"neutral"}
    # the step is of fourth order: 2 r (2 r h)^4/120 at most
    assert np.abs(ds["rate"].values - [0, -2 * r]).max() < 1e-3
    assert ds["kaplan_yorke"].values == pytest.approx(1.0, abs=1e-12)
    text = said(ds)
    assert text[0].startswith("fact: perturbations grow in 0 and fade in 0 of 4 samples, in 4 the exponent")
    assert "as on a cycle" in text[1]
    # per step and per unit time are the same numbers
    assert ds["rate"].values == pytest.approx(ds["exponent"].values / 0.05)
    assert (ds["rate"].attrs["units"], ds["exponent"].attrs["units"]) == ("nats/time", "nats/step")


def test_chaos_expands_and_is_not_called_chaos():
    ds = run_probe("ftle", analytic.Henon(), horizon=1500)
    assert set(ds["reading"].values) == {"expanding"}
    assert "rate" not in ds  # a map has no time but its steps
    bars = 4 * ds["kaplan_yorke_error"].values + 1e-3
    assert (np.abs(ds["kaplan_yorke"].values - (1 + 0.419 / 1.623)) < bars).all()
    expanding = next(t for t in said(ds) if "expand:" in t)
    assert "cannot tell chaos from a state that is still leaving an unstable root" in expanding
    # complete frame: the determinant is that of every step
    assert ds["finite_time"].values.sum(1) == pytest.approx(math.log(0.3), abs=1e-9)
    assert (ds["finite_time_gain"] == 0).all()


def test_leaving_an_unstable_root_reads_expanding_too():
    """Why the sentence above is needed: no chaos here, only 0.01 that grows at rate 0.2 over 20 time units."""
    system = analytic.StuartLandau(r=0.2, z0=torch.full((2, 2), 1e-6, dtype=F64), eps=0.05)
    ds = run_probe("ftle", system, depth=0, horizon=400, scheme="rk4")
    assert set(ds["reading"].values) == {"expanding"}
    assert ds["rate"].values[:, 0] == pytest.approx(0.2, abs=1e-3)


def test_what_is_still_aligning_is_not_read_as_contraction():
    """One time unit of a cycle whose vectors align at rate 1: some values are many standard errors below 0."""
    ds = run_probe("ftle", analytic.StuartLandau(), depth=50, horizon=100)
    apart = ds["exponent"].values[:, 0] / ds["exponent_error"].values[:, 0]
    assert (apart < -3).any()
    assert set(ds["reading"].values) == {"neutral"}
    margin = (1 + math.log(2) / 2) / 80
    assert (ds["exponent_margin"].values >= margin).all()


def test_a_stable_root_contracts_at_the_logarithm_of_its_multiplier():
    system = analytic.LinearFlow(torch.diag(torch.tensor([-0.5, -2.0], dtype=F64)), eps=0.1)
    ds = run_probe("ftle", system, count=1)
    assert set(ds["reading"].values) == {"contracting"}
    assert ds["rate"].values[:, 0] == pytest.approx(math.log(0.95) / 0.1, abs=1e-6)
    assert (ds["kaplan_yorke"] == 0).all()
    assert any("fade: by a factor e in at most" in t for t in said(ds))


def test_a_marginal_root_has_no_dimension():
    system = from_ode(lambda z: torch.zeros_like(z), torch.ones(2, 3, dtype=F64))
    ds = run_probe("ftle", system, horizon=100)
    assert set(ds["status"].values) == {"converged"}
    assert set(ds["reading"].values) == {"neutral"}
    assert ds["kaplan_yorke"].isnull().all()
    assert any(t.startswith("undetermined: the Kaplan-Yorke dimension") for t in said(ds))


def test_transient_growth_is_said_and_not_called_instability():
    """exp(A t) of [[-1, k], [0, -2]] is [[e^-t, k (e^-t - e^-2t)], [0, e^-2t]]: of norm 45 at t = 10 for k = 10^6."""
    k, t = 1e6, 10.0
    system = analytic.LinearFlow(torch.tensor([[-1.0, k], [0.0, -2.0]], dtype=F64), eps=0.02)
    ds = run_probe("ftle", system, depth=0, horizon=500, scheme="rk4")
    assert set(ds["reading"].values) == {"contracting"}
    # the first vector is k (e^-t - e^-2t) along the first axis: from t = 2 on it is not yet at rate -1
    aligning = math.log((1 - math.exp(-10)) / (1 - math.exp(-2))) / 8
    assert ds["rate"].values == pytest.approx(np.array([[-1 + aligning, -2 - aligning]] * 4), abs=1e-5)
    e = math.exp(-t)
    exact = np.linalg.svd([[e, k * (e - e * e)], [0, e * e]], compute_uv=False)[0]
    assert exact > 45
    # 500 steps of relative error (2 h)^5/120 each
    assert np.exp(500 * ds["finite_time"].values[:, 0]) == pytest.approx(exact, rel=1e-6)
    assert any("no instability" in text for text in said(ds))


def test_block_exponents_are_per_token_and_those_of_dense_multipliers():
    system = block(samples=2, tokens=3)
    ds = run_probe("ftle", system, depth=1000, horizon=200, count=3)
    z = relax(system, 1000).z
    exact = (1 + system.eps * torch.linalg.eigvals(Linearization(system, z).token_blocks())).abs().log()
    found = ds["token_exponent"].values
    assert found.shape == (2, 3, 3)
    leading = exact.amax(-1).numpy()
    slack = 4 * ds["token_exponent_error"].values[..., 0] + 2 / 160  # what rotates changes a logarithm by order 1
    assert (np.abs(found[..., 0] - leading) < slack).all()
    assert (ds["exponent_token"].values[:, 0] == found[..., 0].argmax(1)).all()
    assert ds["exponent"].values[:, 0] == pytest.approx(found[..., 0].max(1))
    assert (np.diff(ds["exponent"].values, axis=1) <= 0).all()
    # the union over tokens, whatever token they belong to
    assert ds["exponent"].values == pytest.approx(np.sort(found.reshape(2, -1), axis=1)[:, :-4:-1])
    off = run_probe("ftle", system, depth=1000, horizon=200, count=3, tokens="no")
    assert "token_exponent" not in off
    assert (off["exponent_token"] == -1).all()
    assert off["exponent"].values == pytest.approx(exact.flatten(1).sort(descending=True).values[:, :3], abs=3 / 160)
    # forces: relaxation and its end, causality, tokens, whole samples forwards, the end, the contraction rate
    assert int(ds["forces"]) == 1001 + (3 + 3) + 200 + 200 + 1 + 13
    assert int(ds["products"]) == 200 * 3 + 200 * 24


def test_the_dataset_says_what_everything_is():
    for system in (block(), analytic.StuartLandau(), analytic.Henon()):
        ds = run_probe("ftle", system, depth=20, horizon=60)
        for name in (*ds.data_vars, *ds.coords):
            assert ds[name].attrs.get("long_name"), name
            assert "units" in ds[name].attrs, name
        assert ds["exponent"].attrs["ancillary_variables"] == "exponent_error"
        assert ds["forces"].attrs["role"] == "cost"
        assert ds["finite_time_gain"].attrs["role"] == "certificate"
        assert ds.sizes["sample"] == system.samples
        assert len(get_probe("ftle").plot(ds).axes) >= 2
        assert "exponents (nats per" in get_probe("ftle").text(ds)


def test_lost_samples_are_named_and_left_out():
    start = torch.tensor([[-0.9], [3.0], [0.999]], dtype=F64)
    system = from_ode(lambda z: z * z - 1, start)  # the second leaves at once, the third never within the depth
    ds = run_probe("ftle", system, depth=200, horizon=300)
    assert ds["reading"].values.tolist() == ["contracting", "lost", "contracting"]
    assert ds["status"].values[1] == "diverged"
    assert np.isnan(ds["exponent"].values[1]).all()
    assert ds["rate"].values[0, 0] == pytest.approx(math.log(0.8) / 0.1, abs=1e-9)
    assert any("1 of 3 samples (1) left out" in t for t in said(ds))
    later = from_ode(lambda z: z * z - 1, torch.tensor([[-0.9], [1.01]], dtype=F64))
    ds = run_probe("ftle", later, depth=5, horizon=100)  # leaves during the horizon
    assert ds["reading"].values.tolist() == ["contracting", "lost"]
    assert ds["status"].values[1] == "diverged"
    assert run_probe("ftle", later, depth=5, horizon=100, singular=False)["reading"].equals(ds["reading"])


def test_all_samples_lost_is_a_result():
    ds = run_probe("ftle", from_ode(lambda z: z**3, torch.full((2, 1), 3.0, dtype=F64)), depth=100)
    assert set(ds["reading"].values) == {"lost"}
    assert said(ds)[0].startswith("undetermined: none of the 2 samples has exponents")
    assert len(said(ds)) == 1
    assert "no exponents" in get_probe("ftle").text(ds)
    document = get_probe("ftle").document(ds)
    assert document["lost"] == 2
    with pytest.raises(DyneqError, match="nothing to draw"):
        get_probe("ftle").plot(ds)


def test_superstable_map_is_printed_and_drawn():
    ds = run_probe("ftle", from_map(lambda z: 0 * z, torch.ones(2, 1, dtype=F64)), horizon=50)
    assert (ds["exponent"] == -np.inf).all()
    assert set(ds["reading"].values) == {"contracting"}
    assert (ds["kaplan_yorke"] == 0).all()
    assert "-inf" in get_probe("ftle").text(ds)
    assert said(ds)[0].startswith("fact: perturbations grow in 0 and fade in 2")
    with pytest.raises(DyneqError, match="no finite exponents"):
        get_probe("ftle").plot(ds)


@pytest.mark.parametrize(
    ("system", "options", "message"),
    [
        (analytic.Henon(), {"count": 3}, r"Henon has 2 components, so there are 2 exponents, but 3 were asked for"),
        (analytic.Henon(), {"horizon": 10}, r"10 steps is too short for 20 batches.*use at least 25 steps"),
        (analytic.Henon(), {"scheme": "rk4"}, r"is a map"),
        (analytic.Henon(), {"tokens": "yes"}, r"causal over tokens, but Henon is not"),
        (block(), {"count": 9}, r"a token of BoundBlock has 8 channels|a token of ThickBlock has 8 channels"),
    ],
)
def test_what_cannot_be_asked_is_said(system, options, message):
    with pytest.raises(UsageError, match=message):
        run_probe("ftle", system, **options)


def test_the_command_prints_a_table_and_json(tmp_path, capsys):
    name = "dyneq.systems.analytic:stuart_landau"
    arguments = ["ftle", name, "--horizon", "100", "--depth", "50", "--store", str(tmp_path)]
    assert command(arguments) == 0
    printed = capsys.readouterr().out
    assert "exponents (nats per time)" in printed
    assert "perturbations grow in 0" in printed
    assert command([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["results"][0]
    assert result["neutral"] == 4
    assert result["units"] == "nats/time"
    assert len(result["samples"][0]["exponents"]) == 2
    assert command([*arguments, "--horizon", "10"]) in (1, 2)
    error = capsys.readouterr().err
    assert "use at least 25 steps" in error
    assert "Traceback" not in error


def test_one_random_vector_misses_what_exponents_by_token_find():
    """The checkpoint ``after``, sample 16: its root is unstable at token 13, and its relaxation cycles there.

    The research log followed one random tangent vector of the whole state over a short window. Of 1,536 directions all
    but two contract, so the vector shrinks first. The exact rate is that of the dense token block, and of the manifest.
    """
    manifest = json.loads((files("dyneq") / "reference" / "manifest.json").read_text())
    pair = next(p for p in manifest["checkpoints"]["after"]["long_run"]["pairs"] if p["sample"] == 16)
    system = dyneq.open_checkpoint("after").bind(batch=24).select(torch.tensor([16]))
    relaxation = relax(system, 800, recorder=Recorder(system.eps, 800))
    root = find_root(system, relaxation=relaxation, generator=torch.Generator().manual_seed(0))
    blocks = Linearization(system, root.z).token_blocks()[0]
    rates = (1 + system.eps * torch.linalg.eigvals(blocks)).abs().log().amax(-1) / system.eps
    exact = math.log(abs(1 + system.eps * complex(*pair["mu"]))) / system.eps
    assert int(rates.argmax()) == pair["token"] == 13
    assert float(rates[13]) == pytest.approx(exact, abs=1e-8)
    assert exact > 0.5

    def random_vectors(z, steps):
        """Return growth rates of the norms of 8 random vectors of the whole state, never realigned."""
        v = torch.randn(8, *z.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
        size, stepper = v.flatten(1).norm(dim=1), Stepper(system)
        for _ in range(steps):
            z, v = stepper.advance_with(z, v)
        return (v.flatten(1).norm(dim=1) / size).log() / (steps * system.eps)

    def by_token(z, steps, batches=20):
        found = token_exponents(system, z, steps, 2, generator=torch.Generator().manual_seed(0), batches=batches)
        return found.values[0] / system.eps, found.errors[0] / system.eps

    # at the unstable root: over 20 steps every random vector shrinks, over 40 most still do
    assert random_vectors(root.z, 20).max() < 0
    over_40 = random_vectors(root.z, 40)
    assert over_40.median() < 0
    assert over_40.max() < 0.5 * exact
    for steps, batches in ((40, 4), (400, 20)):
        values, errors = by_token(root.z, steps, batches)
        assert int(values[:, 0].argmax()) == 13
        assert abs(float(values[13, 0]) - exact) < 4 * float(errors[13, 0])
    assert float(values[13, 1]) == pytest.approx(
        float(rates[13].new_tensor(sorted_rates(blocks[13], system.eps)[1])), abs=0.1
    )
    assert float(values[13, 0]) > 10 * float(errors[13, 0])
    # on the cycle: a vector seems to contract at 0.1 and more, as at a stable root; the exponent is 0
    assert random_vectors(relaxation.z, 60).max() < -0.1
    values, errors = by_token(relaxation.z, 400)
    assert int(values[:, 0].argmax()) == 13
    assert abs(float(values[13, 0])) < 3 * float(errors[13, 0]) < 0.1
    # the singular value shows growth at once, but belongs to the whole sample and not to a token
    growth = finite_time_exponents(system, root.z, 20, 1, generator=torch.Generator().manual_seed(0), batches=2)
    assert float(growth.values[0, 0]) / system.eps > exact
    assert not growth.complete


def sorted_rates(matrix, eps):
    rates = (1 + eps * torch.linalg.eigvals(matrix)).abs().log() / eps
    return rates.sort(descending=True).values.tolist()


@pytest.mark.slow
def test_readings_of_a_whole_reference_batch_agree_with_the_long_run():
    """Samples that still move after 2,000 steps never fade; those that have settled by then do."""
    manifest = json.loads((files("dyneq") / "reference" / "manifest.json").read_text())
    long_run = manifest["checkpoints"]["after"]["long_run"]
    ds = run_probe("ftle", dyneq.open_checkpoint("after").bind(), singular=False)
    reading = ds["reading"].values
    assert not set(reading[long_run["moving"]]) & {"contracting", "lost"}
    settled = [i for i in range(64) if i not in long_run["unsettled"]]
    assert not set(reading[settled]) & {"expanding", "lost"}
    # a slow one among them may need a longer horizon
    assert (reading[settled] == "contracting").mean() > 0.9
    calm = run_probe("ftle", dyneq.open_checkpoint("converges").bind(), singular=False)
    assert not set(calm["reading"].values) & {"expanding", "lost"}
    assert (calm["reading"] == "contracting").mean() > 0.9
