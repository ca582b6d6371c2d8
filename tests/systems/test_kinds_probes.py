"""Every probe on every kind of block: a result where the block has what it needs, a sentence where it has not."""

import pytest
import torch
from kinds import bind, random_block

from dyneq import plugins, run_probe
from dyneq.errors import DyneqError
from dyneq.gradients import registry
from dyneq.probes.registry import get_probe

BLOCKS = {
    "thin": {},
    "energy": {},
    "mono": {"monotonicity": 0.5},
    "nemon": {},
    "bp": {},
    "specnorm": {"constraint": "specnorm", "spectral_bound": 0.5},
    "rstr": {"constraint": "rstr", "product_norm": 0.5},
}
#: Parameters that keep the batch of 4 samples, and the time, small.
SMALL = {
    "spectrum": {"depth": (100,)},
    "census": {"depth": 200, "watch": 2000, "patience": 2000},
    "branches": {"depth": (50,)},
    "triangulate": {"batches": 2, "samples": 4, "ref": ("bptt150",)},
    "ablation": {"batches": 2, "samples": 4, "ref": "bptt150"},
    "navg": {"batches": 4, "samples": 4},
}
OF_GRADIENTS = ("ablation", "lrsweep", "navg", "triangulate")
#: What a block has not, by probe, beside the relaxation that bp has not.
LACKS = {
    "mono": {"knockout": "has no part 'attention' to scale; known are antisymmetric, recurrent"},
    "nemon": {"knockout": "has no part 'attention' to scale; known are antisymmetric, recurrent"},
}


def block_of(name):
    kind = {"specnorm": "thick", "rstr": "thin"}.get(name, name)
    return random_block(kind, resinit=0.3, **BLOCKS[name])


def check(name, probe, params):
    with torch.no_grad():
        bound = bind(block_of(name), samples=4)
    lacking = None if "part" in params else LACKS.get(name, {}).get(probe)
    if name == "bp" and probe not in OF_GRADIENTS:
        lacking = "looks at a relaxation, but BaselineBlock computes its output in one pass"
    if lacking is not None:
        with pytest.raises(DyneqError, match=lacking):
            run_probe(probe, bound, **params)
        return
    ds = run_probe(probe, bound, **params)
    made = get_probe(probe)
    assert made.summary(ds)[0].text
    made.plot(ds)
    made.text(ds)
    made.document(ds)


@pytest.mark.slow
@pytest.mark.parametrize("probe", plugins.names("dyneq.probes"))
@pytest.mark.parametrize("name", BLOCKS)
def test_every_probe_on_every_block(name, probe):
    check(name, probe, SMALL.get(probe, {}))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["recurrent", "antisymmetric"])
def test_parts_of_a_monotone_block_can_be_knocked_out(part):
    check("mono", "knockout", {"part": part})


@pytest.mark.parametrize("probe", ["spectrum", "mixing", "branches"])
@pytest.mark.parametrize("name", ["thin", "energy", "mono"])
def test_some_probes_on_some_blocks(name, probe):
    check(name, probe, SMALL.get(probe, {}))


def test_what_a_block_has_no_continuation_for_is_refused_with_the_reason():
    for kind in ("thin", "energy", "mono", "nemon"):
        with pytest.raises(DyneqError, match="a relu has no holomorphic continuation"):
            registry.parse("holo4").gradient(bind(random_block(kind, resinit=0.3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_every_estimator_on_every_block(name):
    """A gradient of finite numbers, or the reason why there is none."""
    bound = bind(block_of(name))
    refused = {"fa", "holo4"} if name in ("energy", "mono", "nemon", "thin", "rstr") else set()
    refused |= {"fa"} if name == "bp" else set()
    for spec in (*(s for s in registry.names() if s != "holo"), "holo2", "holo4"):
        if spec in refused:
            with pytest.raises(DyneqError, match=r"choose another estimator|use real nudges"):
                registry.parse(spec).gradient(bound)
            continue
        for members in registry.parse(spec).gradient(bound).parameters.values():
            assert all(torch.isfinite(value).all() for value in members.values())
