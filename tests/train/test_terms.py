"""Penalties in an update: which state they look at, and what the guard's factor does to a bound."""

from collections.abc import Callable

import pytest
import torch

from dyneq.dynamics.relax import relax
from dyneq.gradients.registry import parse
from dyneq.probes.penalties import registry
from dyneq.probes.penalties.contribution import contribution, grouped_norm
from dyneq.probes.residual_measure import resreg
from dyneq.train.loop import Ending, start
from dyneq.train.recipe import Recipe
from dyneq.train.terms import Terms
from tests.dynamics.conftest import build


@pytest.mark.parametrize("spec", ["adjoint:t1=4", "adjoint:t1=4,t1_tol=1e-9", "track:t1=4,t2=20", "bptt4"])
def test_penalties_look_at_the_state_before_any_refinement(spec: str) -> None:
    system = build(gain=2.0)
    gradient = parse(spec).gradient(system)
    late = relax(system, 4).z
    if spec != "bptt4":
        assert gradient.relaxed is not None
        assert torch.equal(gradient.relaxed, late)
    terms = Terms({"resreg": {"dead": 0, "scale": "absolute"}}, 0)
    found = terms.contributions(system, gradient, 1)["resreg"]
    torch.testing.assert_close(found.measure, resreg(system, late).detach(), rtol=1e-12, atol=0)
    assert float(found.value) > 0


def test_the_guards_factor_raises_a_bound_that_binds() -> None:
    system = build(gain=2.0)
    z = relax(system, 7).z.detach()
    bound = registry.parse("jacreg:100,limit=0.5")
    task = torch.tensor(2.0, dtype=torch.float64)
    norms = [
        float(grouped_norm(contribution(bound, system, z, task, torch.Generator().manual_seed(0), share).parameters))
        for share in (0.5, 1.0, 4.0)
    ]
    assert norms == pytest.approx([1.0, 1.0, 4.0], rel=1e-12)


def test_the_log_has_the_weights_that_hold_and_what_controllers_say() -> None:
    ramped = {"weight": 2.0, "start": 2, "ramp": 4, "until": 8, "every": 3}
    terms = Terms({"floss": ramped, "jacreg": {"controller": "residual", "weight": 0.5}}, 0)
    terms.boost = 3.0
    weights = [terms.weights(step)["penalty_floss_weight"] for step in range(1, 10)]
    assert weights == [0, 0, 1.5, 3.0, 4.5, 6.0, 6.0, 6.0, 0]
    assert terms.weights(1) == {
        "penalty_floss_weight": 0.0,
        "penalty_jacreg_weight": 1.5,
        "penalty_jacreg_controller": 0.5,
    }


def test_whether_a_penalty_is_still_to_come() -> None:
    terms = Terms({"floss": {"start": 2, "every": 3, "until": 10}}, 0)  # applied in 3, 6 and 9
    applied = [step for step in range(1, 15) if terms.penalties[0].params.factor(step)]
    assert applied == [3, 6, 9]
    assert [terms.act_after(step) for step in range(12)] == [any(a > step for a in applied) for step in range(12)]
    assert Terms({"floss": {}}, 0).act_after(10**6)
    assert not Terms({}, 0).act_after(0)


def test_a_guarded_run_whose_first_update_breaks_says_so(tiny: Callable[..., Recipe], tmp_path) -> None:
    recipe = tiny(guard={"enabled": True}, optimizer={"lr": 1e60, "warmup": 0})
    outcome = start(recipe, tmp_path / "run")
    assert outcome.ending is Ending.NON_FINITE
    assert outcome.step == 0
    assert "at update 1" in outcome.sentence
