"""Specs of estimators."""

import pytest

from dyneq.errors import UsageError
from dyneq.gradients import registry
from dyneq.gradients.adjoint import Adjoint, AdjointParams
from dyneq.gradients.bptt import Bptt, BpttParams


@pytest.mark.parametrize(
    ("spec", "kind", "params"),
    [
        ("bptt", Bptt, BpttParams()),
        ("bptt400", Bptt, BpttParams(steps=400)),
        ("bptt:steps=400,segment=20", Bptt, BpttParams(steps=400, segment=20)),
        ("bptt400:segment=20", Bptt, BpttParams(steps=400, segment=20)),
        ("adjoint7", Adjoint, AdjointParams(steps=7)),
        ("adjoint:t1=30", Adjoint, AdjointParams(t1=30)),
        ("adjoint:relaxation=30", Adjoint, AdjointParams(t1=30)),
        (" adjoint: solver = gmres, tol = 1e-8 ", Adjoint, AdjointParams(solver="gmres", tol=1e-8)),
    ],
)
def test_a_spec_gives_its_estimator(spec: str, kind: type, params: object) -> None:
    estimator = registry.parse(spec)
    assert type(estimator) is kind
    assert estimator.params == params


def test_plain_values_and_back() -> None:
    for spec in ("bptt30", "adjoint:solver=gmres,products=17"):
        plain = registry.parse(spec).to_plain()
        again = registry.build(plain.pop("name"), plain)
        assert again.params == registry.parse(spec).params


def test_what_a_stored_recipe_holds_of_the_adjoint_does_not_grow() -> None:
    # the digests of checkpoints cover it: options that came later are stored only where they were set
    plain = {"name": "adjoint", "steps": 40, "relaxation": 60, "solver": "relaxation", "tol": 1e-08, "products": 1000}
    assert list(registry.parse("adjoint").to_plain().items()) == list(plain.items())
    assert registry.parse("adjoint:at=root,navg=2").to_plain() == {**plain, "at": "root", "navg": 2}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("btpt400", "no gradient estimator called 'btpt400'.*did you mean 'bptt'"),
        ("adjont", "did you mean 'adjoint'"),
        ("bptt:stepps=3", "no option 'stepps'; did you mean 'steps'"),
        ("bptt0", "steps: input should be greater than 0"),
        ("bptt:steps=many", "steps: .*integer"),
        ("adjoint:solver=lu", "solver: .*'relaxation', 'gmres' or 'substitution'"),
        ("bptt:400", "no key=value pair"),
        ("bptt400:steps=300", "twice"),
        ("adjoint:t1=300,relaxation=300", "'t1' under two names"),
        ("", "no gradient estimator"),
    ],
)
def test_what_is_no_spec_is_a_usage_error(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        registry.parse(spec)


def test_every_declared_estimator_keeps_the_contract() -> None:
    assert {"bptt", "adjoint"} <= set(registry.names())
    for name in registry.names():
        estimator = registry.build(name, {})
        fields = estimator.Params.model_fields
        assert estimator.name == name
        assert estimator.main in fields
        assert estimator.depth in fields
        assert all(field.description for field in fields.values())
