"""Cubic coefficients of Hopf points: published values, central differences, and what they predict of a cycle."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from dyneq.dynamics import multilinear
from dyneq.dynamics.multilinear import complex_form, disagreement, form
from dyneq.dynamics.normal_form import Criticality, at_token, criticality, hopf_normal_form
from dyneq.dynamics.roots import find_root
from dyneq.dynamics.subsystem import TokenSystem
from dyneq.errors import UsageError
from dyneq.systems import analytic
from dyneq.systems.adapters import from_ode

F64 = torch.float64


def one(system):
    return system.select(torch.tensor([0]))


@pytest.mark.parametrize("a", [0.3, 0.5, 1.0, 1.7, 3.0])
def test_brusselator(a):
    system = analytic.Brusselator(a, 1 + a * a)
    found = hopf_normal_form(one(system), torch.tensor([system.root], dtype=F64), a)
    assert abs(found.c1.real - system.hopf_cubic) <= found.error < 1e-9
    assert found.mu.imag == pytest.approx(a, abs=1e-13)


def test_stuart_landau_is_its_own_normal_form():
    """With norm(q) = 1 the complex amplitude of (Re w, Im w) is w/sqrt(2): -(c + i d) abs(w)^2 w is -2 (c + i d)."""
    for c, d in ((1.0, 0.0), (1.5, 0.7), (-0.4, -2.0)):
        system = one(analytic.StuartLandau(0.0, 2.0, c, d))
        found = hopf_normal_form(system, torch.zeros(1, 2, dtype=F64), 2.0)
        assert abs(found.c1 - -2 * (c + 1j * d)) <= found.error < 1e-10
        expected = Criticality.SUPERCRITICAL if c > 0 else Criticality.SUBCRITICAL
        assert criticality(found.c1.real, found.error) is expected


def test_fitzhugh_nagumo_is_subcritical_and_agrees_with_the_planar_formula():
    """Guckenheimer and Holmes (1983), equation 3.4.11, in coordinates that make the linear part a rotation."""
    for sign in (-1, 1):
        current = analytic.FitzHughNagumo().hopf_currents[(sign + 1) // 2]
        system = analytic.FitzHughNagumo(current)
        s, b = system.timescale, system.b
        v = sign * math.sqrt(1 - s * b)
        omega = system.hopf_frequency
        z = torch.tensor([[v, (v + system.a) / b]], dtype=F64)
        # v' = s b v - w - v0 v^2 - v^3/3, w' = s v - s b w about the root; x = v, y = (s b v - w)/-omega
        # so that x' = -omega y + f, y' = omega x + g with f = -v0 x^2 - x^3/3 and g = -(s b/omega) f
        k = -s * b / omega
        fxx, fxxx, gxx = -2 * v, -2.0, k * -2 * v
        a16 = fxxx / 16 + (-fxx * gxx) / (16 * omega)
        # that a is of r' = a r^3 with x = r cos; q = (1, ..)/norm, x = 2 Re(z q_1): r = 2 abs(q_1) abs(z)
        q = np.array([1.0, s * b - 1j * omega])
        q1 = 1 / np.linalg.norm(q)
        found = hopf_normal_form(one(system), z, omega)
        assert found.c1.real == pytest.approx(a16 * 4 * q1**2, rel=1e-10)
        assert criticality(found.c1.real, found.error) is Criticality.SUBCRITICAL


def test_sign_is_free_of_coordinates_and_the_value_scales_as_it_must():
    """In an orthogonal image of the state c1 is the same; in a state k times as large it is c1/k^2."""
    generator = torch.Generator().manual_seed(3)
    q, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=F64))
    # a Brusselator at its Hopf point, driven into two more stable components that act back on it
    system = analytic.Brusselator(1.0, 2.0)

    def rhs(y):
        x, u = y[:, :2], y[:, 2:]
        more = torch.stack([u[:, 0] * x[:, 0], u[:, 1] * u[:, 0]], 1)
        return torch.cat([system.rhs(x) + 0.3 * more, -u + torch.tanh((x - x.new_tensor(system.root)) ** 2)], 1)

    root = torch.tensor([[*system.root, 0.0, 0.0]], dtype=F64)
    plain = hopf_normal_form(from_ode(rhs, root), root, 1.0)
    turned = hopf_normal_form(from_ode(lambda y: 2.5 * rhs(y @ q / 2.5) @ q.T, 2.5 * root @ q.T), 2.5 * root @ q.T, 1.0)
    assert abs(plain.c1.real - system.hopf_cubic) > 0.05  # the stable components do matter
    assert abs(turned.c1 - plain.c1 / 2.5**2) <= turned.error + plain.error < 1e-9


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "gelu": "tanh", "attention_bias": True}])
def test_forms_of_a_thick_token_agree_with_differences_of_the_jacobian(build, options):
    """Central differences of exact products: error of order h^2, so halving h quarters it."""
    system = build(gain=2.0, **options)
    z = system.initial_state().detach()
    token = TokenSystem(system, z, [1], [3])
    y = z[1:2, 3]
    generator = torch.Generator().manual_seed(0)
    u, v, w = torch.randn(3, 1, 8, generator=generator, dtype=F64)
    context = z[1:2]

    def product(at, d):  # the block's own token-diagonal product, which is not a derivative by torch
        state, tangent = context.clone(), torch.zeros_like(context)
        state[:, 3], tangent[:, 3] = at, d
        return system.select(torch.tensor([1])).linearize_tokens(state)[0](tangent)[:, 3]

    with torch.no_grad():
        second, third = form(token.force, y, [u, v]), form(token.force, y, [u, v, w])
        errors = []
        for h in (4e-3, 2e-3):
            ahead, behind = product(y + h * v, u), product(y - h * v, u)
            corners = [product(y + h * (i * v + j * w), u) * i * j for i in (-1, 1) for j in (-1, 1)]
            errors.append(
                (
                    float(((ahead - behind) / (2 * h) - second).norm() / second.norm()),
                    float((sum(corners) / (4 * h * h) - third).norm() / third.norm()),
                )
            )
        assert errors[1][0] < 1e-4
        assert errors[1][1] < 1e-3
        for coarse, fine in zip(*errors, strict=True):
            assert coarse / fine == pytest.approx(4.0, rel=0.05)
        # symmetric in its arguments
        torch.testing.assert_close(form(token.force, y, [w, u, v]), third, rtol=0, atol=1e-11)


def test_complex_forms_are_multilinear():
    generator = torch.Generator().manual_seed(0)
    z, a, b, c, d = torch.randn(5, 1, 4, generator=generator, dtype=F64)

    def f(x):
        return torch.tanh(x @ torch.ones(4, 4, dtype=F64).triu()) * x

    q, r = torch.complex(a, b), torch.complex(c, d)
    lhs = complex_form(f, z, [q + (2 - 1j) * r, q, q.conj()])
    rhs = complex_form(f, z, [q, q, q.conj()]) + (2 - 1j) * complex_form(f, z, [r, q, q.conj()])
    torch.testing.assert_close(lhs, rhs, rtol=0, atol=1e-12)
    exact = form(f, z, [a, a, a]) + form(f, z, [a, b, b]) + 1j * (form(f, z, [a, a, b]) + form(f, z, [b, b, b]))
    torch.testing.assert_close(complex_form(f, z, [q, q, q.conj()]), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["layer", "rms", "module", "plain"])
def test_forms_through_normalisations_agree_with_differences(norm, monkeypatch):
    """torch's own layer norm has wrong second derivatives in nested forward mode: it is replaced, and checked."""
    gain = torch.linspace(0.5, 2, 6, dtype=F64)
    module = torch.nn.LayerNorm(6).double()

    def f(x):
        if norm == "layer":
            return functional.layer_norm(x, (6,), gain, gain - 1, 1e-5).tanh()
        if norm == "rms":
            return functional.rms_norm(x, (6,), gain, 1e-5).tanh()
        return module(x) if norm == "module" else x.softmax(-1) * functional.gelu(x)

    generator = torch.Generator().manual_seed(0)
    z, u, v = torch.randn(3, 1, 6, generator=generator, dtype=F64)
    assert disagreement(f, z, u, v, float(z.norm())) <= 1
    if norm in ("layer", "module"):
        monkeypatch.setattr(multilinear, "_layer_norm", functional.layer_norm)
        assert disagreement(f, z, u, v, float(z.norm())) > 1e3


def test_what_does_not_apply_is_not_known_for_a_reason():
    origin = torch.zeros(1, 2, dtype=F64)
    system = one(analytic.StuartLandau(0.0))
    assert "map" in hopf_normal_form(one(analytic.Henon()), origin, 1.0).reason
    assert "real" in hopf_normal_form(system, origin, 0.0).reason
    # a piecewise linear force has no cubic terms where it is smooth: nothing is claimed
    linear = from_ode(lambda z: z @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64) + 0 * z.relu(), origin + 1)
    found = hopf_normal_form(linear, origin, 1.0)
    assert criticality(found.c1.real, found.error) is Criticality.UNDETERMINED
    # omega and 2 omega at once
    twice = torch.zeros(4, 4, dtype=F64)
    twice[0, 1], twice[1, 0], twice[2, 3], twice[3, 2] = -1, 1, -2, 2
    resonant = from_ode(lambda z: z @ twice.T - z**3, torch.zeros(1, 4, dtype=F64) + 0.1)
    assert "second eigenvalue" in hopf_normal_form(resonant, torch.zeros(1, 4, dtype=F64), 1.0).reason

    # derivatives that do not exist
    class Frozen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g

    opaque = from_ode(lambda z: Frozen.apply(z) @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64), origin + 1)
    opaque.linearize = lambda z: (lambda v: v @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64), None)
    assert "differentiated three times" in hopf_normal_form(opaque, origin, 1.0).reason
    with pytest.raises(UsageError, match="one sample"):
        hopf_normal_form(analytic.StuartLandau(), torch.zeros(4, 2, dtype=F64), 1.0)
    large = from_ode(lambda z: -z, torch.zeros(1, 2001, dtype=F64) + 1)
    with pytest.raises(UsageError, match="above 2000"):
        hopf_normal_form(large, torch.zeros(1, 2001, dtype=F64), 1.0)


def test_token_alone_has_the_normal_form_of_the_whole(build):
    """Tokens before t are stable and not acted on, later ones do not act back: the coefficient is that of token t.

    The whole block's coefficient by dense algebra on all tokens, against token t alone, at a pair of each token: the
    formula holds at any eigenvalue once its frequency is taken, so no Hopf point is needed to compare.
    """
    system = build(gain=1.5, samples=1, tokens=3)
    roots = find_root(system)
    assert bool(roots.found)
    blocks = system.linearize_tokens(roots.z)
    t = 1  # one token before it, one after
    eye = torch.eye(8, dtype=F64)
    columns = []
    for e in eye:
        v = torch.zeros_like(roots.z)
        v[:, t] = e
        columns.append(blocks[0](v)[0, t])
    mu = torch.linalg.eigvals(torch.stack(columns, 1))
    mu = mu[mu.imag > 1e-3]
    pair = complex(mu[mu.real.argmax()])
    # moved to the axis, so that the formula is meant at this pair: the force plus -Re mu times the deviation at t
    alone = hopf_normal_form(*at_token(Shifted(system, roots.z, t, pair.real), roots.z, t), pair.imag)
    flat = Shifted(system, roots.z, t, pair.real, flat=True)
    whole = hopf_normal_form(flat, roots.z.flatten(1), pair.imag)
    # q of the whole has parts on later tokens as well: its share at t has norm below 1, and c1 goes with its square
    j = flat.linearize(roots.z.flatten(1))[0]
    matrix = torch.stack([j(e[None])[0] for e in torch.eye(24, dtype=F64)], 1).detach().numpy()
    values, vectors = np.linalg.eig(matrix)
    q = vectors[:, np.argmin(np.abs(values - 1j * pair.imag))].reshape(3, 8)
    share = np.linalg.norm(q[t]) / np.linalg.norm(q)
    assert np.linalg.norm(q[0]) < 1e-8
    assert 0.01 < share < 0.999
    assert abs(whole.c1 - alone.c1 * share**2) <= 1e-8 * whole.scale


class Shifted(analytic.AnalyticFlow):
    """A block with -rate (z_t - root_t) added at one token, as it is or on flat states."""

    def __init__(self, system, root, token, rate, flat=False):
        super().__init__(1, torch.zeros(1, 1, dtype=F64), 0.1)
        self.inner, self.root, self.token, self.rate, self.flat = system, root, token, rate, flat
        self._z0 = root.flatten(1) if flat else root
        self.structure = analytic.AnalyticFlow.structure if flat else system.structure

    def select(self, samples):
        return self

    def rhs(self, z):
        raise NotImplementedError

    def force(self, z, context=None):
        z = z.view_as(self.root) if self.flat else z
        f = self.inner.force(z, context)
        mask = torch.zeros_like(self.root)
        mask[:, self.token] = self.rate
        f = f - mask * (z - self.root)
        return f.flatten(1) if self.flat else f
