"""Constrained attention: bounds that hold at any weights and after any optimiser step, against NumPy."""

import copy
import pickle

import numpy as np
import pytest
import torch
from kinds import bind, check_parts, check_products, dense, random_block, random_state, train
from pydantic import ValidationError

from dyneq.gradients import registry
from dyneq.systems.checkpoint import block_of_kind
from dyneq.systems.parts.constrained import ProductLinear, SpectralLinear
from dyneq.systems.thick import ThickConfig

SPECNORM = {"constraint": "specnorm", "spectral_bound": 0.6}
RSTR = {"constraint": "rstr", "product_norm": 1.7, "antisymmetric_share": 0.3}
KINDS = ["thick", "thin", "bp"]
#: A norm of 8 x 8 matrices by two ways differs by a few roundings.
ROUNDING = 1e-14


def attention(block):
    return block.layers[0].attn if block.config.kind == "bp" else block.attn


def weights(block):
    attn = attention(block)
    return [attn.wq, attn.wk, attn.wv, attn.wo]


def check_specnorm(block, bound):
    norms = [np.linalg.norm(layer.weight.detach().numpy(), 2) for layer in weights(block)]
    assert max(norms) <= bound * (1 + ROUNDING)
    for layer, norm in zip(weights(block), norms, strict=True):
        raw = np.linalg.norm(layer.raw.detach().numpy(), 2)
        assert norm == pytest.approx(min(bound, raw), rel=ROUNDING)


def check_rstr(block, gamma, share):
    for w in attention(block).head_products().detach().numpy():
        assert np.linalg.norm(w) == pytest.approx(gamma, rel=ROUNDING)
        assert np.linalg.norm((w - w.T) / 2) == pytest.approx(gamma * share, rel=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", [{}, {"foreach": True}, {"fused": True}, {"optimizer": torch.optim.SGD}])
def test_the_spectral_bound_holds_at_any_weights_and_after_optimiser_steps(kind, optimizer):
    block = random_block(kind, **SPECNORM)
    check_specnorm(block, 0.6)
    for _ in range(3):  # looked at after every step, so that what was found before must not be used again
        train(block, steps=1, lr=0.5, **optimizer)
        check_specnorm(block, 0.6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_norm_and_antisymmetric_share_hold_at_any_weights_and_after_optimiser_steps(kind, share):
    block = random_block(kind, **{**RSTR, "antisymmetric_share": share})
    check_rstr(block, 1.7, share)
    before = attention(block).head_products().detach().clone()
    train(block, steps=3, lr=0.5)
    check_rstr(block, 1.7, share)
    assert not torch.allclose(before, attention(block).head_products())


@pytest.mark.parametrize("options", [SPECNORM, RSTR], ids=["specnorm", "rstr"])
def test_products_and_parts_of_the_thick_block(options):
    bound = bind(random_block("thick", attention_bias=True, qk_norm=True, **options))
    check_products(bound)
    check_parts(bound)


def test_a_scaled_antisymmetric_part_is_the_one_of_the_products():
    bound = bind(random_block("thick", **RSTR))
    found = bound.scaled("antisymmetric", 0.0).head_products().detach()
    products = bound.head_products().detach()
    torch.testing.assert_close(found, (products + products.mT) / 2, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: SpectralLinear(4, 6, False, 0.5), (6, 4)), (lambda: ProductLinear(4, 2, False, 1.3, 0.4), (2, 4, 4))],
    ids=["specnorm", "rstr"],
)
def test_gradients_pass_through_the_constraint(make, shape):
    """Against finite differences, with the constraint active."""
    layer = make().double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.raw.copy_(torch.randn(shape, generator=generator, dtype=torch.float64))
    cotangent = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
    (found,) = torch.autograd.grad((layer.weight * cotangent).sum(), layer.raw)
    direction = torch.randn(shape, generator=generator, dtype=torch.float64)
    values, h = [], 1e-5
    raw = layer.raw.detach().clone()
    for sign in (1, -1):
        with torch.no_grad():
            layer.raw.copy_(raw + sign * h * direction)
            values.append(float((layer.weight * cotangent).sum()))
    difference = (values[0] - values[1]) / (2 * h)
    # truncation h^2 = 1e-10 of third derivatives of order 10, rounding 1e-16/1e-5
    assert float((found * direction).sum()) == pytest.approx(difference, abs=1e-8)


def test_below_the_bound_nothing_is_changed():
    layer = SpectralLinear(5, 5, False, 2.0).double()
    with torch.no_grad():
        layer.raw.copy_(0.1 * torch.eye(5, dtype=torch.float64))
        assert torch.equal(layer.weight, layer.raw)
        layer.raw.zero_()
        assert torch.equal(layer.weight, layer.raw)
    (gradient,) = torch.autograd.grad(layer.weight.sum(), layer.raw)
    assert torch.equal(gradient, torch.ones(5, 5, dtype=torch.float64))


@pytest.mark.parametrize("change", ["load", "assign", "cast", "copy", "pickle", "data", "in place"])
def test_the_bound_follows_every_way_of_changing_weights(change):
    layer = SpectralLinear(6, 6, False, 1.0).double()
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        layer.raw.copy_(one)
        assert np.linalg.norm(layer.weight.numpy(), 2) == pytest.approx(1.0, rel=ROUNDING)
        if change == "load":
            layer.load_state_dict({"raw": two})
        elif change == "assign":
            layer.raw = torch.nn.Parameter(two)
        elif change == "cast":
            layer = layer.float().double()
        elif change in ("copy", "pickle"):
            layer = copy.deepcopy(layer) if change == "copy" else pickle.loads(pickle.dumps(layer))
            layer.raw.copy_(two)
        elif change == "data":
            layer.raw.data.copy_(two)
        else:
            layer.raw.mul_(two)
        assert np.linalg.norm(layer.weight.numpy(), 2) == pytest.approx(1.0, rel=ROUNDING)


def test_weights_that_are_not_finite_are_not_made_finite():
    layer = SpectralLinear(3, 3, False, 1.0)
    with torch.no_grad():
        layer.raw.fill_(torch.nan)
        assert torch.isnan(layer.weight).all()


def test_float32_keeps_the_bound_to_its_own_rounding():
    block = random_block("thick", channels=32, heads=4, **SPECNORM).float()
    with torch.no_grad():
        for layer in weights(block):
            # the product of two rounded factors, in 32 x 32 sums
            assert np.linalg.norm(layer.weight.double().numpy(), 2) <= 0.6 * (1 + 32 * 1.2e-7)


def test_complex_nudges_and_feedback_work_on_constrained_attention():
    for options in (SPECNORM, RSTR):
        bound = bind(
            random_block("thick", resinit=0.3, **{**options, **({"product_norm": 0.2} if options is RSTR else {})})
        )
        z = random_state(bound)
        torch.testing.assert_close(bound.force(z.to(torch.complex128)).real, bound.force(z), rtol=0, atol=1e-12)
        exact = registry.parse("adjoint:t1=60,steps=60").gradient(bound)
        holo = registry.parse("holo:n=4,t1=60,t2=60").gradient(bound)
        flat = [torch.cat([p.flatten() for m in g.parameters.values() for p in m.values()]) for g in (exact, holo)]
        slowest = (1 + 0.1 * float(torch.linalg.eigvals(dense(bound.force, exact.state)).real.max())) ** 60
        # aliasing of order r^4 with r = 0.05, and what 60 steps leave
        torch.testing.assert_close(*flat, rtol=0, atol=(1e-4 + 10 * slowest) * float(flat[0].norm()))
        assert registry.parse("fa").gradient(bound).parameters["attn"]


def test_settings_of_a_constraint_that_is_not_chosen_are_refused_and_not_written():
    sizes = {"vocabulary": 3, "channels": 4, "heads": 2, "tokens": 2}
    for options, message in (
        ({"spectral_bound": 0.5}, "spectral_bound belongs to constraint='specnorm', but constraint is None"),
        ({**SPECNORM, "product_norm": 1.0}, "product_norm belongs to constraint='rstr'"),
        ({**RSTR, "channels": 1, "heads": 1}, "needs at least 2 channels"),
        ({**RSTR, "antisymmetric_share": 1.5}, "less than or equal to 1"),
        ({**SPECNORM, "spectral_bound": 0}, "greater than 0"),
    ):
        with pytest.raises(ValidationError, match=message):
            ThickConfig(**{**sizes, **options})
    free = ThickConfig(**sizes).model_dump()
    assert not free.keys() & {"constraint", "spectral_bound", "product_norm", "antisymmetric_share"}
    for options in (SPECNORM, RSTR):
        for kind in KINDS:
            config_type = block_of_kind(kind).Config
            config = config_type(**sizes, **options)
            assert config.model_dump().items() >= options.items()
            assert config_type(**config.model_dump()) == config
