"""The Jacobian, its causality, and spectra by token against the dense whole."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

import dyneq
from dyneq.dynamics.lift import lift_pair
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.relax import relax
from dyneq.dynamics.roots import find_root
from dyneq.dynamics.spectra import leading_spectrum
from dyneq.dynamics.structure import CausalityError, check_causality
from dyneq.errors import DyneqError, UsageError
from dyneq.linalg.dense import dense_eigenpairs
from dyneq.linalg.targets import CriticalStep, LargestModulus, Rightmost
from dyneq.systems.adapters import from_ode
from dyneq.systems.protocol import System
from dyneq.systems.thick import ThickBlock

F64 = torch.float64
OPTIONS = [
    {},
    {"damping": 0.0},
    {"damping": -0.5},
    {"damping": 2.0},
    {"qk_norm": True},
    {"gelu": "tanh"},
    {"ffn_bias": False},
    {"attention_bias": True},
    {"final_norm": True},
    {"attention": "fused"},
    {"resinit": 0.1},
    {"widening": 2, "heads": 4},
]
IDS = ["-".join(f"{k}={v}" for k, v in o.items()) or "default" for o in OPTIONS]


def targets(eps=0.1):
    return [LargestModulus(eps), Rightmost(), CriticalStep()]


def generator():
    return torch.Generator().manual_seed(0)


def dense_jacobian(system, z):
    """Return dF/dz ``[sample, n, n]`` by reverse mode, which is not the products under test."""
    n = z[0].numel()
    # one row at a time: the fused kernel has no batching rule
    full = torch.func.jacrev(lambda y: system.force(y).flatten(1).sum(0), chunk_size=1)(z)
    return full.reshape(n, z.shape[0], n).transpose(0, 1)


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_dense_and_token_blocks_are_the_derivative(build, options):
    system = build(seed=5, **options)
    z = relax(system, 30).z
    lin = Linearization(system, z)
    expected = dense_jacobian(system, z)
    scale = expected.abs().max()
    assert (lin.dense() - expected).abs().max() < 1e-13 * scale
    samples, tokens, channels = z.shape
    blocked = expected.reshape(samples, tokens, channels, tokens, channels)
    for t in range(tokens):
        assert (blocked[:, t, :, t + 1 :] == 0).all(), "upper blocks are exactly zero"
        assert (lin.token_blocks()[:, t] - blocked[:, t, :, t]).abs().max() < 1e-13 * scale


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_token_pairs_are_pairs_of_the_whole(build, options):
    """Every leading token pair lifts to the whole J, and a well-conditioned one is in LAPACK's spectrum of it."""
    system = build(seed=7, gain=2.0, **options)
    z = relax(system, 60).z
    lin = Linearization(system, z)
    whole = lin.dense().numpy()
    blocks = lin.token_blocks()
    eigen = dense_eigenpairs(blocks.flatten(0, 1), [Rightmost()], 2)
    tokens = z.shape[1]
    for sample in range(z.shape[0]):
        values, left, right = scipy.linalg.eig(whole[sample], left=True, right=True)
        conditions = 1 / np.abs((left.conj() * right).sum(0))
        norm = np.linalg.norm(whole[sample], 2)
        for token in range(tokens):
            row = sample * tokens + token
            for k in np.nonzero(eigen.present[row])[0]:
                mu = complex(eigen.values[row, k])
                _, residual = lift_pair(lin, sample, token, mu, eigen.vectors[row, k])
                assert residual <= 1e-12 * norm
                nearest = int(np.abs(values - mu).argmin())
                if conditions[nearest] < 1e8:
                    # backward error of LAPACK, n u norm(J), seen through the condition of the whole pair
                    allowed = conditions[nearest] * len(values) * np.finfo(float).eps * norm
                    assert abs(values[nearest] - mu) <= 10 * allowed


def test_lifting_a_wrong_pair_shows(build):
    system = build(seed=7, gain=2.0)
    lin = Linearization(system, relax(system, 60).z)
    eigen = dense_eigenpairs(lin.token_blocks().flatten(0, 1), [Rightmost()], 1)
    _, residual = lift_pair(lin, 0, 1, complex(eigen.values[1, 0]) + 1e-6, eigen.vectors[1, 0])
    assert residual > 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_methods_agree_where_the_condition_allows(build, seed):
    system = build(seed=seed, gain=1.5)
    z = find_root(system).z
    lin = Linearization(system, z)
    found = {
        m: leading_spectrum(lin, targets(), 6, generator=generator(), method=m) for m in ("token", "krylov", "dense")
    }
    abscissa = {}
    for method, spectrum in found.items():
        assert spectrum.pairs.converged[spectrum.leading].all()
        best = spectrum.pairs.best(Rightmost(), spectrum.samples * spectrum.tokens)
        abscissa[method] = spectrum.pairs.mu[best].real.reshape(3, -1).max(1)
        error = (spectrum.pairs.residual * spectrum.pairs.condition)[best].max()
        assert error < 1e-6
    for method in ("krylov", "dense"):
        np.testing.assert_allclose(abscissa[method], abscissa["token"], rtol=0, atol=1e-7)


def test_global_list_is_complete_and_sorted(build):
    """The list of leading pairs equals the sorted list of all eigenvalues of all token blocks."""
    system = build(seed=2, gain=1.5, samples=4)
    lin = Linearization(system, relax(system, 100).z)
    everything = torch.linalg.eigvals(lin.token_blocks()).flatten().numpy()
    modulus = np.sort(np.abs(1 + 0.1 * everything))[::-1]
    for count in (1, 3, 8, 25, 60):
        spectrum = leading_spectrum(lin, targets(), count, generator=generator())
        found = np.abs(1 + 0.1 * spectrum.pairs.mu[spectrum.leading])
        assert len(found) in (count, count + 1)
        np.testing.assert_allclose(found, modulus[: len(found)], rtol=1e-10)
        unpaired = [m for m in spectrum.pairs.mu[spectrum.leading] if m.imag != 0]
        assert sum(m.imag for m in unpaired) == pytest.approx(0, abs=1e-9), "conjugate pairs are whole"


def test_addresses_name_the_block(build):
    system = build(seed=2, gain=1.5)
    lin = Linearization(system, relax(system, 100).z)
    spectrum = leading_spectrum(lin, targets(), 8, generator=generator())
    for i in spectrum.leading:
        sample, token = spectrum.address(int(spectrum.pairs.block[i]))
        of_block = torch.linalg.eigvals(lin.token_blocks()[sample, token]).numpy()
        assert np.abs(of_block - spectrum.pairs.mu[i]).min() < 1e-9


@pytest.mark.parametrize("damping", [0.0, 0.5, 3.0])
def test_damping_only_rescales(build, damping):
    """With z scaled by 1/(1+c) the force is unchanged, so alpha/(1+c) and eps*(1+c) are too."""
    tiny = {"norm_eps": 1e-30, "gain": 1.5, "seed": 4}
    one, other = build(damping=1.0, **tiny), build(damping=damping, **tiny)
    root = find_root(one).z
    scaled = root * 2 / (1 + damping)
    assert other.force(scaled).abs().max() < 1e-10 * other.x.abs().max()
    found = []
    for system, z, c in ((one, root, 1.0), (other, scaled, damping)):
        spectrum = leading_spectrum(Linearization(system, z), targets(), 4, generator=generator())
        blocks = spectrum.samples * spectrum.tokens
        rightmost = spectrum.pairs.mu[spectrum.pairs.best(Rightmost(), blocks)]
        critical = spectrum.pairs.mu[spectrum.pairs.best(CriticalStep(), blocks)]
        step = -2 * critical.real / np.abs(critical) ** 2
        found.append((rightmost.real / (1 + c), step * (1 + c)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-7)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-7)


def test_symmetric_part_bounds_the_initial_growth():
    a = torch.tensor([[-1.0, 10.0], [0.0, -1.0]], dtype=F64)
    system = from_ode(lambda z: z @ a.T, torch.ones(1, 2, dtype=F64))
    lin = Linearization(system, system.initial_state())
    assert torch.linalg.eigvalsh(lin.symmetric().to_dense())[0, -1].item() == pytest.approx(4.0, abs=1e-14)


class Leaky(ThickBlock):
    """A block that claims causality and lets every token see the mean of all."""

    def force(self, z, x, context=None):
        source = z if context is None else context
        return super().force(z, x, context) + 1e-9 * source.mean(1, keepdim=True)


class WrongContext(ThickBlock):
    """A block whose two-argument force takes the token's own value from the context."""

    def force(self, z, x, context=None):
        return super().force(z if context is None else 0.9 * z + 0.1 * context.roll(1, 0), x, context)


@pytest.mark.parametrize(("kind", "words"), [(Leaky, "moving tokens"), (WrongContext, "two-argument")])
def test_violated_structure_is_detected_and_the_token_method_refuses(build, kind, words):
    system = build(seed=0)
    block = kind(system.block.config).double()
    bound = block.bind(system.tokens)
    with torch.no_grad():
        z = bound.initial_state().detach()
    with pytest.raises(CausalityError, match=words):
        check_causality(bound, z)
    with pytest.raises(CausalityError, match="--method krylov"):
        leading_spectrum(Linearization(bound, z), targets(), 2, generator=generator(), method="token")


class OwnKeyFromContext(System):
    """Attention that is causal, but whose two-argument force takes a token's own key and value from the context."""

    structure = dyneq.Structure(token_axis=1, causal=True)

    def __init__(self):
        g = generator()
        self.x = torch.randn(2, 5, 6, generator=g, dtype=F64)
        self.weights = torch.randn(3, 6, 6, generator=g, dtype=F64)

    def initial_state(self):
        return self.x

    def force(self, z, context=None):
        c = z if context is None else context
        q, k, v = z @ self.weights[0], c @ self.weights[1], c @ self.weights[2]
        future = torch.ones(5, 5, dtype=torch.bool).triu(1)
        return self.x - 2 * z + (q @ k.mT).masked_fill(future, -math.inf).softmax(-1) @ v


class IgnoresContext(OwnKeyFromContext):
    """The same attention with a two-argument force that is not frozen at the context at all."""

    def force(self, z, context=None):
        return super().force(z)


@pytest.mark.parametrize("kind", [OwnKeyFromContext, IgnoresContext])
def test_two_argument_force_is_checked_away_from_its_own_context(kind):
    system = kind()
    z = system.initial_state()
    assert torch.equal(system.force(z, z), system.force(z))  # where both arguments agree there is nothing to see
    with pytest.raises(CausalityError, match="two-argument"):
        check_causality(system, z)


def coupled(tokens, pairs, samples=1, strength=1.0):
    """Return a system claiming causality in which token s acts on token t of sample b for (b, t, s) in ``pairs``."""
    b = torch.zeros(samples, tokens, tokens, dtype=F64)
    for pair in pairs:
        b[pair] = strength
    start = torch.ones(samples, tokens, 2, dtype=F64)
    return from_ode(lambda z: b @ z - 2 * z, start, token_axis=1, causal=True)


@pytest.mark.parametrize("pair", [(0, 2, 3), (0, 0, 1), (0, 62, 63), (1, 33, 34), (0, 0, 63)])
def test_up_to_64_tokens_every_pair_is_tested(pair):
    check_causality(coupled(64, [(0, pair[2], pair[1])], 2), torch.ones(2, 64, 2, dtype=F64))
    with pytest.raises(CausalityError, match="moving tokens"):
        check_causality(coupled(64, [pair], 2, 1e-9), torch.ones(2, 64, 2, dtype=F64))


@pytest.mark.parametrize("distance", [4, 5, 40])
def test_with_many_tokens_pairs_wider_than_the_gap_between_cuts_are_tested(distance):
    """32 cuts in each of 3 samples over 300 tokens lie 299/95 = 3.15 apart, so any 4 tokens in a row hold one."""
    for t in (0, 1, 97, 299 - distance):
        leaks = [(b, t, t + distance) for b in range(3)]
        with pytest.raises(CausalityError, match="moving tokens"):
            check_causality(coupled(300, leaks, 3), torch.ones(3, 300, 2, dtype=F64))


class Counting(OwnKeyFromContext):
    """Force independent between tokens; counts how often it is asked for."""

    def __init__(self, tokens):
        self.x, self.count = torch.ones(2, tokens, 2, dtype=F64), 0

    def force(self, z, context=None):
        self.count += 1
        return self.x - z


@pytest.mark.parametrize(("tokens", "most"), [(1, 4), (64, 67), (65, 35), (1000, 35)])
def test_check_of_causality_has_a_bounded_cost(tokens, most):
    system = Counting(tokens)
    check_causality(system, 0.5 * system.x)
    assert system.count <= most
    with pytest.raises(UsageError, match="cuts=0"):
        check_causality(system, system.x, cuts=0)


def test_a_later_token_that_makes_the_force_nan_is_a_leak():
    system = from_ode(lambda z: z.flip(1).log() * 0 - z, torch.ones(8, 4, 3, dtype=F64), token_axis=1, causal=True)
    with pytest.raises(CausalityError, match="moving tokens"):
        check_causality(system, system.initial_state())


@pytest.mark.parametrize("attention", ["plain", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_honest_blocks_pass_the_causality_check(build, attention, dtype):
    system = build(seed=1, tokens=17, attention=attention, gain=3.0)
    bound = system.block.to(dtype).bind(system.tokens)
    check_causality(bound, bound.initial_state().detach())
    longer = build(seed=1, tokens=80, attention=attention, gain=3.0)
    bound = longer.block.to(dtype).bind(longer.tokens)
    check_causality(bound, bound.initial_state().detach())


def test_token_method_refuses_a_system_without_tokens():
    system = from_ode(lambda z: -z, torch.ones(2, 3, dtype=F64))
    with pytest.raises(DyneqError, match="does not declare"):
        leading_spectrum(
            Linearization(system, system.initial_state()), targets(), 2, generator=generator(), method="token"
        )


def test_structure_and_method_errors():
    with pytest.raises(DyneqError, match="token_axis=1"):
        dyneq.Structure(token_axis=None, causal=True)
    system = from_ode(lambda z: -z, torch.ones(1, 7000, dtype=F64))
    with pytest.raises(UsageError, match="6000"):
        leading_spectrum(
            Linearization(system, system.initial_state()), targets(), 2, generator=generator(), method="dense"
        )


def test_a_state_that_is_not_finite_is_refused():
    system = from_ode(lambda z: -z, torch.ones(3, 2, dtype=F64))
    z = system.initial_state().clone()
    z[1, 0] = math.nan
    with pytest.raises(DyneqError, match=r"samples \[1\]"):
        Linearization(system, z)
