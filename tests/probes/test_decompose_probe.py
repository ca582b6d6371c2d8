"""The decompose probe: penalty gradients against finite differences, cosines against explicit vectors, bad input."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dyneq.cli.generic import entry, probe_command
from dyneq.errors import DyneqError, UsageError
from dyneq.gradients.agreement import student_interval
from dyneq.probes.decompose_measure import draw_noise
from dyneq.probes.decompose_rules import Reading, read
from dyneq.probes.penalties import registry as penalties
from dyneq.probes.penalties.contribution import bare_gradient
from dyneq.probes.registry import get_probe, run_probe
from dyneq.probes.triangulate_rules import Ends
from dyneq.systems import analytic
from dyneq.systems.adapters import from_map
from dyneq.systems.thick import ThickBlock, ThickConfig

F64 = torch.float64


def bound(seed=0, samples=8, dtype=F64, grad=True, targets=True, **options):
    """A block whose relaxation contracts, on its own next tokens."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"vocabulary": 7, "channels": 8, "heads": 2, "tokens": 5, "resinit": 0.5, "eps": 0.3, **options}
    block = ThickBlock(ThickConfig(**sizes), generator).to(dtype)
    text = torch.randint(7, (samples, 6), generator=generator)
    tokens, following = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    with torch.set_grad_enabled(grad):
        return block.bind(tokens, following if targets else None)


def seeded():
    return torch.Generator().manual_seed(3)


def text_of(ds):
    return " | ".join(f.text for f in get_probe("decompose").summary(ds))


def flat(grouped, groups=None):
    return torch.cat([v.flatten() for g, m in grouped.items() if groups is None or g in groups for v in m.values()])


def test_gradients_do_not_reach_through_the_state_and_absent_parameters_have_zero():
    system = bound(samples=2)
    z = system.initial_state()  # carries the graph of the embedding
    assert z.requires_grad
    for name in penalties.names():
        gradient = bare_gradient(penalties.parse(name), system, z, seeded()).parameters
        assert float(flat(gradient, ["head"]).abs().max()) == 0
    # the branches know the input only through the state, which is held
    gradient = bare_gradient(penalties.parse("jacreg"), system, z, seeded()).parameters
    assert float(flat(gradient, ["emb"]).abs().max()) == 0


#: resreg as its bare measure: neither scaled to the task nor with a dead band.
BARE = "resreg:2.5,scale=absolute,dead=0"


@pytest.fixture(scope="module")
def split():
    system = bound(samples=10)
    ds = run_probe("decompose", system, gradient="bptt6", penalty=(BARE, "jacreg:0.05"), batches=3, draws=1)
    return system, ds


def explicit(system, ds, b):
    """Task and weighted penalty gradients of one batch, each by torch's own differentiation of the whole thing."""
    index = torch.tensor((ds["batch_of_sample"].values == b).nonzero()[0])
    part = system.block.bind(system.tokens[index], system.targets[index], eps=system.eps)
    parameters = [p for members in part.parameter_groups().values() for p in members.values()]
    x = part.block.embed(part.tokens)
    z = x
    for _ in range(6):
        z = z + part.eps * part.block.force(z, x)
    logits = part.block.logits(z).flatten(0, 1)
    task = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, part.targets.flatten()), parameters)
    held = z.detach()
    step = part.eps * part.block.force(held, part.block.embed(part.tokens))
    measure = (step.flatten(1).square().sum(1) / held.flatten(1).square().sum(1)).mean()
    grads = torch.autograd.grad(measure, parameters, allow_unused=True)
    pen = [torch.zeros_like(p) if g is None else 2.5 * g for p, g in zip(parameters, grads, strict=True)]
    return list(task), pen


def test_cosines_and_ratios_are_those_of_explicit_vectors(split):
    system, ds = split
    vectors = [explicit(system, ds, b) for b in range(3)]
    names = [n for members in system.parameter_groups().values() for n in members]
    of = ds["parameter_group"].values
    for g, group in enumerate(ds["group"].values):
        keep = [i for i in range(len(names)) if group in ("all", of[i])]
        tasks = [torch.cat([t[i].flatten() for i in keep]) for t, _ in vectors]
        pens = [torch.cat([p[i].flatten() for i in keep]) for _, p in vectors]
        if float(pens[0].abs().max()) == 0:
            assert group == "head"
            assert float(ds["ratio"][0, g]) == 0
            assert np.isinf(ds["equal_weight"][0, g])
            assert np.isnan(ds["cosine"][0, g])
            continue
        cosine = np.array([float(t @ p / t.norm() / p.norm()) for t, p in zip(tasks, pens, strict=True)])
        logs = np.log([float(p.norm() / t.norm()) for t, p in zip(tasks, pens, strict=True)])
        alone = np.array([float(t @ (t + p) / t.norm() / (t + p).norm()) for t, p in zip(tasks, pens, strict=True)])
        # inner products of some hundred terms: rounding of 1e-13 relative to the norms
        assert float(ds["cosine"][0, g]) == pytest.approx(cosine.mean(), abs=1e-12)
        found = student_interval(cosine)
        np.testing.assert_allclose(
            ds["cosine_interval"][0, g], np.clip([found.low, found.high], -1, 1), rtol=0, atol=1e-11
        )
        assert float(ds["ratio"][0, g]) == pytest.approx(np.exp(logs.mean()), rel=1e-11)
        assert float(ds["equal_weight"][0, g]) == pytest.approx(2.5 / np.exp(logs.mean()), rel=1e-11)
        assert float(ds["cosine_alone"][0, g]) == pytest.approx(alone.mean(), abs=1e-12)
        assert float(ds["task_norm"][g]) == pytest.approx(
            np.exp(np.mean([np.log(float(t.norm())) for t in tasks])), rel=1e-12
        )


def test_shares_add_up_and_task_cosine_is_that_of_the_whole_update(split):
    _, ds = split
    total = ds["share"].sum("penalty") + ds["task_share"]
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)
    # the head has no penalty, so its update is the task's
    assert float(ds["task_cosine"].sel(group="head")) == pytest.approx(1.0, abs=1e-15)
    assert float(ds["task_share"].sel(group="head")) == pytest.approx(1.0, abs=1e-15)
    assert ds["batch_of_sample"].values.tolist().count(-1) == 1
    assert "1 sample left over" in text_of(ds)


def test_the_weight_scales_and_the_equal_weight_makes_norms_equal():
    params = {"gradient": "bptt6", "batches": 3}
    first = run_probe("decompose", bound(), penalty=("resreg:1",), **params)
    weight = float(first["equal_weight"][0, 0])
    second = run_probe("decompose", bound(), penalty=(f"resreg:{weight!r}",), **params)
    assert float(second["ratio"][0, 0]) == pytest.approx(1.0, rel=1e-12)
    np.testing.assert_allclose(second["cosine"], first["cosine"], rtol=1e-12)
    assert second["reading"].values[0] == "undetermined"
    third = run_probe("decompose", bound(), penalty=(f"resreg:{50 * weight!r}",), **params)
    assert third["reading"].values[0] == "takes over"
    assert "takes over the update" in get_probe("decompose").summary(third)[0].text
    low = run_probe("decompose", bound(), penalty=(f"resreg:{1e-3 * weight!r}",), **params)
    assert low["reading"].values[0] == "harmless"


def test_the_hijack_numbers_of_the_log_follow_from_each_other():
    # cos(g_CE, g_jac) = -0.008 and |jr g_jac|/|g_CE| = 3.25 give cos(g_CE, total) = 0.288
    from dyneq.probes.decompose_dataset import _update

    gram = np.array([[[[1.0, -0.008 * 3.25], [-0.008 * 3.25, 3.25**2]]]])
    shares, total, alone = _update(gram)
    assert total[0, 0] == pytest.approx(0.288, abs=1e-3)
    assert alone[0, 0, 0] == pytest.approx(total[0, 0], rel=1e-14)
    assert shares[1, 0, 0] == pytest.approx(1 - shares[0, 0, 0], rel=1e-14)
    assert shares[1, 0, 0] > 0.9


def test_noise_of_random_vectors_is_the_variance_of_the_mean_of_draws():
    vectors = np.random.default_rng(0).normal(size=(5, 7))  # task, two draws of one penalty, three of another
    rows = np.concatenate([vectors, vectors[:1]])

    class Found:
        draws = (2, 3)
        gram = (rows @ rows.T)[None, None]

    for penalty, own in ((0, rows[1:3]), (1, rows[3:6])):
        excess, whole = draw_noise(Found, penalty)[:, 0, 0]
        assert excess == pytest.approx(own.var(0, ddof=1).sum() / len(own), rel=1e-12)
        assert whole == pytest.approx(np.square(own.mean(0)).sum(), rel=1e-12)
    ds = run_probe("decompose", bound(), gradient="bptt6", draws=3, batches=2)
    assert ds["draws"].values.tolist() == [1, 3]
    assert np.isnan(ds["draw_noise"].values[0]).all()
    assert 0 < float(ds["draw_noise"][1, 0]) < 1


@pytest.mark.parametrize("grad", [True, False])
def test_callers_parameters_are_left_bit_for_bit(grad):
    system = bound(grad=grad)
    before = {n: p.detach().clone() for n, p in system.block.named_parameters()}
    marker = torch.ones_like(system.block.ln1.weight)
    system.block.ln1.weight.grad = marker
    with torch.set_grad_enabled(grad):
        run_probe("decompose", system, gradient="adjoint:steps=5,t1=5", batches=2)
    for n, p in system.block.named_parameters():
        assert torch.equal(p, before[n])
        assert p.requires_grad
        assert p.grad is (marker if n == "ln1.weight" else None)


def ends(value, low, high):
    return Ends(value, low, high)


def test_readings():
    one, nothing = ends(0.1, 0.05, 0.2), ends(np.nan, np.nan, np.nan)
    assert read(ends(3, 2, 4), [one]) is Reading.TAKES_OVER
    assert read(ends(1.2, 0.9, 1.5), [one]) is Reading.UNDETERMINED
    assert read(ends(0.5, 0.4, 0.6), [ends(34, 20, 50), one]) is Reading.OVERDRIVES
    assert read(ends(0.5, 0.4, 0.6), [one]) is Reading.NOTICEABLE
    assert read(one, [one]) is Reading.HARMLESS
    assert read(one, [one, nothing]) is Reading.UNDETERMINED  # a group the penalty alone drives
    assert read(ends(0.25, 0.2, 0.35), [one]) is Reading.UNDETERMINED
    assert read(ends(0, 0, 0), [one]) is Reading.SILENT
    assert read(ends(0.1, np.nan, np.nan), [one]) is Reading.UNDETERMINED


def test_single_precision_a_single_sample_and_a_single_batch():
    single, double = (run_probe("decompose", bound(dtype=t), gradient="bptt6", batches=2) for t in (torch.float32, F64))
    np.testing.assert_allclose(single["ratio"], double["ratio"], rtol=1e-3)
    np.testing.assert_allclose(single["cosine"], double["cosine"], atol=1e-3)
    lone = run_probe("decompose", bound(samples=1), gradient="bptt6", batches=1)
    assert np.isnan(lone["cosine_interval"]).all()
    assert lone["reading"].values.tolist() == ["undetermined"] * 2
    assert "one batch gives no interval" in text_of(lone)
    json.dumps(entry("decompose", lone), default=str)
    get_probe("decompose").text(lone)
    get_probe("decompose").plot(lone)


def test_a_converged_state_silences_resreg():
    ds = run_probe("decompose", bound(), gradient="adjoint:steps=200,t1=400", penalty=("resreg:1",), batches=3)
    assert ds["free_residual"].max() < 1e-14
    assert float(ds["ratio"][0, 0]) == 0  # all of it lies within the dead band
    assert ds["reading"].values[0] == "silent"


class Map:
    """A map with parameters and a loss, but no branches."""

    @staticmethod
    def system():
        torch.manual_seed(0)
        cell = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh()).double()
        with torch.no_grad():
            cell[0].weight.mul_(0.3)
        return from_map(cell, 0.1 * torch.ones(4, 3, dtype=F64), loss=lambda z: (z - 1).square().sum(1))


def test_maps_are_decomposed_and_branches_are_missed():
    ds = run_probe("decompose", Map.system(), gradient="bptt3", penalty=("resreg:0.2,dead=0",), batches=2)
    assert ds["group"].values.tolist() == ["all"]
    assert np.isfinite(ds["cosine"].values[0, 0])
    json.dumps(entry("decompose", ds), default=str)
    get_probe("decompose").text(ds)
    with pytest.raises(UsageError, match="declares no branches"):
        run_probe("decompose", Map.system(), gradient="bptt3", penalty=("jacreg",), batches=2)


def test_fused_attention_says_what_it_lacks():
    with pytest.raises(DyneqError, match="plain form of attention"):
        run_probe("decompose", bound(attention="fused"), gradient="bptt3", penalty=("jacreg",), batches=2)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"penalty": ()}, "no penalty"),
        ({"penalty": ("jacregg",)}, "did you mean 'jacreg'"),
        ({"penalty": ("jacreg:0.1", "jacreg:0.2")}, "given twice"),
        ({"penalty": ("jacreg:-1",)}, "greater than 0, but found '-1'"),
        ({"penalty": ("jacreg:nan",)}, "weight: input should be a finite number, but found 'nan'"),
        ({"penalty": ("jacreg:",)}, "write it like jacreg:0.1"),
        ({"penalty": ("jacreg:much",)}, "valid number, .* but found 'much'"),
        ({"gradient": "bppt3"}, "no gradient estimator"),
        ({"batches": 5, "samples": 4}, "disjoint batches"),
        ({"batches": 9}, "disjoint batches"),
    ],
)
def test_bad_parameters_are_sentences(params, words):
    with pytest.raises(UsageError, match=words):
        run_probe("decompose", bound(), **{"gradient": "bptt3", **params})


def test_specs_state_weights_or_leave_them_to_the_default():
    assert penalties.split(" jacreg : 0.25 ") == ("jacreg", {"weight": "0.25"})
    assert penalties.parse("resreg").weight == 0.2
    assert penalties.parse("floss:0.5, steps=8").params.steps == 8


def test_what_has_no_loss_or_no_parameters_is_refused():
    with pytest.raises(UsageError, match="needs a loss"):
        run_probe("decompose", bound(targets=False))
    with pytest.raises(UsageError, match="needs a loss"):
        run_probe("decompose", analytic.FlipFlow())
    bare = from_map(lambda z: 0.5 * z, torch.ones(4, 2, dtype=F64), loss=lambda z: z.sum(1))
    with pytest.raises(DyneqError, match="declares none"):
        run_probe("decompose", bare, gradient="bptt3", penalty=("resreg",))


def test_variables_are_described_and_results_read(split):
    _, ds = split
    for name, variable in ds.data_vars.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs, name
    assert ds["ratio"].attrs["ancillary_variables"] == "ratio_error"
    document = entry("decompose", ds)
    json.dumps(document, default=str)
    assert [p["penalty"] for p in document["penalties"]] == ["resreg", "jacreg"]
    assert "k by group" in get_probe("decompose").text(ds)
    assert get_probe("decompose").summary(ds)[0].text.startswith("beside bptt6: ")
    figure = get_probe("decompose").plot(ds)
    assert len(figure.axes) == 2
    with pytest.raises(UsageError, match="two axes"):
        get_probe("decompose").plot(ds, ax=[figure.axes[0]])


def test_the_command_offers_the_options():
    shown = CliRunner().invoke(probe_command("decompose"), ["--help"]).output
    for option in ("--gradient", "--penalty", "--batches", "--draws", "--seed"):
        assert option in shown
