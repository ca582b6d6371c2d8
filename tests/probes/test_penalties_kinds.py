"""Penalties on every kind of block against finite differences; and what is left of the probes' own numbers."""

import pytest
import torch

from dyneq.dynamics.relax import relax
from dyneq.dynamics.roots import find_root
from dyneq.probes.contraction import tangent_rates
from dyneq.probes.penalties import registry
from dyneq.probes.registry import run_probe
from tests.dynamics.conftest import build
from tests.probes.test_penalties import derivatives_of, seeded
from tests.systems.kinds import bind, random_block

KINDS = {
    "thin": ("thin", {}),
    "energy": ("energy", {}),  # not causal: one leading multiplier a sample
    "mono": ("mono", {"monotonicity": 0.5}),
    "nemon": ("nemon", {}),
    "specnorm": ("thick", {"constraint": "specnorm", "spectral_bound": 0.5}),
    "rstr": ("thin", {"constraint": "rstr", "product_norm": 0.5}),
}
SPECS = [
    "resreg:dead=0",
    "resreg:through=5,dead=0",
    "floss:margin=4,rest=0",
    "floss:margin=6,tangents=2,steps=4",
    "spectral:further=0,bound=0.2",
    "jacreg",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_finite_differences_on_every_kind(kind, spec):
    name, options = KINDS[kind]
    system, penalty = bind(random_block(name, resinit=0.5, **options)), registry.parse(spec)
    # a step small enough to cross no kink of a relu; rounding is 1e-15/1e-6 of the value
    along, slope, value, _ = derivatives_of(system, penalty, relax(system, 7).z.detach(), h=1e-6)
    assert abs(along) > 1e-5
    assert abs(slope - along) <= 1e-6 * abs(along) + 1e-8 * abs(value)


def test_jacreg_is_the_norm_of_the_branches_that_nonnormality_reports():
    system = build(samples=2, tokens=4)
    ds = run_probe("nonnormality", system, depth=300, vectors=48, blocks=1, grid=8)
    z = find_root(system, depth=300).z.detach()
    found = registry.parse("jacreg:vectors=48").measure(system, z, seeded(0)).measure
    torch.testing.assert_close(found, torch.from_numpy(ds["branch_norm"].sel(branch="all").values), rtol=1e-9, atol=0)


def test_tangents_span_the_volume_of_the_finite_time_exponents_that_ftle_reports():
    system = build(samples=2, tokens=3, gain=2.0)
    ds = run_probe("ftle", system, depth=60, horizon=30, count=24, tokens="no")
    z = relax(system, 60).z.detach()
    rates = tangent_rates(system, z, 30, 24, seeded()).detach()
    largest = torch.from_numpy(ds["finite_time_rate"].values)
    torch.testing.assert_close(rates.sum(0), largest.sum(1), rtol=1e-9, atol=0)
    # one vector grows by no more than the largest singular value
    one = registry.parse("floss:tangents=1,steps=30,margin=50").measure(system, z, seeded()).measure
    assert (one <= largest[:, 0]).all()
