"""The triangulate probe: direct cosines, planted estimators, the rules of its readings, refusals, and the command."""

import json
import re

import numpy as np
import pytest
import torch
from scipy import stats

from dyneq.cli.main import run
from dyneq.errors import DyneqError, UsageError
from dyneq.gradients.base import Estimator, EstimatorParams, Gradient, Mark
from dyneq.gradients.registry import parse
from dyneq.probes.gradient_dataset import dataset, grouped
from dyneq.probes.gradient_sets import collect
from dyneq.probes.gradient_specs import Entry, entries
from dyneq.probes.registry import get_probe, run_probe
from dyneq.probes.triangulate_rules import Ends, Reading, Settled, read, settled, with_readings
from dyneq.probes.triangulate_without import with_arms
from dyneq.systems.checkpoint import Checkpoint, EvaluationBatch
from dyneq.systems.checkpoint_io import save_checkpoint
from dyneq.systems.protocol import System, Time
from dyneq.systems.thick import ThickBlock, ThickConfig
from dyneq.systems.vocabulary import CharacterVocabulary

F64 = torch.float64


def block(seed=0, samples=8, dtype=F64, targets=True, **options):
    """A contracting block, bound as the command binds it: without gradients."""
    options = {"vocabulary": 7, "channels": 8, "heads": 2, "tokens": 4, "eps": 0.3, "resinit": 0.4, **options}
    generator = torch.Generator().manual_seed(seed)
    built = ThickBlock(ThickConfig(**options), generator).to(dtype)
    tokens = torch.randint(0, 7, (samples, 5), generator=generator)
    with torch.no_grad():
        return built.bind(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous() if targets else None)


class Toy(System):
    """F = x - c w z without tokens: one parameter, and a sample with c < 0 that diverges."""

    name = "toy"
    has_loss = True

    def __init__(self, rates, time=Time.FLOW):
        self.time, self.eps = time, 1.0 if time is Time.MAP else 0.5
        self.c = torch.tensor(rates, dtype=F64)[:, None]
        self.x = torch.linspace(1, 2, 3 * len(rates), dtype=F64).view(-1, 3)
        self.w = torch.full((3,), 0.9, dtype=F64, requires_grad=True)

    def force(self, z, context=None):
        return self.x - self.c * self.w * z

    def initial_state(self):
        return self.x

    def loss(self, z):
        return z.square().sum(-1)

    def parameter_groups(self):
        return {"own": {"w": self.w}}


class PlantedParams(EstimatorParams):
    """A gradient made up: k (u + common noise) + bias + own noise, u the unit vector of ones."""

    scale: float = 1.0
    bias: float = 0.0
    noise: float = 0.0
    t1: int = 20


class Planted(Estimator):
    """Draws gradients of the system's parameters; common noise from the batch, so that pairs share it."""

    name = "planted"
    main = "t1"
    depth = "t1"
    Params = PlantedParams

    def gradient(self, system):
        size = float(system.initial_state().detach().double().abs().sum())
        common = torch.Generator().manual_seed(int(1e6 * size) % 2**31)
        own = torch.Generator().manual_seed(common.initial_seed() + 1)
        p, out = self.params, {}
        for group, members in system.parameter_groups().items():
            out[group] = {}
            for name, tensor in members.items():
                ones = torch.ones(tensor.shape, dtype=F64)
                signs = ones.flatten().clone()
                signs[1::2] = -1  # orthogonal to the ones, as all counts of entries are even here
                shared = ones + 0.5 * torch.randn(tensor.shape, generator=common, dtype=F64)
                noise = p.noise * torch.randn(tensor.shape, generator=own, dtype=F64)
                out[group][name] = p.scale * shared + p.bias * signs.view(tensor.shape) + noise
        z = system.initial_state().detach()
        flat = torch.zeros(len(z), dtype=F64)
        marks = {Mark.CLAMPED: torch.ones(len(z), dtype=torch.bool)} if p.noise else {}
        return Gradient(out, z, flat, {"force_residual": flat, "odd": flat + 7}, marks, 5.0)


def planted(system, batches=8, horizon=None, **kinds):
    """Collect and read planted estimators against an undisturbed one."""
    made = [Entry("truth", Planted(), "reference", 20)]
    if horizon is not None:
        made.append(Entry("early", Planted(PlantedParams(**horizon)), "horizon", 10))
    made += [Entry(name, Planted(PlantedParams(**options)), "estimator", 20) for name, options in kinds.items()]
    found = collect(system, made, batches=batches, samples=None, seed=0, progress=lambda *_: None)
    return with_readings(dataset(found), 0.95)


def said(ds):
    return " | ".join(f.text for f in get_probe("triangulate").summary(ds))


def readings(ds, group="all"):
    chosen = ds["reading"].sel(group=group).isel(reference=0)
    return {str(e): str(v) for e, v in zip(chosen["estimator"].values, chosen.values, strict=True) if v}


def test_cosines_equal_those_of_the_gradients_themselves():
    """The same batches, bound anew from the tokens, each estimator run by itself, cosines by NumPy."""
    system = block()
    specs = ("adjoint:solver=gmres", "ep:t2=40", "phantom3")
    ds = run_probe("triangulate", system, ref=("bptt60",), estimator=specs, batches=4, samples=None, seed=3)
    assert ds["estimator"].values.tolist() == ["bptt60", "bptt22", *specs]
    assert ds["role"].values.tolist() == ["reference", "horizon", *["estimator"] * 3]
    assert ds["depth"].values.tolist() == [60, 22, 60, 60, 60]  # the depth of the reference, for all that state none
    with_depth = ("bptt60", "bptt22", "adjoint:solver=gmres,t1=60", "ep:t2=40,t1=60", "phantom:steps=3,t1=60")
    with_depth = [s.replace("t1", parse(s.partition(":")[0].rstrip("0123456789")).depth) for s in with_depth]
    built = [parse(with_depth[i]) for i in (0, 1, 2, 3)]
    batch = ds["batch_of_sample"].values
    assert sorted(batch) == [0, 0, 1, 1, 2, 2, 3, 3]
    for b in range(4):
        index = torch.tensor(np.flatnonzero(batch == b))
        part = system.block.bind(system.tokens[index], system.targets[index], eps=system.eps)
        flat = [
            {
                group: torch.cat([p.flatten() for p in members.values()]).detach().numpy()
                for group, members in e.gradient(part).parameters.items()
            }
            for e in built
        ]
        for group in ("attn", "ffn", "ln", "emb", "head"):
            for e in range(4):
                x, r = flat[e][group], flat[0][group]
                expected = x @ r / np.linalg.norm(x) / np.linalg.norm(r)
                got = ds["batch_cosine"].sel(group=group).isel(reference=0, estimator=e, batch=b)
                assert float(got) == pytest.approx(expected, rel=1e-9, abs=1e-12)
                log_k = np.log(np.linalg.norm(x) / np.linalg.norm(r))
                got = ds["batch_log_norm_ratio"].sel(group=group).isel(reference=0, estimator=e, batch=b)
                assert float(got) == pytest.approx(log_k, abs=1e-9)
        for e in range(4):
            x, r = (np.concatenate(list(flat[i].values())) for i in (e, 0))
            got = float(ds["batch_cosine"].sel(group="all").isel(reference=0, estimator=e, batch=b))
            assert got == pytest.approx(x @ r / np.linalg.norm(x) / np.linalg.norm(r), rel=1e-9)
    assert readings(ds)["adjoint:solver=gmres"] == "faithful"
    assert (ds["free_residual"] < 1e-6).all()
    assert (ds["asymmetry"] > 0.01).all()


def test_planted_estimators_are_read_as_what_they_are():
    ds = planted(
        block(samples=16),
        good={},
        loud={"scale": 4.0},
        tilted={"bias": 1.0},
        restless={"noise": 1.0},
        quiet={"scale": 0.3, "noise": 0.05},
    )
    expected = {"good": "faithful", "loud": "wrong scale", "tilted": "biased", "restless": "noisy"}
    assert readings(ds) == {**expected, "quiet": "wrong scale"}
    # cosines of the population: 1/sqrt(1 + b^2/(1 + 1/4)) of one batch, 1/sqrt(1 + b^2) in the limit
    row = ds.sel(group="all", estimator="tilted").isel(reference=0)
    assert float(row["limit_cosine"]) == pytest.approx(0.5**0.5, abs=float(row["limit_cosine_error"]))
    assert float(row["cosine"]) == pytest.approx((1 + 1 / 1.25) ** -0.5, abs=2 * float(row["cosine_error"]))
    row = ds.sel(group="all", estimator="restless").isel(reference=0)
    assert float(row["limit_cosine"]) == pytest.approx(1, abs=float(row["limit_cosine_error"]))
    assert float(ds["norm_ratio"].sel(group="all", estimator="loud").isel(reference=0)) == pytest.approx(4, rel=1e-12)
    text = said(ds)
    assert "tilted: biased: averaging will not help" in text
    assert re.search(r"restless: [^|]*noisy[^|]*: averaging over batches helps", text)
    assert "loud: wrong scale (k = 4.000 [4.000, 4.000]), right direction" in text
    assert "good: faithful" in text
    assert "restless (16 of 16 samples) and quiet (16 of 16 samples): the loss gradient was clamped" in text
    table = get_probe("triangulate").text(ds)
    assert "16c" in table
    assert "c: the loss gradient was clamped" in table


def test_an_unsettled_reference_is_the_ceiling():
    ds = planted(block(samples=16), horizon={"bias": 0.5}, near={"bias": 0.45}, far={"bias": 2.0}, same={})
    assert ds["settled"].sel(group="all").values.tolist() == ["ambiguous"]
    assert readings(ds) == {"near": "reference ambiguous", "far": "biased", "same": "faithful"}
    assert "reference itself ambiguous between 10 and 20 steps" in said(ds)


def test_only_one_group_may_fail():
    class Partly(Planted):
        def gradient(self, system):
            found = super().gradient(system)
            bad = Planted(PlantedParams(bias=3.0)).gradient(system)
            mixed = {g: bad.parameters[g] if g in ("attn", "ln") else m for g, m in found.parameters.items()}
            return Gradient(mixed, found.state, found.loss, found.diagnostics)

    made = [Entry("truth", Planted(), "reference", 20), Entry("partly", Partly(), "estimator", 20)]
    found = collect(block(samples=16), made, batches=8, samples=None, seed=0, progress=lambda *_: None)
    ds = with_readings(dataset(found), 0.95)
    assert "partly: biased in attn and ln: averaging will not help; faithful elsewhere" in said(ds)
    # the groups of one set of inner products add up to the whole
    names, gram = grouped(found)
    assert names[0] == "all"
    np.testing.assert_allclose(gram[0], gram[1:].sum(0), rtol=1e-13)


def test_arms_with_one_group_removed_equal_those_of_the_gradients_themselves():
    """Bound anew from the tokens, the group cut out of the vector, intervals by SciPy."""
    system = block()
    specs = ("phantom2", "ep:t2=40")
    ds = run_probe("triangulate", system, ref=("bptt60",), estimator=specs, batches=4, samples=None, horizon=0)
    built = [parse(s) for s in ("bptt60", "phantom:steps=2,t1=60", "ep:t2=40,t1=60")]
    groups = ds["removed"].values.tolist()
    assert groups == [g for g in ds["group"].values if g != "all"]
    cosine, ratio, change = np.zeros((3, 5, 4)), np.zeros((3, 5, 4)), np.zeros((3, 5, 4))
    for b in range(4):
        index = torch.tensor(np.flatnonzero(ds["batch_of_sample"].values == b))
        part = system.block.bind(system.tokens[index], system.targets[index], eps=system.eps)
        found = [e.gradient(part).parameters for e in built]
        for i, removed in enumerate([*groups, None]):
            left = [
                torch.cat([p.flatten() for g, m in f.items() if g != removed for p in m.values()]).numpy()
                for f in found
            ]
            for e in range(3):
                x, r = left[e], left[0]
                c = x @ r / np.linalg.norm(x) / np.linalg.norm(r)
                if removed is None:
                    change[e, :, b] = cosine[e, :, b] - c
                else:
                    cosine[e, i, b], ratio[e, i, b] = c, np.log(np.linalg.norm(x) / np.linalg.norm(r))
    for name, expected, back in (("cosine", cosine, 1), ("norm_ratio", ratio, 0), ("cosine_change", change, 1)):
        got, ends = ds[f"without_{name}"].values[0], ds[f"without_{name}_interval"].values[0]
        got, ends = (got, ends) if back else (np.log(got), np.log(ends))
        mean = expected.mean(-1)
        np.testing.assert_allclose(got, mean, rtol=1e-9, atol=1e-12)
        half = stats.t.ppf(0.975, 3) * stats.sem(expected, axis=-1)
        limits = np.clip(mean + half, -1, 1) if name == "cosine" else mean + half
        np.testing.assert_allclose(ends[..., 1], limits, rtol=1e-7, atol=1e-12)
    arms = get_probe("triangulate").document(ds)["estimators"][2]["without"]["bptt60"]
    assert list(arms) == groups
    assert arms["ffn"]["cosine"]["value"] == float(
        ds["without_cosine"].sel(removed="ffn").isel(reference=0, estimator=2)
    )
    assert "all parameters but one group: cosine with bptt60, and k" in get_probe("triangulate").text(ds)
    for name in ds.data_vars:
        assert {"long_name", "units"} <= set(ds[name].attrs), name


def test_a_group_that_dominates_hides_what_the_others_are():
    class Loud(Planted):
        """The head a million times as large; elsewhere as its options say."""

        def gradient(self, system):
            found = super().gradient(system)
            head = Planted().gradient(system).parameters["head"]
            mixed = {**found.parameters, "head": {name: 1e6 * p for name, p in head.items()}}
            return Gradient(mixed, found.state, found.loss, found.diagnostics)

    made = [
        Entry("truth", Loud(), "reference", 20),
        Entry("tilted", Loud(PlantedParams(bias=3.0)), "estimator", 20),
        Entry("same", Loud(), "estimator", 20),
    ]
    found = collect(block(samples=16), made, batches=8, samples=None, seed=0, progress=lambda *_: None)
    ds = with_arms(with_readings(dataset(found), 0.95), found)
    assert readings(ds) == {"tilted": "faithful", "same": "faithful"}
    arms = ds["without_reading"].sel(estimator="tilted").isel(reference=0)
    assert [str(a) for a in arms.values] == ["biased" if g == "head" else "faithful" for g in ds["removed"].values]
    # 1/sqrt(1 + 9/1.25) in expectation of the squares; subtracted from the whole it would have no digit left
    row = ds.sel(estimator="tilted", removed="head").isel(reference=0)
    assert float(row["without_cosine"]) == pytest.approx(
        (1 + 9 / 1.25) ** -0.5, abs=2 * float(row["without_cosine_error"])
    )
    text = said(ds)
    assert re.search(r"tilted: [^|]*; its cosine is 0\.3[^|]* without head \(then biased\)", text)
    assert "without" not in re.search(r"same: [^|]*", text)[0]
    alone = run_probe("triangulate", Toy([1.0, 0.8]), ref=("bptt9",), estimator=("phantom2",), batches=2)
    assert "removed" not in alone.dims
    get_probe("triangulate").document(alone)


def test_a_module_whose_only_group_is_called_all_has_one_group():
    system = Toy([1.0, 0.8, 0.9, 0.7])
    system.parameter_groups = lambda: {"all": {"w": system.w}}
    ds = run_probe("triangulate", system, ref=("bptt9",), estimator=("phantom2",), batches=4)
    assert ds["group"].values.tolist() == ["all"]
    assert "phantom2" in said(ds)


WIDE, NONE = Ends(0.9, -1, 1), Ends(0.9, np.nan, np.nan)


@pytest.mark.parametrize(
    ("cosine", "limit", "ratio", "ceiling", "expected"),
    [
        ((0.98, 0.96, 1.0), (0.99, 0.9, 1.0), (1.1, 1.0, 1.2), None, Reading.FAITHFUL),
        ((0.98, 0.96, 1.0), (0.99, 0.9, 1.0), (2.0, 1.3, 3.0), None, Reading.WRONG_SCALE),
        ((0.98, 0.96, 1.0), (0.99, 0.9, 1.0), (1.2, 1.0, 1.3), None, Reading.SCALE_OPEN),
        ((0.98, 0.94, 1.0), (0.99, 0.97, 1.0), (1.0, 1.0, 1.0), None, Reading.UNDETERMINED),
        ((0.5, 0.4, 0.6), (0.6, 0.5, 0.7), (1.0, 1.0, 1.0), None, Reading.BIASED),
        ((0.5, 0.4, 0.6), (0.99, 0.96, 1.0), (1.0, 1.0, 1.0), None, Reading.NOISY),
        ((0.5, 0.4, 0.6), (0.9, 0.5, 1.0), (1.0, 1.0, 1.0), None, Reading.OFF),
        ((0.5, 0.4, 0.6), (np.nan, np.nan, np.nan), (1.0, 1.0, 1.0), None, Reading.OFF),
        ((0.5, 0.4, 0.6), (0.6, 0.5, 0.7), (1.0, 1.0, 1.0), (0.5, 0.4, 0.6), Reading.AMBIGUOUS),
        ((0.1, 0.0, 0.2), (0.1, 0.0, 0.3), (1.0, 1.0, 1.0), (0.5, 0.4, 0.6), Reading.BIASED),
        ((0.1, 0.0, 0.2), (0.1, 0.0, 0.3), (1.0, 1.0, 1.0), (np.nan, np.nan, np.nan), Reading.AMBIGUOUS),
        ((0.99, 0.98, 1.0), (0.99, 0.9, 1.0), (1.0, 1.0, 1.0), (0.5, 0.4, 0.6), Reading.FAITHFUL),
        ((0.5, np.nan, np.nan), (np.nan, np.nan, np.nan), (1.0, np.nan, np.nan), None, Reading.UNDETERMINED),
        ((np.nan, np.nan, np.nan), (np.nan, np.nan, np.nan), (np.nan, np.nan, np.nan), None, Reading.NOTHING),
    ],
)
def test_a_reading_holds_at_both_ends_of_its_intervals(cosine, limit, ratio, ceiling, expected):
    bound = None if ceiling is None else Ends(*ceiling)
    assert read(Ends(*cosine), Ends(*limit), Ends(*ratio), bound, 0.95) is expected


def test_a_reference_is_settled_by_its_whole_interval():
    assert settled(None, 0.95) is Settled.UNTESTED
    assert settled(Ends(0.99, 0.96, 1), 0.95) is Settled.SETTLED
    assert settled(Ends(0.8, 0.7, 0.9), 0.95) is Settled.AMBIGUOUS
    assert settled(Ends(0.95, 0.9, 1), 0.95) is Settled.UNDETERMINED
    assert settled(NONE, 0.95) is Settled.UNDETERMINED


class Refusing(Planted):
    """Refuses on every batch but the first."""

    calls = 0

    def gradient(self, system):
        self.calls += 1
        if self.calls > 1:
            raise DyneqError("it cannot be done here; do something else")
        return super().gradient(system)


def test_an_estimator_that_refuses_is_a_row_and_a_reference_that_fails_an_error():
    made = [Entry("truth", Planted(), "reference", 20), Entry("shy", Refusing(), "estimator", 20)]
    found = collect(block(), made, batches=4, samples=None, seed=0, progress=lambda *_: None)
    ds = with_readings(dataset(found), 0.95)
    assert readings(ds) == {"shy": "refused"}
    assert np.isnan(ds["cosine"].sel(estimator="shy")).all()
    assert "shy: refused: it cannot be done here" in said(ds)
    assert "\n  shy " not in get_probe("triangulate").text(ds)
    get_probe("triangulate").plot(ds)
    with pytest.raises(DyneqError, match="reference shy cannot be computed: it cannot be done here"):
        collect(
            block(),
            [Entry("shy", Refusing(), "reference", 20), made[0]],
            batches=4,
            samples=None,
            seed=0,
            progress=lambda *_: None,
        )
    with pytest.raises(DyneqError, match="gradient of the reference wild is not finite on batch 1"):
        collect(
            block(),
            [Entry("wild", Planted(PlantedParams(scale=float("inf"))), "reference", 20)],
            batches=2,
            samples=None,
            seed=0,
            progress=lambda *_: None,
        )


def test_samples_that_diverge_are_left_out_and_named():
    system = Toy([1.0, -9.0, 0.8, 1.2, 0.9, 1.1, 0.7])
    asked = {"ref": ("bptt100",), "estimator": ("adjoint:solver=gmres",), "samples": None}
    ds = run_probe("triangulate", system, batches=3, **asked)
    assert ds["batch_of_sample"].values[1] == -1
    assert sorted(ds["batch_of_sample"].values) == [-1, 0, 0, 1, 1, 2, 2]
    assert ds["free_status"].values[1] == "diverged"
    assert np.isnan(ds["asymmetry"].values[1])
    assert "left out: sample 1, whose relaxation diverged within 100 steps" in said(ds)
    # dL/dw_i = -2 x_i^2/(c^2 w_i^3), the mean over the batch: the root is x/(c w)
    at = np.flatnonzero(ds["batch_of_sample"].values == 0)
    x, c = system.x.numpy()[at], system.c.numpy()[at]
    expected = np.square((-2 * x**2 / c**2 / 0.9**3).mean(0)).sum()
    for e in (0, 2):  # the horizon is not at its root yet, to nine digits
        assert float(ds["gram"][0, e, 0, e, 0]) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(DyneqError, match="too many to deal"):
        run_probe("triangulate", Toy([1.0, -9.0]), batches=2, **asked)


@pytest.mark.parametrize(
    "system", [Toy([1.0, 0.8, 0.9, 0.7], Time.MAP), block(samples=4, dtype=torch.float32)], ids=["map", "float32"]
)
def test_maps_and_single_precision_are_compared_as_well(system):
    ds = run_probe("triangulate", system, ref=("bptt80",), estimator=("adjoint:solver=gmres,tol=1e-5",), batches=4)
    assert readings(ds) == {"adjoint:solver=gmres,tol=1e-5": "faithful"}
    assert float(ds["cosine"].sel(group="all").isel(reference=0, estimator=2)) > 1 - 1e-6


def test_one_batch_gives_numbers_but_no_reading():
    ds = run_probe("triangulate", block(samples=2), ref=("bptt40",), estimator=("ep:t2=30",), batches=1)
    assert readings(ds) == {"ep:t2=30": "undetermined"}
    assert np.isfinite(ds["cosine"]).all()
    assert np.isnan(ds["cosine_interval"]).all()
    assert "one batch gives no interval" in said(ds)
    get_probe("triangulate").plot(ds)
    assert "+- ?" in get_probe("triangulate").text(ds)


def test_several_references_bound_each_other_and_the_document_is_json():
    ds = run_probe(
        "triangulate", block(), ref=("bptt60", "adjoint:solver=gmres"), estimator=("phantom2",), batches=4, horizon=0
    )
    assert ds["role"].values.tolist() == ["reference", "reference", "estimator"]
    assert (ds["settled"] == "settled").all()
    assert "cosine with each reference" in get_probe("triangulate").text(ds)
    document = json.loads(json.dumps(get_probe("triangulate").document(ds)))
    assert [e["role"] for e in document["estimators"]] == ["reference", "reference", "estimator"]
    assert document["estimators"][2]["against"]["bptt60"]["all"]["reading"] in set(Reading)
    for name in ds.data_vars:
        assert "long_name" in ds[name].attrs, name
        assert "units" in ds[name].attrs, name
    bar = ds[ds["cosine"].attrs["ancillary_variables"]]
    ends = ds["cosine_interval"]
    np.testing.assert_allclose(bar, np.maximum(ends[..., 1] - ds["cosine"], ds["cosine"] - ends[..., 0]))
    with pytest.raises(UsageError, match="two axes"):
        get_probe("triangulate").plot(ds, ["one"])


def test_the_same_seed_gives_the_same_batches_and_another_one_others():
    first, second, third = (
        run_probe("triangulate", block(), ref=("bptt5",), estimator=("phantom2",), batches=2, seed=s) for s in (0, 0, 1)
    )
    assert (first["batch_of_sample"] == second["batch_of_sample"]).all()
    assert (first["cosine"] == second["cosine"]).all()
    assert (first["batch_of_sample"] != third["batch_of_sample"]).any()


def test_depths_are_filled_in_from_the_reference():
    found = entries(("bptt80",), ("adjoint", "bptt20", "phantom:t1=7"), None, None)
    assert [(e.label, e.role, e.depth) for e in found] == [
        ("bptt80", "reference", 80),
        ("bptt30", "horizon", 30),
        ("adjoint", "estimator", 80),
        ("bptt20", "estimator", 20),
        ("phantom:t1=7", "estimator", 7),
    ]
    assert [e.depth for e in entries(("adjoint",), ("ep",), 90, 0)] == [90, 90]
    assert [e.depth for e in entries(("adjoint",), ("ep",), None, 0)] == [400, 400]
    assert [e.label for e in entries(("adjoint",), ("adjoint", "ep"), None, 0)] == ["adjoint", "ep"]
    assert [e.label for e in entries(("adjoint:solver=gmres",), ("ep",), 80, 30)][1].startswith("adjoint:")


def test_what_has_no_gradient_is_refused():
    asked = {"ref": ("bptt5",), "estimator": ("phantom2",), "batches": 2}
    with pytest.raises(UsageError, match="needs a loss"):
        run_probe("triangulate", block(targets=False), **asked)
    system = Toy([1.0, 0.8])
    system.parameter_groups = dict
    with pytest.raises(DyneqError, match="declares none"):
        run_probe("triangulate", system, **asked)
    with pytest.raises(UsageError, match="4 disjoint batches need as many samples, but 3 are used"):
        run_probe("triangulate", block(samples=3), **{**asked, "batches": 4})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"estimator": ("aepp",)}, "did you mean 'aep'"),
        ({"estimator": ("aep:betta=1",)}, "no option 'betta'; did you mean 'beta'"),
        ({"estimator": ("aep:beta=-1",)}, "beta: input should be greater than 0"),
        ({"estimator": ("aep", "aep")}, "one and the same estimator"),
        ({"estimator": ()}, "name an --estimator"),
        ({"ref": ("exact",)}, "gradient estimator"),
        ({"ref": ()}, "give one like --ref bptt400"),
        ({"ref": ("bptt50", "bptt:steps=50")}, "one and the same estimator"),
        ({"horizon": 400}, "choose 1 to 399, or 0 for none"),
        ({"batches": 9, "samples": 8}, "9 disjoint batches need as many samples"),
        ({"batches": 0}, "batches"),
        ({"faithful": 2.0}, "faithful"),
    ],
)
def test_bad_parameters_are_one_sentence_before_anything_runs(options, words):
    with pytest.raises(UsageError, match=words):
        run_probe("triangulate", block(samples=2), **options)


@pytest.fixture(name="checkpoint")
def _checkpoint(tmp_path):
    """A checkpoint of four samples on disk."""
    bound = block(samples=4)
    path = tmp_path / "tiny.pt"
    batch = EvaluationBatch(bound.tokens, bound.targets)
    save_checkpoint(path, Checkpoint(bound.block, CharacterVocabulary("abcdefg"), batch, step=7))
    return str(path)


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("triangulate", ["--estimator", "aepp"], "did you mean 'aep'"),
        ("triangulate", ["--estimator", "holo:m=4"], "no option 'm'"),
        ("triangulate", ["--ref", "truth"], "no gradient estimator called 'truth'"),
        ("triangulate", ["--batches", "5"], "5 disjoint batches need as many samples, but 4 are used"),
        ("triangulate", ["--batches", "5", "--samples", "4"], "but 4 are to be used"),
        ("triangulate", ["--horizon", "4000"], "choose 1 to 399"),
        ("navg", ["--batches", "99"], "batches"),
        ("ablation", ["--grid", "r:0.1,0.2"], "write it like r=0.02,0.05,0.1"),
        ("ablation", ["--estimator", "ep", "--grid", "bta=0.1,0.2"], "did you mean 'beta'"),
        ("ablation", ["--estimator", "ep", "--grid", "beta=0.1"], "a grid of one point"),
    ],
)
def test_bad_input_to_the_commands_is_one_sentence(checkpoint, capsys, command, options, words):
    code = run([command, checkpoint, *options])
    captured = capsys.readouterr()
    assert code in (1, 2)
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") <= 4


def test_the_command_prints_stores_and_finds_its_result_again(checkpoint, capsys, tmp_path):
    asked = ["triangulate", checkpoint, "--ref", "bptt30", "--estimator", "phantom2", "--batches", "4"]
    assert run([*asked, "--plot", str(tmp_path / "figure.png")]) == 0
    first = capsys.readouterr().out
    assert "all parameters against bptt30" in first
    assert "stored as" in first
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert run([*asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["stored"]["found"] is True
    rows = {e["estimator"]: e for e in document["results"][0]["estimators"]}
    assert set(rows) == {"bptt30", "bptt11", "phantom2"}
    printed = re.search(r"phantom2 +([0-9.]+)", first)
    value = rows["phantom2"]["against"]["bptt30"]["all"]["cosine"]["value"]
    assert float(printed[1]) == pytest.approx(value, abs=5e-3)
