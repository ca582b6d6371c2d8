"""The lrsweep probe: steps against re-training by hand, slopes against finite differences, verdicts, bad input."""

import copy
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dyneq.cli.generic import entry, probe_command
from dyneq.dynamics.relax import relax
from dyneq.errors import DyneqError, UsageError
from dyneq.gradients.agreement import student_interval
from dyneq.probes.lrsweep_rules import Place, Verdict, _best, at_vertex, judge
from dyneq.probes.registry import get_probe, run_probe
from dyneq.probes.stepped_weights import stepped
from dyneq.systems import analytic
from dyneq.systems.adapters import from_map
from dyneq.systems.block import BoundBlock
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


class Overflowing(BoundBlock):
    """A block whose first sample of the whole batch starts beyond what floats hold."""

    def __init__(self, block, tokens, targets, eps):
        super().__init__(block, tokens, targets, eps)
        self.bad = torch.zeros(len(tokens), dtype=torch.bool)
        self.bad[0] = True
        self.x = torch.where(self.bad[:, None, None], 1e200, self.x)

    def select(self, samples):
        copied = BoundBlock(self.block, self.tokens[samples], self.targets[samples], self.eps)
        copied.__class__ = Overflowing
        copied.bad = self.bad[samples]
        copied.x = torch.where(copied.bad[:, None, None], 1e200, copied.x)
        return copied


def text_of(ds):
    return " | ".join(f.text for f in get_probe("lrsweep").summary(ds))


def unrolled(system, parameters, depth):
    """The loss of every sample after plain Euler steps, differentiable by torch's own rules."""
    z = system.block.embed(system.tokens)
    x = z
    for _ in range(depth):
        z = z + system.eps * system.block.force(z, x)
    logits = system.block.logits(z)
    lost = torch.nn.functional.cross_entropy(logits.flatten(0, 1), system.targets.flatten(), reduction="none")
    return lost.view(system.targets.shape).mean(1)


@pytest.fixture(scope="module")
def swept():
    system = bound()
    ds = run_probe("lrsweep", system, gradient=("bptt30", "adjoint:solver=gmres", "ep"), lr=(1e-6, 0.1, 0.5, 3.0, 10.0))
    return system, ds


def test_changes_are_those_of_a_step_taken_by_hand(swept):
    system, ds = swept
    used = torch.tensor((ds["sample_role"].values == "batch").nonzero()[0])
    part = system.select(used)
    parameters = list(part.block.parameters())
    before = unrolled(part, parameters, 30)
    gradient = torch.autograd.grad(before.mean(), parameters)
    for i, rate in enumerate(ds["lr"].values):
        trained = copy.deepcopy(system.block)
        with torch.no_grad():
            for p, g in zip(trained.parameters(), gradient, strict=True):
                p -= rate * g
            after = unrolled(trained.bind(part.tokens, part.targets, eps=part.eps), None, 30)
        change = (after - before).detach().numpy()
        found = (ds["loss"].values[0, i] - ds["base_loss"].values)[used.numpy()]
        # the gradient is a sum in another order: relative rounding of 1e-13 at most, times a change of order 1
        np.testing.assert_allclose(found, change, rtol=1e-12, atol=1e-12)
        expected = student_interval(change)
        assert float(ds["change"].sel(part="batch").values[0, i]) == pytest.approx(change.mean(), rel=1e-12, abs=1e-12)
        ends = ds["change_interval"].sel(part="batch").values[0, i]
        np.testing.assert_allclose(ends, [expected.low, expected.high], rtol=1e-11, atol=1e-11)


def test_heldout_samples_are_others_and_measured_at_the_same_weights(swept):
    system, ds = swept
    role = ds["sample_role"].values
    assert (role == "batch").sum() == (role == "heldout").sum() == 4
    held = torch.tensor((role == "heldout").nonzero()[0])
    part = system.select(torch.tensor((role == "batch").nonzero()[0]))
    gradient = torch.autograd.grad(unrolled(part, None, 30).mean(), list(system.block.parameters()))
    trained = copy.deepcopy(system.block)
    with torch.no_grad():
        for p, g in zip(trained.parameters(), gradient, strict=True):
            p -= 0.5 * g
    other = trained.bind(system.tokens[held], system.targets[held], eps=system.eps)
    expected = (unrolled(other, None, 30) - unrolled(system.select(held), None, 30)).mean().item()
    assert float(ds["change"].sel(part="heldout", lr=0.5).values[0]) == pytest.approx(expected, abs=1e-12)


def test_slope_of_the_exact_gradient_is_its_squared_norm_and_is_reached(swept):
    _, ds = swept
    norm = float(ds["gradient_norm"][0])
    assert float(ds["slope"][0]) == pytest.approx(-(norm**2), rel=1e-13)
    assert float(ds["promise"][0]) == pytest.approx(-(norm**2), rel=1e-13)
    assert float(ds["exact_cosine"][0]) == pytest.approx(1.0, abs=1e-13)
    # at lr h the change is slope h + O(h^2); rounding of the loss, 1e-16, over h = 1e-6
    for e in range(3):
        slope = float(ds["slope"][e])
        measured = float(ds["change"].sel(part="batch").values[e, 0]) / 1e-6
        assert abs(measured - slope) <= 1e-4 * abs(slope) + 1e-9


def test_departure_from_first_order_is_of_second_order():
    ds = run_probe("lrsweep", bound(), gradient=("adjoint:solver=gmres,t1=150",), lr=(1e-3, 2e-3, 4e-3, 8e-3))
    rest = np.abs(ds["change"].sel(part="batch").values[0] - ds["foretold"].values[0])
    order = np.polyfit(np.log(ds["lr"].values), np.log(rest), 1)[0]
    assert 1.95 < order < 2.05
    # at 150 steps of 0.3 the state is a root, so the adjoint is exact, and its promise is kept
    assert float(ds["slope"][0]) == pytest.approx(float(ds["promise"][0]), rel=1e-8)


@pytest.mark.parametrize("grad", [True, False])
def test_callers_parameters_are_left_bit_for_bit(grad):
    system = bound(grad=grad)
    block = system.block
    marker = torch.ones_like(block.head.weight)
    block.head.weight.grad = marker
    before = {n: p.detach().clone() for n, p in block.named_parameters()}
    identity = {n: id(p) for n, p in block.named_parameters()}
    x = system.x.detach().clone()
    with torch.set_grad_enabled(grad):
        run_probe("lrsweep", system, gradient=("bptt5", "aep"), lr=(0.1, 50.0))
    for n, p in block.named_parameters():
        assert torch.equal(p, before[n])
        assert id(p) == identity[n]
        assert p.requires_grad
        assert p.grad is (marker if n == "head.weight" else None)
    assert torch.equal(marker, torch.ones_like(marker))
    assert torch.equal(system.x, x)
    assert system.block is block


def test_no_step_changes_nothing_and_weights_move_by_the_step():
    system = bound()
    same = stepped(system)
    assert torch.equal(same.loss(relax(same, 20).z), system.loss(relax(system, 20).z))
    direction = {"head": {"head.weight": torch.ones_like(system.block.head.weight)}}
    moved = stepped(system, direction, 0.25)
    assert torch.equal(moved.block.head.weight, system.block.head.weight - 0.25)
    assert torch.equal(moved.block.tok.weight, system.block.tok.weight)
    direction = {"emb": {"tok.weight": torch.ones_like(system.block.tok.weight)}}
    torch.testing.assert_close(stepped(system, direction, 0.5).initial_state(), system.x - 0.5)  # embedded anew


def test_normalised_steps_have_one_length():
    params = {"gradient": ("bptt30", "phantom1"), "lr": (0.3,), "heldout": 0.0}
    raw = run_probe("lrsweep", bound(), **params)
    ratio = float(raw["gradient_norm"][0] / raw["gradient_norm"][1])
    assert abs(ratio - 1) > 0.05
    same = run_probe("lrsweep", bound(), **params, direction="normalised")
    assert float(same["scale"][1]) == pytest.approx(ratio, rel=1e-12)
    by_hand = run_probe("lrsweep", bound(), **{**params, "lr": (0.3 * ratio,)})
    assert float(same["change"][0, 1, 0]) == pytest.approx(float(by_hand["change"][0, 1, 0]), abs=1e-12)
    assert float(same["change"][0, 0, 0]) == float(raw["change"][0, 0, 0])
    assert same["part"].values.tolist() == ["batch"]


def test_a_blown_step_is_marked_and_never_the_best():
    system = bound(samples=4)
    ds = run_probe("lrsweep", system, gradient=("bptt20",), lr=(0.2, 1e200), heldout=0.0)
    assert ds["blown_up"].values[0].tolist() == [0, 4]
    assert np.isnan(ds["change"].values[0, 0, 1])
    assert float(ds["best_lr"][0]) == 0.2
    assert "diverge after the step (at lr 1e+200)" in text_of(ds)
    assert " x4" in get_probe("lrsweep").text(ds)
    json.dumps(entry("lrsweep", ds), default=str)
    get_probe("lrsweep").plot(ds)


def test_samples_that_diverge_before_the_step_are_left_out_and_named():
    system = bound(samples=6)
    broken = Overflowing(system.block, system.tokens, system.targets, 0.3)
    ds = run_probe("lrsweep", broken, lr=(0.1,), gradient=("bptt10",))
    assert ds["sample_role"].values[0] == "left out"
    assert (ds["sample_role"].values == "left out").sum() == 1
    assert np.isfinite(ds["change"].values).all()
    assert "left out: sample 0" in text_of(ds)
    with pytest.raises(DyneqError, match="1 of 1 diverged"):
        run_probe("lrsweep", broken.select(torch.tensor([0])), lr=(0.1,), gradient=("bptt10",))


def fake(change, inner=None):
    """A sweep of given changes ``[estimator, lr, sample]``."""

    class Found:
        lr = 10.0 ** np.arange(change.shape[1])
        refusal = [""] * len(change)
        scale = np.ones(len(change))

    Found.inner = np.ones(len(change)) if inner is None else np.array(inner)
    return Found


def parabola(best, depth, rates=4, samples=6, spread=0.02):
    x = 10.0 ** np.arange(rates)
    noise = 1 + spread * np.linspace(-1, 1, samples)
    return depth * ((x / best - 1) ** 2 - 1)[:, None] * noise


def test_verdicts():
    first = parabola(10.0, 1.0)
    cases = {
        Verdict.DIRECTION: parabola(10.0, 0.3),
        Verdict.AS_FAR: parabola(10.0, 0.99),
        Verdict.LEARNING_RATE: parabola(100.0, 1.0),
        Verdict.FARTHER: parabola(10.0, 2.0),
        Verdict.UNDETERMINED: parabola(1000.0, 0.3),  # its best lies at the end of the grid
    }
    for verdict, other in cases.items():
        change = np.stack([first, other])
        judged = judge(change, fake(change))
        assert judged[0].verdict is Verdict.FIRST
        assert judged[1].verdict is verdict, verdict
    change = np.stack([first, first])
    assert judge(change, fake(change, [1.0, -1.0]))[1].verdict is Verdict.UPHILL
    # lags on the grid, but only because no rate of it is near its best: a finer grid would close the gap
    between = parabola(30.0, 1.0)
    change = np.stack([first, between])
    judged = judge(change, fake(change))[1]
    assert judged.lag.low > 0
    assert judged.verdict is Verdict.UNDETERMINED
    noisy = np.stack([first, parabola(10.0, 0.9) + np.array([1, -1, 1, -1, 1, -1.0])])
    assert judge(noisy, fake(noisy))[1].verdict is Verdict.UNDETERMINED
    lone = np.stack([first, first])[:, :, :1]
    assert judge(lone, fake(lone))[1].verdict is Verdict.UNDETERMINED  # one sample gives no interval


def test_vertex_of_a_parabola_is_found_exactly():
    x = np.array([1.0, 2.0, 5.0, 10.0])
    rows = np.stack([2.0 * (x - 3.1) ** 2 - 7.0, (x - 3.1) ** 2 - 5.0], axis=1)
    np.testing.assert_allclose(at_vertex(rows, x, 1), [-7.0, -5.0], rtol=1e-12)
    assert np.isnan(at_vertex(rows, x, 0)).all()
    assert np.isnan(at_vertex(np.where(x[:, None] > 4, np.nan, rows), x, 1)).all()
    assert _best(np.full((3, 2), np.nan)) == (-1, Place.NONE)
    assert _best(rows[:1]) == (0, Place.SINGLE)


def test_faithful_gradients_descend_as_far_and_reversed_ones_point_uphill(swept, monkeypatch):
    _, ds = swept
    verdicts = dict(zip(ds["estimator"].values, ds["verdict"].values, strict=True))
    assert verdicts["adjoint:solver=gmres"] == "as far"
    from dyneq.gradients.phantom import Phantom

    plain = Phantom.gradient

    def reversed_gradient(self, system):
        found = plain(self, system)
        for members in found.parameters.values():
            for n in members:
                members[n] = -members[n]
        return found

    monkeypatch.setattr(Phantom, "gradient", reversed_gradient)
    other = run_probe("lrsweep", bound(), gradient=("bptt30", "phantom20"), lr=(0.01, 0.1, 1.0, 3.0))
    assert other["verdict"].values[1] == "uphill"
    assert float(other["slope"][1]) > 0
    assert "points uphill" in text_of(other)


def test_single_rate_and_ends_of_the_grid_are_said():
    ds = run_probe("lrsweep", bound(), gradient=("bptt20", "phantom1"), lr=(1e-3,))
    assert "a single learning rate was tried" in text_of(ds)
    assert ds["verdict"].values[1] == "undetermined"
    ds = run_probe("lrsweep", bound(), gradient=("bptt20",), lr=(1e-4, 1e-3))
    assert "best at the highest rate tried" in text_of(ds)


def test_single_precision_and_a_batch_of_one():
    ds = run_probe("lrsweep", bound(dtype=torch.float32), gradient=("bptt20", "aep"), lr=(0.1, 1.0))
    exact = run_probe("lrsweep", bound(), gradient=("bptt20",), lr=(0.1, 1.0))
    # weights drawn in single precision are those of the double block: losses agree to single rounding
    np.testing.assert_allclose(ds["change"].values[:, 0], exact["change"].values[:, 0], atol=1e-5)
    lone = run_probe("lrsweep", bound(samples=1), gradient=("bptt20",), lr=(0.1, 1.0))
    assert lone["part"].values.tolist() == ["batch"]
    assert np.isnan(lone["change_interval"].values).all()
    assert "too small for intervals" in text_of(lone)
    get_probe("lrsweep").text(lone)
    get_probe("lrsweep").plot(lone)


def test_an_estimator_that_refuses_is_a_row_with_its_reason(monkeypatch):
    from dyneq.gradients.phantom import Phantom

    def refuse(self, system):
        raise DyneqError("nothing to be had")

    monkeypatch.setattr(Phantom, "gradient", refuse)
    ds = run_probe("lrsweep", bound(), gradient=("bptt10", "phantom1"), lr=(0.1, 1.0))
    assert ds["refusal"].values.tolist() == ["", "nothing to be had"]
    assert np.isnan(ds["change"].values[:, 1]).all()
    assert "phantom1: refused: nothing to be had" in text_of(ds)
    json.dumps(entry("lrsweep", ds), default=str)
    with pytest.raises(DyneqError, match="the first gradient, phantom1, cannot be computed"):
        run_probe("lrsweep", bound(), gradient=("phantom1",), lr=(0.1,))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"lr": (0.0,)}, "positive and finite"),
        ({"lr": (-1.0, 0.1)}, "positive and finite"),
        ({"lr": (float("inf"),)}, "positive and finite"),
        ({"lr": (0.1, 0.1)}, "given twice"),
        ({"lr": ()}, "no learning rate"),
        ({"gradient": ()}, "no gradient"),
        ({"gradient": ("bptt30", "bptt:steps=30")}, "one and the same"),
        ({"gradient": ("bptt30", "aep", "aep")}, "one and the same|twice"),
        ({"gradient": ("bppt30",)}, "no gradient estimator"),
        ({"heldout": 1.0}, "heldout"),
        ({"direction": "sideways"}, "direction"),
    ],
)
def test_bad_parameters_are_sentences(params, words):
    with pytest.raises(UsageError, match=words):
        run_probe("lrsweep", bound(), **params)


def test_what_has_no_loss_or_cannot_be_bound_again_is_refused():
    with pytest.raises(UsageError, match="needs a loss"):
        run_probe("lrsweep", bound(targets=False))
    with pytest.raises(UsageError, match="needs a loss"):
        run_probe("lrsweep", analytic.FlipFlow())
    cell = from_map(torch.nn.Linear(2, 2), torch.zeros(3, 2), loss=lambda z: z.square().sum(1))
    with pytest.raises(DyneqError, match="is no block bound to tokens"):
        run_probe("lrsweep", cell)
    system = bound()
    system.block.head.weight.requires_grad_(False)
    with pytest.raises(DyneqError, match="frozen"):
        run_probe("lrsweep", system, lr=(0.1,))


def test_variables_are_described_and_results_read(swept):
    _, ds = swept
    for name, variable in ds.data_vars.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs, name
    assert ds["change"].attrs["ancillary_variables"] == "change_error"
    mean = ds["change"].sel(part="heldout").values[0]
    lowest = f"(lowest at lr {ds['lr'].values[mean.argmin()]:g}: "
    assert (lowest in text_of(ds)) == (ds["lr"].values[mean.argmin()] != ds["best_lr"].values[0])
    document = entry("lrsweep", ds)
    json.dumps(document, default=str)
    assert [g["gradient"] for g in document["gradients"]] == ds["estimator"].values.tolist()
    text = get_probe("lrsweep").text(ds)
    assert all(str(e) in text for e in ds["estimator"].values)
    assert get_probe("lrsweep").summary(ds)[0].text.startswith("one step on 4 samples: bptt30 changes the loss by -")
    figure = get_probe("lrsweep").plot(ds)
    assert len(figure.axes) == 2
    with pytest.raises(UsageError, match="two axes"):
        get_probe("lrsweep").plot(ds, ax=[figure.axes[0]])


def test_the_command_offers_the_options():
    shown = CliRunner().invoke(probe_command("lrsweep"), ["--help"]).output
    for option in ("--gradient", "--lr", "--direction", "--heldout", "--seed"):
        assert option in shown
