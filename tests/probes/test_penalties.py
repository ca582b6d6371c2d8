"""Penalties: gradients against finite differences, dead bands, scaling, sub-batches, and the probes' own numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyneq.dynamics.relax import relax
from dyneq.dynamics.residuals import residuals
from dyneq.dynamics.roots import find_root
from dyneq.errors import UsageError
from dyneq.probes.penalties import registry
from dyneq.probes.penalties.base import hinge
from dyneq.probes.penalties.contribution import bare_gradient, contribution, grouped_norm
from dyneq.probes.penalties.jacreg import Jacreg, JacregParams
from dyneq.probes.registry import run_probe
from dyneq.systems.analytic.linear import LinearFlow
from tests.dynamics.conftest import build

F64 = torch.float64


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def flat(grouped):
    return torch.cat([v.flatten() for members in grouped.values() for v in members.values()])


def direction_of(system, seed=1):
    generator = seeded(seed)
    parameters = [p for members in system.parameter_groups().values() for p in members.values()]
    return parameters, [torch.randn(p.shape, generator=generator, dtype=F64) for p in parameters]


def slope_of(value, parameters, direction, h=1e-4):
    """Fourth-order central difference of ``value()`` along a direction of the parameters."""

    def at(shift):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=shift)
            found = value()
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=shift)
        return found

    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


def derivatives_of(system, penalty, z, h=1e-4):
    """The penalty's derivative along a direction of the parameters, its difference there, its value, and its gradient.

    The state is frozen.
    """
    found = bare_gradient(penalty, system, z, seeded())
    parameters, direction = direction_of(system)

    def value():
        moved = system.block.bind(system.tokens, system.targets, eps=system.eps)
        return float(penalty.measure(moved, z, seeded()).value.detach().mean())

    along = float(flat(found.parameters) @ torch.cat([d.flatten() for d in direction]))
    return along, slope_of(value, parameters, direction, h), value(), found


#: Specs under which the term is active at the states below.
ACTIVE = [
    "resreg",
    "resreg:through=5,dead=1e-6",
    "floss:margin=2",
    "floss:margin=2,rest=1e-3,full=30",  # every sample's share is between 0 and 1
    "floss:margin=5,tangents=2,steps=5",
    "spectral:further=0,bound=0.5",
    "jacreg",
    "jacreg:vectors=3",
]


@pytest.mark.parametrize("spec", ACTIVE)
def test_gradients_are_finite_differences_at_the_frozen_state(spec):
    system, penalty = build(gain=2.0), registry.parse(spec)
    along, slope, value, found = derivatives_of(system, penalty, relax(system, 7).z.detach())
    assert abs(along) > 1e-4
    # h^4 = 1e-16 times a fifth derivative of the order of 1e6 for eigenvalues; rounding 1e-13/h
    assert abs(slope - along) <= 1e-7 * abs(along)
    assert float(found.value) == pytest.approx(value, rel=1e-12)
    assert penalty.random == (spec.startswith("jacreg"))


def test_the_total_form_is_the_derivative_at_the_resolved_root():
    system = build(samples=2)
    penalty = registry.parse("spectral:further=0,bound=0.5,form=total,tol=1e-13")
    z = find_root(system).z.detach()
    assert float(residuals(system, z).force.detach().max()) < 1e-13
    total = flat(bare_gradient(penalty, system, z, seeded()).parameters)
    frozen = flat(bare_gradient(registry.parse("spectral:further=0,bound=0.5"), system, z, seeded()).parameters)
    parameters, direction = direction_of(system)

    def value():
        moved = system.block.bind(system.tokens, system.targets, eps=system.eps)
        root = find_root(moved).z
        assert float(residuals(moved, root).force.detach().max()) < 1e-13
        return float(penalty.measure(moved, root, seeded()).value.detach().mean())

    along = torch.cat([d.flatten() for d in direction])
    expected = float(total @ along)
    assert abs(slope_of(value, parameters, direction) - expected) <= 1e-6 * abs(expected)
    assert abs(float(frozen @ along) - expected) > 1e-2 * abs(expected)  # the root's own motion is no small matter


def test_the_total_form_reports_the_same_value():
    system = build(samples=2)
    z = relax(system, 50).z.detach()
    frozen, total = (
        bare_gradient(registry.parse(f"spectral:further=0,bound=0.5,form={form}"), system, z, seeded())
        for form in ("frozen", "total")
    )
    assert float(total.value) == pytest.approx(float(frozen.value), rel=1e-14)


@pytest.mark.parametrize(
    ("spec", "depth"),
    [
        ("resreg", 400),  # force residual far below 7e-3
        ("resreg:dead=1e9", 7),
        ("resreg:dead=1e9,through=5", 7),
        ("floss", 400),  # at rest
        ("floss:margin=-50", 7),  # contracts well enough
        ("floss:margin=-50,tangents=2", 7),
        ("spectral:further=0,bound=5", 7),
    ],
)
def test_within_the_dead_band_value_and_gradient_are_exactly_zero(spec, depth):
    system = build()
    found = bare_gradient(registry.parse(spec), system, relax(system, depth).z.detach(), seeded())
    assert float(found.value) == 0
    assert float(flat(found.parameters).abs().max()) == 0
    assert float(found.severity) == 0


def test_floss_counts_a_sample_by_its_distance_from_rest():
    system = build()
    penalty = registry.parse("floss:margin=50,rest=1e-4,full=1e-2")  # the hinge is open for all
    for depth in (5, 40, 80):
        z = relax(system, depth).z.detach()
        found, force = penalty.measure(system, z, seeded()), residuals(system, z).force.detach()
        share = ((force - 1e-4) / (1e-2 - 1e-4)).clamp(0, 1)
        torch.testing.assert_close(found.value.detach(), share * (found.measure + 50), rtol=1e-10, atol=0)
    resting = ((force > 1e-9) & (force < 1e-4)).nonzero().flatten()  # far above rounding, and at rest for the penalty
    assert len(resting)
    part = bare_gradient(penalty, system.select(resting), z[resting], seeded())
    assert float(flat(part.parameters).abs().max()) == 0


def test_measures_are_those_that_probes_report():
    system = build(gain=2.0)
    z = relax(system, 60).z.detach()

    def measure(spec):
        return registry.parse(spec).measure(system, z, seeded(0)).measure.detach()

    residual = run_probe("residual", system, depth=(60,))
    torch.testing.assert_close(measure("resreg"), torch.from_numpy(residual["resreg"].values[0]), rtol=1e-12, atol=0)
    later = run_probe("residual", system, depth=(72,))
    found = measure("resreg:through=12,dead=0")
    torch.testing.assert_close(found, torch.from_numpy(later["resreg"].values[0]), rtol=1e-9, atol=0)
    ftle = run_probe("ftle", system, depth=60, horizon=40, rate_steps=12)
    torch.testing.assert_close(measure("floss"), torch.from_numpy(ftle["contraction_rate"].values), rtol=1e-11, atol=0)
    spectrum = run_probe("spectrum", system, depth=(60,), numerical_abscissa=False)
    radius = torch.from_numpy(spectrum["spectral_radius"].values.ravel())
    torch.testing.assert_close(measure("spectral:further=0"), radius, rtol=1e-10, atol=0)
    deeper = run_probe("spectrum", system, depth=(100,), numerical_abscissa=False)
    radius = torch.from_numpy(deeper["spectral_radius"].values.ravel())
    torch.testing.assert_close(measure("spectral:further=40"), radius, rtol=1e-10, atol=0)


def test_a_task_scaled_term_has_its_share_of_the_tasks_norm():
    system = build(gain=2.0)
    z = relax(system, 7).z.detach()
    severity = float((residuals(system, z).force.detach() / 0.2).clamp(max=1).mean())
    added = contribution(registry.parse("resreg:0.3"), system, z, torch.tensor(5.0, dtype=F64), seeded(), share=0.5)
    assert float(grouped_norm(added.parameters)) == pytest.approx(0.3 * 0.5 * 5.0 * severity, rel=1e-12)
    bare = flat(bare_gradient(registry.parse("resreg"), system, z, seeded()).parameters)
    assert float(torch.cosine_similarity(flat(added.parameters), bare, dim=0)) == pytest.approx(1, abs=1e-12)
    silent = contribution(registry.parse("resreg:dead=1e9"), system, z, torch.tensor(5.0, dtype=F64), seeded())
    assert float(grouped_norm(silent.parameters)) == 0


@pytest.mark.parametrize("spec", ["resreg:dead=0", "resreg:dead=0,through=3"])
def test_a_sample_that_overflows_leaves_resreg_to_the_others(spec):
    system, z = build(samples=3, gain=2.0), relax(build(samples=3, gain=2.0), 7).z.detach()
    z[1] = torch.inf
    found = bare_gradient(registry.parse(spec), system, z, seeded())
    others = torch.tensor([0, 2])
    part = bare_gradient(registry.parse(spec), system.select(others), z[others], seeded())
    torch.testing.assert_close(flat(found.parameters), flat(part.parameters) * 2 / 3, rtol=1e-12, atol=1e-16)
    assert float(flat(found.parameters).norm()) > 0
    torch.testing.assert_close(found.measure[others], part.measure, rtol=1e-14, atol=0)
    assert found.measure.isnan().tolist() == [False, True, False]
    alone = bare_gradient(registry.parse(spec), system.select(torch.tensor([1])), z[1:2], seeded())
    assert float(alone.value) == 0
    assert float(flat(alone.parameters).abs().max()) == 0


def test_a_sample_that_overflows_on_its_way_through_further_steps_adds_nothing():
    matrices = torch.tensor([[[2.0]], [[1e60]], [[3.0]]], dtype=F64)
    system, z = LinearFlow(matrices, torch.ones(3, 1, dtype=F64), eps=1.0), torch.ones(3, 1, dtype=F64)
    assert residuals(system, z).force.isfinite().all()
    found = registry.parse("resreg:through=3").measure(system, z, seeded())
    assert found.value.tolist() == [4.0, 0.0, 9.0]  # (eps a)^2, at any depth
    assert found.measure.isnan().tolist() == [False, True, False]
    assert float(found.severity) == 1.0  # it is as late as the others


@pytest.mark.parametrize("big", [3e30, 1.0, 1e-22, 3e-30])
def test_the_norm_of_a_gradient_is_finite_wherever_its_entries_are(big):
    gradient = {"a": {"w": torch.full((3, 4), big)}, "b": {"v": torch.tensor([-2 * big])}}
    assert float(grouped_norm(gradient)) == pytest.approx(4 * big, rel=1e-6)
    gradient["b"]["v"] = torch.tensor([torch.inf])
    assert not math.isfinite(float(grouped_norm(gradient)))


def test_a_limit_bounds_the_norm_and_keeps_the_direction():
    system = build(gain=2.0)
    z = relax(system, 7).z.detach()
    bare = flat(bare_gradient(registry.parse("jacreg"), system, z, seeded()).parameters)
    task = torch.tensor(0.5 * float(bare.norm()), dtype=F64)
    free, bound, loose = (
        contribution(registry.parse(f"jacreg:1{limit}"), system, z, task, seeded())
        for limit in ("", ",limit=0.4", ",limit=3")
    )
    torch.testing.assert_close(flat(free.parameters), bare, rtol=1e-14, atol=0)
    torch.testing.assert_close(flat(loose.parameters), bare, rtol=1e-14, atol=0)
    torch.testing.assert_close(flat(bound.parameters), bare * (0.4 * task / bare.norm()), rtol=1e-13, atol=1e-16)


def test_a_sub_batch_is_the_mean_over_its_own_samples():
    system = build(samples=5, gain=2.0)
    z = relax(system, 7).z.detach()
    penalty = registry.parse("resreg:weight=2,scale=absolute,samples=2")
    drawn = torch.randperm(5, generator=seeded(9))[:2].sort().values
    found = contribution(penalty, system, z, torch.ones((), dtype=F64), seeded(9))
    part = bare_gradient(penalty, system.select(drawn), z[drawn], seeded())
    torch.testing.assert_close(flat(found.parameters), 2 * flat(part.parameters), rtol=1e-13, atol=0)
    assert len(found.measure) == 2
    everything = registry.parse("resreg:weight=2,scale=absolute,samples=50")
    assert len(contribution(everything, system, z, torch.ones((), dtype=F64), seeded()).measure) == 5


def test_a_sample_that_blew_up_spoils_no_other():
    system = build(samples=3)
    z = relax(system, 7).z.detach()
    z[1] = torch.inf
    found = bare_gradient(registry.parse("spectral:further=0,bound=0.5"), system, z, seeded())
    assert bool(torch.isfinite(flat(found.parameters)).all())
    assert found.measure.isnan().tolist() == [False, True, False]


def test_the_controller_multiplies_by_a_power_of_the_residual_between_its_bounds():
    controller = Jacreg(
        JacregParams(weight=1, controller="residual", target=1e-3, smoothing=0, floor=0.5, ceiling=4, gain=0.3)
    )
    controller.observe(2e-3)
    assert controller.weight == pytest.approx(2**0.3, rel=1e-14)
    controller.observe(1e-3)
    assert controller.weight == pytest.approx(2**0.3, rel=1e-14)
    for _ in range(20):
        controller.observe(math.nan)
    assert controller.weight == 4
    for _ in range(20):
        controller.observe(0.0)
    assert controller.weight == 0.5
    smooth = Jacreg(JacregParams(weight=1, controller="residual", target=1e-3, smoothing=0.75, gain=1, ceiling=100))
    smooth.observe(1e-3)
    smooth.observe(5e-3)
    assert smooth.weight == pytest.approx(0.75 * 1 + 0.25 * 5, rel=1e-14)
    copy = Jacreg(smooth.params)
    copy.restore(smooth.state())
    for one in (smooth, copy):
        one.observe(3e-3)
    assert copy.weight == smooth.weight
    frozen = Jacreg(JacregParams(weight=0.1))
    frozen.observe(1.0)
    assert frozen.weight == 0.1


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 7), st.integers(0, 20), st.none() | st.integers(1, 60))
def test_schedules_begin_rise_and_end(start, every, ramp, lasting):
    until = None if lasting is None else start + lasting
    options = {"start": start, "every": every, "ramp": ramp} | ({} if until is None else {"until": until})
    params = registry.build("floss", options).params
    factors = [params.factor(step) for step in range(1, 80)]
    for step, factor in enumerate(factors, start=1):
        since = step - start
        if since < 1 or (until is not None and step > until) or (since - 1) % every:
            assert factor == 0
        else:
            assert factor == (min(1.0, since / ramp) if ramp else 1.0)
        assert factor in (0, params.share(step))


def test_hinges_pass_no_gradient_where_they_rest():
    x = torch.tensor([-1.0, 0.0, 2.0, math.nan], requires_grad=True)
    hinge(x).sum().backward()
    assert hinge(x).tolist() == [0, 0, 2, 0]
    assert x.grad.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("flos", "did you mean 'floss'"),
        ("floss:stps=3", "no option 'stps'; did you mean 'steps'"),
        ("floss:start=5,until=5", "until=5 should be above start=5"),
        ("floss:steps=0", "steps: input should be greater than 0, but found '0'"),
        ("floss:steps", "weight: input should be a valid number"),
        ("floss:0.1,8", "'8' in it is neither"),
        ("floss:weight=1,weight=2", "'weight' twice"),
        ("floss:rest=1,full=0.5", "should be below full"),
        ("jacreg:controller=residual,weight=100", "between floor 0.1 and ceiling 16"),
        ("spectral:form=half", "'frozen' or 'total'"),
        ("resreg:inf", "finite number"),
    ],
)
def test_bad_specs_are_sentences(spec, words):
    with pytest.raises(UsageError, match=words):
        registry.parse(spec)


def test_what_is_held_is_the_rayleigh_quotient_of_the_present_weights():
    system = build(samples=2)
    penalty = registry.parse("spectral:further=30,bound=0.5,refresh=3")
    z = relax(system, 20).z.detach()
    parameters, direction = direction_of(system)

    def applied(by):
        return float(by.apply(system, z, seeded()).value.detach().mean())

    first = applied(penalty)
    assert first == pytest.approx(float(penalty.measure(system, z, seeded()).value.detach().mean()), rel=1e-13)
    errors = []
    for h in (1e-2, 5e-3):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=h)
        moved = system.block.bind(system.tokens, system.targets, eps=system.eps)
        penalty._held.age = 0
        held = applied(penalty)
        exact = registry.parse("spectral:further=0,bound=0.5").measure(moved, penalty._held.z, seeded())
        errors.append(abs(held - float(exact.value.detach().mean())))
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=h)
    assert errors[0] > 1e-9
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.4)  # of second order in the change of weights


def test_what_is_held_counts_samples_that_are_lost_as_nothing():
    system = build(samples=3)
    z = relax(system, 20).z.detach()
    z[1] = math.nan
    penalty = registry.parse("spectral:further=5,bound=0.5")
    kept = torch.tensor([0, 2])
    rest = registry.parse("spectral:further=5,bound=0.5").measure(system.select(kept), z[kept], seeded())
    expected = float(rest.value.detach().sum()) / 3
    assert expected > 0
    assert float(penalty.measure(system, z, seeded()).value.detach().mean()) == pytest.approx(expected, rel=1e-12)
    copy = registry.parse("spectral:further=5,bound=0.5")
    for own in (penalty, penalty, copy):  # taken, held, and held after a resume
        if own is copy:
            own.restore(penalty.state())
        found = own.apply(system, z, seeded())
        assert float(found.value.detach().mean()) == pytest.approx(expected, rel=1e-12)


def test_what_is_held_serves_its_time_and_survives_a_resume():
    system, other = build(samples=2), build(samples=2)
    penalty = registry.parse("spectral:further=5,bound=0.5,refresh=3")
    z = relax(system, 20).z.detach()
    taken = []
    for _ in range(5):
        penalty.apply(system, z, seeded())
        taken.append(penalty._held)
    assert taken[0] is taken[2]
    assert taken[3] is not taken[2]
    copy = registry.parse("spectral:further=5,bound=0.5,refresh=3")
    copy.restore(penalty.state())
    assert copy.state().keys() == penalty.state().keys()
    again = copy.apply(other, 2 * z, seeded()).value
    assert torch.equal(again, penalty.apply(system, z, seeded()).value)
    assert copy._held.age == 3
    copy.apply(other, 2 * z, seeded())
    assert copy._held.age == 1  # taken anew
    assert torch.equal(copy._held.z, relax(other, 5, start=2 * z).z)
