"""Adapters: forces against the original callable, derivatives against central differences, misuse against messages."""

import numpy as np
import pytest
import torch
from torch import nn

import dyneq
from dyneq.errors import DyneqError
from dyneq.systems.adapters import from_cell, from_map, from_ode, from_torchdeq
from dyneq.systems.protocol import Time
from dyneq.systems.validate import check_system

EPS = np.finfo(np.float64).eps


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def check_derivatives(system, z, seed=9):
    """J v against a central difference, and <w, J v> = <J^T w, v>.

    With h = eps^(1/3) the difference errs by h^2/6 of the third derivative and eps/h of the value, both 4e-11; the
    functions here have third derivatives below 1e3.
    """
    v, w = normal(*z.shape, seed=seed), normal(*z.shape, seed=seed + 1)
    matvec, rmatvec = system.linearize(z)
    h = EPS ** (1 / 3)
    with torch.no_grad():
        difference = (system.force(z + h * v) - system.force(z - h * v)) / (2 * h)
        torch.testing.assert_close(matvec(v).detach(), difference, rtol=0, atol=4e-8)
        torch.testing.assert_close((w * matvec(v)).sum(), (rmatvec(w) * v).sum(), rtol=0, atol=1e3 * EPS * v.numel())


def test_a_map_becomes_its_displacement():
    w = normal(3, 3)
    z0 = normal(5, 3, seed=1)
    system = dyneq.System.from_map(lambda z: torch.tanh(z @ w), z0, name="tanh")
    assert (system.time, system.eps, system.name, system.samples) == (Time.MAP, 1.0, "tanh", 5)
    assert system.initial_state() is z0
    assert torch.equal(system.force(z0), torch.tanh(z0 @ w) - z0)
    assert not system.has_loss
    check_derivatives(system, z0)
    check_system(system)
    with pytest.raises(DyneqError, match="is a map"):
        system.with_eps(0.5)
    with pytest.raises(DyneqError, match="declares no loss"):
        system.loss(z0)


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="casual"):
        dyneq.System.from_map(torch.tanh, normal(2, 3), casual=True)


def test_an_equation_keeps_its_right_hand_side():
    z0 = normal(4, 2)
    system = from_ode(lambda z: z - z**3, z0, eps=0.05)
    assert (system.time, system.eps) == (Time.FLOW, 0.05)
    assert torch.equal(system.force(z0), z0 - z0**3)
    assert system.with_eps(0.01).eps == 0.01
    check_derivatives(system, z0)
    check_system(system)
    with pytest.raises(DyneqError, match="eps of ode must be positive"):
        from_ode(torch.sin, z0, eps=0.0)


def test_loss_and_parameters_of_a_module():
    layer = nn.Linear(3, 3).double()
    system = from_map(layer, normal(4, 3), loss=lambda z: z.square().sum(1))
    z = normal(4, 3, seed=3)
    assert system.has_loss
    assert torch.equal(system.loss(z), z.square().sum(1))
    assert set(system.parameter_groups()["all"]) == {"weight", "bias"}
    with pytest.raises(DyneqError, match="one number a sample"):
        from_map(layer, z, loss=lambda z: z.sum()).loss(z)


def causal_function(weights):
    mask = torch.ones(4, 4, dtype=torch.float64).tril()
    return lambda z: torch.tanh(torch.einsum("ts,bsc,cd->btd", mask, z, weights))


def test_a_causal_map_has_token_blocks():
    z, context = normal(2, 4, 3), normal(2, 4, 3, seed=1)
    f = causal_function(normal(3, 3, seed=2))
    system = from_map(f, z, token_axis=1, causal=True)
    dense = torch.func.jacrev(system.force)(z)
    matvec, rmatvec = system.linearize_tokens(z)
    v = normal(2, 4, 3, seed=3)
    blocks = torch.stack([torch.stack([dense[b, t, :, b, t] for t in range(4)]) for b in range(2)])
    torch.testing.assert_close(matvec(v), torch.einsum("btij,btj->bti", blocks, v), rtol=0, atol=100 * EPS)
    torch.testing.assert_close(rmatvec(v), torch.einsum("btij,bti->btj", blocks, v), rtol=0, atol=100 * EPS)
    two = system.force(z, context)
    for t in range(4):
        mixed = torch.cat([context[:, :t], z[:, t : t + 1], context[:, t + 1 :]], dim=1)
        assert torch.equal(two[:, t], system.force(mixed)[:, t])
        assert torch.equal(system.token_force(t, context)(z[:, t]), two[:, t])
    torch.testing.assert_close(system.force(z, z), system.force(z), rtol=0, atol=10 * EPS)


def test_a_map_without_tokens_refuses_a_context():
    system = from_map(torch.tanh, normal(2, 3))
    with pytest.raises(DyneqError, match="does not declare one"):
        system.force(normal(2, 3), normal(2, 3))
    with pytest.raises(DyneqError, match="token_axis=1"):
        from_map(torch.tanh, normal(2, 3, 4), causal=True)
    with pytest.raises(DyneqError, match=r"one of 1\.\.1"):
        from_map(torch.tanh, normal(2, 3), token_axis=2)


@pytest.mark.parametrize(
    ("z0", "found"),
    [
        (torch.zeros(3), "[3]"),
        (torch.zeros(0, 3), "[0, 3]"),
        (torch.zeros(2, 3, dtype=torch.int64), "int64"),
        ([[0.0]], "list"),
    ],
)
def test_a_start_that_is_no_batch_is_refused(z0, found):
    with pytest.raises(DyneqError, match="should be a floating tensor") as caught:
        from_map(torch.tanh, z0)
    assert found in str(caught.value)


@pytest.mark.parametrize("wrong", [lambda z: z.sum(1, keepdim=True), lambda z: z[:1], lambda z: (z,)])
def test_a_result_that_would_broadcast_is_refused(wrong):
    system = from_map(wrong, normal(2, 3))
    with pytest.raises(DyneqError, match=r"state's shape \[2, 3\]"):
        system.force(normal(2, 3))


def test_selected_samples_of_a_plain_function():
    """The function may close over a whole batch of inputs, so the rest of the batch must be filled in."""
    x = normal(5, 3, seed=1)
    system = from_ode(lambda z: torch.tanh(z) + x, normal(5, 3), eps=0.3, loss=lambda z: (z * x).sum(1))
    picked = torch.tensor([3, 1])
    part = system.select(picked)
    z = normal(2, 3, seed=2)
    assert torch.equal(part.initial_state(), system.initial_state()[picked])
    assert torch.equal(part.force(z), torch.tanh(z) + x[picked])
    assert torch.equal(part.loss(z), (z * x[picked]).sum(1))
    assert (part.eps, part.time, part.samples) == (0.3, Time.FLOW, 2)
    check_derivatives(part, z)
    with pytest.raises(DyneqError, match="selected only once"):
        system.select(torch.tensor([0, 0]))


CELLS = [
    (nn.RNNCell, {}),
    (nn.RNNCell, {"nonlinearity": "relu"}),
    (nn.RNNCell, {"bias": False}),
    (nn.GRUCell, {}),
    (nn.GRUCell, {"bias": False}),
    (nn.LSTMCell, {}),
    (nn.LSTMCell, {"bias": False}),
]


def make_cell(kind, options):
    cell = kind(3, 4, **options).double()
    with torch.no_grad():
        for i, p in enumerate(cell.parameters()):
            p.copy_(normal(*p.shape, seed=20 + i))
    return cell


@pytest.mark.parametrize(("kind", "options"), CELLS)
def test_a_cell_is_torchs_own(kind, options):
    cell, x = make_cell(kind, options), normal(6, 3)
    start = tuple(normal(6, 4, seed=s) for s in ((5, 6) if kind is nn.LSTMCell else (5,)))
    system = from_cell(cell, x, start if kind is nn.LSTMCell else start[0])
    z = system.initial_state()
    assert torch.equal(z, torch.cat(start, dim=1))
    with torch.no_grad():
        expected = torch.cat(cell(x, start), dim=1) if kind is nn.LSTMCell else cell(x, start[0])
        # sums of 7 products of order 1, then functions of slope at most 1
        torch.testing.assert_close(system.force(z) + z, expected, rtol=0, atol=100 * EPS)
    assert (system.time, system.eps, system.name) == (Time.MAP, 1.0, kind.__name__)
    check_derivatives(system, z)
    check_system(system)
    part = system.select(torch.tensor([4, 0, 4]))
    torch.testing.assert_close(part.force(z[[4, 0, 4]]), system.force(z)[[4, 0, 4]], rtol=0, atol=100 * EPS)
    grouped = {n: p for members in system.parameter_groups().values() for n, p in members.items()}
    assert grouped == dict(cell.named_parameters())
    assert not from_cell(cell, x).initial_state().any()


@pytest.mark.parametrize(("kind", "options"), CELLS)
def test_parameter_gradients_of_a_cell_are_torchs_own(kind, options):
    cell, x = make_cell(kind, options), normal(6, 3)
    system = from_cell(cell, x)
    z = normal(*system.initial_state().shape, seed=4)
    w = normal(*z.shape, seed=5)
    parameters = list(cell.parameters())
    ours = torch.autograd.grad((system.force(z) * w).sum(), parameters)
    theirs = torch.cat(cell(x, z.chunk(2, 1)), dim=1) if kind is nn.LSTMCell else cell(x, z)
    for a, b in zip(ours, torch.autograd.grad((theirs * w).sum(), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e3 * EPS)


def test_what_does_not_fit_a_cell_is_refused():
    cell, x = make_cell(nn.GRUCell, {}), normal(2, 3)
    with pytest.raises(DyneqError, match="got GRU;"):
        from_cell(nn.GRU(3, 4).double(), x)
    with pytest.raises(DyneqError, match=r"\[sample, 3\]"):
        from_cell(cell, normal(2, 4))
    with pytest.raises(DyneqError, match="float32"):
        from_cell(cell, x.float())
    with pytest.raises(DyneqError, match="one tensor of shape"):
        from_cell(cell, x, normal(2, 5))
    with pytest.raises(DyneqError, match=r"pair \(h, c\)"):
        from_cell(make_cell(nn.LSTMCell, {}), x, normal(2, 4))
    with pytest.raises(DyneqError, match="does not declare one"):
        from_cell(cell, x).force(normal(2, 4), normal(2, 4))


def test_a_functor_of_one_state_is_a_map():
    w = normal(3, 3)
    z0 = normal(4, 3, seed=1)
    system = from_torchdeq(lambda z: torch.tanh(z @ w), z0)
    assert torch.equal(system.force(z0), torch.tanh(z0 @ w) - z0)
    assert system.initial_state() is z0
    check_system(system)


def test_a_functor_of_several_states_is_flattened():
    a, b = normal(4, 3), normal(4, 2, 5, seed=1)

    def functor(a, b):
        return torch.tanh(a) + b.mean((1, 2))[:, None], b * a.sum(1)[:, None, None]

    system = from_torchdeq(functor, (a, b), loss=lambda z: z.sum(1))
    z0 = system.initial_state()
    assert z0.shape == (4, 13)
    first, second = system.unflatten(z0)
    assert torch.equal(first, a)
    assert torch.equal(second, b)
    image = system.unflatten(system.force(z0) + z0)
    for ours, theirs in zip(image, functor(a, b), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=20 * EPS * float(theirs.abs().max()))
    check_derivatives(system, z0)
    check_system(system)
    part = system.select(torch.tensor([2]))
    torch.testing.assert_close(part.force(z0[2:3]), system.force(z0)[2:3], rtol=0, atol=100 * EPS)


def test_a_functor_of_one_number_a_sample():
    system = from_torchdeq(torch.cos, normal(4))
    z0 = system.initial_state()
    assert z0.shape == (4, 1)
    assert torch.equal(system.force(z0), torch.cos(z0) - z0)


def test_what_does_not_fit_a_functor_is_refused():
    a, b = normal(4, 3), normal(4, 2)
    with pytest.raises(DyneqError, match="share their number of samples"):
        from_torchdeq(lambda a, b: (a, b), (a, b[:3]))
    with pytest.raises(DyneqError, match="share their number of samples and dtype"):
        from_torchdeq(lambda a, b: (a, b), (a, b.float()))
    with pytest.raises(DyneqError, match=r"should be floating tensors"):
        from_torchdeq(lambda a, b: (a, b), (a, 1.0))
    with pytest.raises(DyneqError, match="no token axis"):
        from_torchdeq(lambda a, b: (a, b), (a, b), token_axis=1, causal=True)
    for wrong in (lambda a, b: (b, a), lambda a, b: a, lambda a, b: (a,)):
        system = from_torchdeq(wrong, (a, b))
        with pytest.raises(DyneqError, match="should return a tuple of states"):
            system.force(system.initial_state())


class Broken(dyneq.System):
    """A system that breaks one promise at a time."""

    def __init__(self, force, z0=None, eps=0.1, time=Time.FLOW):
        self.f, self.z0, self.eps, self.time = force, normal(6, 3) if z0 is None else z0, eps, time

    def force(self, z, context=None):
        return self.f(z)

    def initial_state(self):
        return self.z0


def test_the_check_accepts_what_keeps_the_promises():
    check_system(Broken(torch.sin))
    check_system(Broken(torch.sin, normal(1, 3)))
    check_system(Broken(lambda z: z @ normal(3, 3, dtype=torch.float32), normal(64, 3, dtype=torch.float32)))


def leak(source, target):
    """A force whose sample ``target`` also depends on sample ``source``."""

    def force(z):
        out = -z.clone()
        out[target] = out[target] + 1e-3 * z[source]
        return out

    return force


def dropout_left_on():
    generator = torch.Generator().manual_seed(0)
    return lambda z: z + torch.rand(z.shape, generator=generator, dtype=z.dtype)


def nan_when_moved(z):
    return torch.where(z[:1] == normal(6, 3)[:1], -z, torch.nan)


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (Broken(torch.sin, torch.zeros(3)), "at least two axes"),
        (Broken(torch.sin, torch.zeros(3, 2, dtype=torch.int32)), "int32"),
        (Broken(torch.sin, torch.full((2, 2), torch.inf)), "initial state of system is not finite"),
        (Broken(lambda z: z.float()), "torch.float32"),
        (Broken(lambda z: z[:, :1]), "shape and dtype of z"),
        (Broken(lambda z: None), "NoneType"),
        (Broken(lambda z: torch.where(z == z[2], torch.nan, z)), "not finite in 1 of 6 samples"),
        (Broken(dropout_left_on()), "two evaluations"),
        (Broken(torch.sin, eps=0.0), "should be positive"),
        (Broken(torch.sin, eps=float("nan")), "should be positive"),
        (Broken(torch.sin, time=Time.MAP), "its eps should be 1"),
        (Broken(lambda z: z - z.mean(0)), "force on sample 1 changes"),
        (Broken(nan_when_moved), "should not interact"),
        *[(Broken(leak(i, j)), f"force on sample {j} changes") for i in range(6) for j in range(6) if i != j],
    ],
)
def test_the_check_names_the_broken_promise(system, message):
    with pytest.raises(DyneqError, match=message) as caught:
        check_system(system)
    assert "\n" not in str(caught.value)
