"""Systems whose kind is known without dyneq's probes, for the bench of verdicts.

Each case says why its kind is known: a closed form, a planted spectrum, a published value, or a computation written
here with NumPy alone. Where theory leaves two kinds open, both are accepted and the reason is given.
"""

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

import dyneq
from dyneq.systems import analytic
from dyneq.systems.adapters.function import from_map, from_ode
from dyneq.systems.protocol import System
from dyneq.systems.thick import ThickBlock, ThickConfig

SAMPLES = 2


@dataclass(frozen=True)
class Case:
    """One system of known kind.

    Attributes:
        name: What it is.
        kinds: The verdicts that are right, for every sample; None where each sample has its own (see ``truth``).
        make: Makes the system from a seed.
        why: Why the kind is known.
        depth: Relaxation steps.
        truth: For systems whose samples differ: the right verdicts of each sample.
        seeds: Seeds to run.
    """

    name: str
    kinds: frozenset[str] | None
    make: Callable[[int], System]
    why: str
    depth: int = 1000
    truth: Callable[[int], list[frozenset[str]]] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)

    def right(self, seed: int, samples: int) -> list[frozenset[str]]:
        """Return the right verdicts of every sample."""
        if self.truth is not None:
            return self.truth(seed)
        assert self.kinds is not None
        return [self.kinds] * samples


def start(seed: int, centre: list[float], spread: float, samples: int = SAMPLES) -> Tensor:
    """Return starts ``[sample, component]`` scattered uniformly within ``spread`` of ``centre``."""
    generator = torch.Generator().manual_seed(1000 + seed)
    offset = 2 * torch.rand(samples, len(centre), generator=generator, dtype=torch.float64) - 1
    return torch.tensor(centre, dtype=torch.float64) + spread * offset


def planted(seed: int, pairs: list[complex], real: list[float]) -> Tensor:
    """Return a non-normal matrix with given pairs and real eigenvalues: a random similarity of its rotation blocks."""
    size = 2 * len(pairs) + len(real)
    blocks = torch.zeros(size, size, dtype=torch.float64)
    for i, mu in enumerate(pairs):
        blocks[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[mu.real, mu.imag], [-mu.imag, mu.real]])
    for i, mu in enumerate(real):
        blocks[2 * len(pairs) + i, 2 * len(pairs) + i] = mu
    generator = torch.Generator().manual_seed(seed)
    basis = torch.eye(size, dtype=torch.float64) + 0.3 * torch.randn(
        size, size, generator=generator, dtype=torch.float64
    )
    return basis @ blocks @ torch.linalg.inv(basis)


def _linear(pairs: list[complex], real: list[float], eps: float = 0.1) -> Callable[[int], System]:
    def make(seed: int) -> System:
        generator = torch.Generator().manual_seed(50 + seed)
        z0 = torch.randn(SAMPLES, 2 * len(pairs) + len(real), generator=generator, dtype=torch.float64)
        return analytic.LinearFlow(planted(seed, pairs, real), z0, eps=eps)

    return make


def _scalar(rhs: Callable[[Tensor], Tensor], centre: float, spread: float, eps: float = 0.1) -> Callable[[int], System]:
    return lambda seed: from_ode(rhs, start(seed, [centre], spread), eps=eps)


def two_oscillators(seed: int) -> System:
    """Two uncoupled Stuart-Landau oscillators with frequencies 1.3 and 1.3 times the golden ratio."""
    golden = (1 + math.sqrt(5)) / 2

    def rhs(z: Tensor) -> Tensor:
        parts = []
        for w, nu in ((z[..., :2], 1.3), (z[..., 2:], 1.3 * golden)):
            x, y = w.unbind(-1)
            growth = 0.5 - x * x - y * y
            parts += [growth * x - nu * y, nu * x + growth * y]
        return torch.stack(parts, dim=-1)

    return from_ode(rhs, start(seed, [0.7, 0.0, 0.7, 0.0], 0.3), eps=0.05, name="two oscillators")


def rotating_block(seed: int, *, pull: float, angle: float = 0.7, eps: float = 0.05) -> System:
    """A thick block whose attention turns the normalised state by an angle: z' = x - 2 z + g R LN(z), no FFN.

    With x = 0 and R a rotation of the plane of two mean-free directions, z = r (cos p, sin p) obeys
    r' = -2 r + g sqrt(C) cos(angle), p' = g sqrt(C) sin(angle)/r: a stable circle of radius g sqrt(C) cos(angle)/2 on
    which it turns by 2 tan(angle) per unit time. With one token, attention is W_O W_V exactly. A large x holds the
    state: the Jacobian is then close to -2.
    """
    channels = 4
    config = ThickConfig(vocabulary=4, channels=channels, heads=1, tokens=1, attention_bias=False, eps=eps)
    block = ThickBlock(config, torch.Generator().manual_seed(seed)).double()
    u = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64) / math.sqrt(2)
    v = torch.tensor([0.0, 0.0, 1.0, -1.0], dtype=torch.float64) / math.sqrt(2)
    turn = math.cos(angle) * (torch.outer(u, u) + torch.outer(v, v)) + math.sin(angle) * (
        torch.outer(v, u) - torch.outer(u, v)
    )
    generator = torch.Generator().manual_seed(200 + seed)
    phases = 2 * math.pi * torch.rand(channels, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        block.attn.wv.weight.copy_(turn)
        block.attn.wo.weight.copy_(torch.eye(channels, dtype=torch.float64))
        for part in (block.ffn.pj, block.ffn.fc):
            part.weight.zero_()
            part.bias.zero_()
        block.pos.weight.zero_()
        block.tok.weight.copy_(pull * (phases.cos()[:, None] * u + phases.sin()[:, None] * v))
    return block.requires_grad_(False).bind(torch.arange(SAMPLES)[:, None])


def network(seed: int, gain: float, size: int = 100) -> System:
    """A random recurrent network z -> tanh(W z) with W of variance gain^2/size."""
    weights = _weights(seed, gain, size)
    generator = torch.Generator().manual_seed(300 + seed)
    z0 = torch.randn(SAMPLES, size, generator=generator, dtype=torch.float64)
    return from_map(lambda z: torch.tanh(z @ weights.T), z0, name="random network")


def _weights(seed: int, gain: float, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(400 + seed)
    return torch.randn(size, size, generator=generator, dtype=torch.float64) * gain / math.sqrt(size)


@functools.cache
def network_exponent(seed: int, gain: float, size: int) -> tuple[float, ...]:
    """Return the leading Lyapunov exponent of every sample of :func:`network`, by NumPy alone (Benettin, 1980)."""
    w = _weights(seed, gain, size).numpy()
    states = network(seed, gain, size).initial_state().numpy()
    found = []
    for z in states:
        rng = np.random.default_rng(seed)
        v, total, steps = rng.standard_normal(size), 0.0, 20000
        for n in range(2000 + steps):
            z = np.tanh(w @ z)
            v = (1 - z * z) * (w @ v)
            norm = float(np.linalg.norm(v))
            v /= norm
            if n >= 2000:
                total += math.log(norm)
        found.append(total / steps)
    return tuple(found)


def network_truth(gain: float) -> Callable[[int], list[frozenset[str]]]:
    """Return what a strongly coupled network does, by the sign of its exponent; near 0 several kinds are possible."""

    def truth(seed: int) -> list[frozenset[str]]:
        kinds = []
        for exponent in network_exponent(seed, gain, 100):
            if exponent > 0.01:
                kinds.append(frozenset({"chaos"}))
            else:
                kinds.append(frozenset({"limit-cycle", "torus", "fixed-point", "slow"}))
        return kinds

    return truth


def reference_truth(name: str, batch: int) -> list[frozenset[str]]:
    """Return the kinds of a packaged checkpoint's samples by its manifest.

    The manifest comes from 2,000 relaxation steps and dense eigenvalues at the roots: unstable flow, stable flow with
    a critical step below eps, or both stable, which is then slow.
    """
    manifest = json.loads(files("dyneq").joinpath("reference/manifest.json").read_text())
    run = manifest["checkpoints"][name]["long_run"]
    kinds = [frozenset({"fixed-point", "slow"})] * batch
    for pair in run["pairs"]:
        if pair["sample"] < batch:
            unstable, step = pair["mu"][0] > 0, pair["critical_eps"] is not None and pair["critical_eps"] < 0.1
            kind = "limit-cycle" if unstable else "discrete-instability" if step else "slow"
            kinds[pair["sample"]] = frozenset({kind})
    return kinds


def _reference(name: str, batch: int) -> Case:
    return Case(
        f"packaged checkpoint {name}",
        None,
        lambda seed: dyneq.open_checkpoint(name).bind(batch=batch),
        "its manifest: 2,000 steps, and dense eigenvalues at the roots",
        truth=lambda seed: reference_truth(name, batch),
        seeds=(0,),
    )


def hidden_saddle(seed: int) -> System:
    """A state at rest on a root of 100 dimensions of which one, of rate 0.02, leads away."""
    centre = torch.ones(100, dtype=torch.float64)
    centre[0] = 0

    def rhs(z: Tensor) -> Tensor:
        w = z - centre
        return torch.cat([0.02 * w[..., :1] - w[..., :1] ** 3, -w[..., 1:]], dim=-1)

    return from_ode(rhs, torch.zeros(SAMPLES, 100, dtype=torch.float64), name="hidden saddle")


def two_tokens(
    rhs: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], first: list[float], second: list[float]
) -> Callable[[int], System]:
    """Return a causal flow of two tokens with two channels; ``rhs`` takes them as ``[..., channel]`` each."""

    def make(seed: int) -> System:
        z0 = torch.stack([start(seed, first, 1e-3), start(seed + 100, second, 0.05)], dim=1)
        return from_ode(
            lambda z: torch.stack(rhs(z[..., 0, :], z[..., 1, :]), dim=-2), z0, eps=0.05, token_axis=1, causal=True
        )

    return make


def landau(z: Tensor, r: Tensor | float, nu: float) -> Tensor:
    """Return the Stuart-Landau force on a plane."""
    x, y = z.unbind(-1)
    growth = r - x * x - y * y
    return torch.stack([growth * x - nu * y, nu * x + growth * y], dim=-1)


def _coexisting(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    x, y = b.unbind(-1)
    square = x * x + y * y
    growth = -(square - 0.25) * (square - 1)
    return -0.0005 * (a - 1), torch.stack([growth * x - y, x + growth * y], dim=-1)


def _lifted(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    u, v = a.unbind(-1)
    return torch.stack([0.1 * u - 2 * u**3, -v], dim=-1), landau(b, -0.2 + 12 * u * u, 1.0)


def _lowered(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    u, v = a.unbind(-1)
    return torch.stack([0.1 * u - 2 * u**3, -v], dim=-1), landau(b, 0.2 - 12 * u * u, 1.0)


def _rootless(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    w, v = b.unbind(-1)
    return landau(a, 0.5, 2.0), torch.stack([0.01 - 4 * (a * a).sum(-1) + w * w, -v], dim=-1)


def _beside_huge(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return -(a - 1e7), landau(b, 0.5, 2.0)


def _may_leonard(z: Tensor) -> Tensor:
    x, y, w = z.unbind(-1)
    a, b = 0.8, 1.3
    return torch.stack([x * (1 - x - a * y - b * w), y * (1 - b * x - y - a * w), w * (1 - a * x - b * y - w)], dim=-1)


def _subcritical(z: Tensor) -> Tensor:
    x, y = z.unbind(-1)
    return torch.stack([y, 0.02 * y + 40 * x * x * y * (1 - x * x) - x], dim=-1)


def _jordan(seed: int) -> System:
    matrix = torch.diag_embed(torch.full((24,), -0.1, dtype=torch.float64))
    matrix += torch.diag_embed(torch.full((23,), 0.3, dtype=torch.float64), offset=1)
    return analytic.LinearFlow(matrix, start(seed, [1.0] * 24, 0.5))


def _case(name: str, kinds: str, make: Callable[[int], System], why: str, depth: int = 1000) -> Case:
    return Case(name, frozenset(kinds.split("|")), make, why, depth)


CASES = [
    _case("linear, stable pair", "fixed-point", _linear([-0.5 + 2j], [-1.0, -2.0]), "planted spectrum"),
    _case("linear, slow real mode", "slow", _linear([-0.5 + 2j], [-0.004]), "planted: exp(-0.4) after 1,000 steps"),
    _case("linear, slow pair", "slow", _linear([-0.003 + 0.05j], [-1.0]), "planted, critical step 2.4"),
    _case(
        "linear, step above the critical one",
        "discrete-instability",
        _linear([-0.1 + 3j], [-1.0]),
        "planted: eps* 0.022",
    ),
    _case("linear, stiff", "discrete-instability", _linear([-0.5 + 0.1j], [-25.0]), "planted: eps* 0.08, a flip"),
    _case(
        "linear, the rightmost mode is not the critical one",
        "discrete-instability",
        _linear([-0.3 + 4j], [-0.05, -1.0]),
        "planted: eps* 0.037 of the pair, abscissa -0.05 real",
    ),
    _case(
        "Stuart-Landau, r = 0.5",
        "limit-cycle",
        lambda s: analytic.StuartLandau(0.5, 2.0, z0=start(s, [1.0, 0.0], 0.5), eps=0.02),
        "closed form",
    ),
    _case(
        "Stuart-Landau, r = 0.03",
        "limit-cycle",
        lambda s: analytic.StuartLandau(0.03, 1.0, z0=start(s, [0.4, 0.0], 0.1), eps=0.02),
        "closed form",
        4000,
    ),
    _case(
        "Stuart-Landau, r = -0.5",
        "fixed-point",
        lambda s: analytic.StuartLandau(-0.5, 2.0, z0=start(s, [1.0, 0.0], 0.5), eps=0.05),
        "closed form",
        2000,
    ),
    _case(
        "Stuart-Landau, decaying spiral",
        "slow",
        lambda s: analytic.StuartLandau(-0.02, 1.0, z0=start(s, [0.5, 0.0], 0.2), eps=0.02),
        "closed form: exp(-0.4) after 1,000 steps, critical step 0.04",
    ),
    _case(
        "Stuart-Landau, r = -0.02, step 0.1",
        "discrete-instability",
        lambda s: analytic.StuartLandau(-0.02, 1.0, z0=start(s, [0.5, 0.0], 0.2), eps=0.1),
        "closed form: eps* 0.04",
    ),
    _case(
        "Euler circle of a stable flow",
        "discrete-instability",
        lambda s: analytic.HopfNormalForm(z0=start(s, [0.3, 0.0], 0.1)),
        "closed form: radius 0.409816",
    ),
    _case(
        "Euler flip of a stable flow",
        "discrete-instability",
        lambda s: analytic.FlipFlow(z0=start(s, [0.5], 0.2)),
        "closed form",
    ),
    _case(
        "Euler flip, beyond period 2",
        "discrete-instability",
        lambda s: analytic.FlipFlow(-31.5, z0=start(s, [0.5], 0.1)),
        "eps mu = -3.15: the orbit of period 2 is unstable",
    ),
    _case(
        "van der Pol, mu = 1",
        "limit-cycle",
        lambda s: analytic.VanDerPol(1.0, start(s, [2.0, 0.0], 0.5), eps=0.03),
        "Lienard's theorem: one stable cycle",
        2000,
    ),
    _case(
        "van der Pol, mu = 5",
        "limit-cycle",
        lambda s: analytic.VanDerPol(5.0, start(s, [2.0, 0.0], 0.5), eps=0.02),
        "Lienard's theorem: one stable cycle",
        2000,
    ),
    _case(
        "Brusselator above its Hopf point",
        "limit-cycle",
        lambda s: analytic.Brusselator(1.0, 2.3, start(s, [1.0, 2.3], 0.3), eps=0.02),
        "supercritical at B = 2",
        3000,
    ),
    _case(
        "Brusselator below its Hopf point",
        "fixed-point",
        lambda s: analytic.Brusselator(1.0, 1.2, start(s, [1.0, 1.2], 0.3), eps=0.05),
        "trace -0.8",
    ),
    _case(
        "FitzHugh-Nagumo, I = 0.5",
        "limit-cycle",
        lambda s: analytic.FitzHughNagumo(0.5, z0=start(s, [0.0, 1.0], 0.3), eps=0.2),
        "between its Hopf points, bounded, one root",
        3000,
    ),
    _case(
        "FitzHugh-Nagumo, I = 0.1",
        "fixed-point|slow",
        lambda s: analytic.FitzHughNagumo(0.1, z0=start(s, [-1.0, -0.5], 0.1)),
        "below its Hopf points",
        4000,
    ),
    _case(
        "FitzHugh-Nagumo beside its subcritical Hopf point",
        "limit-cycle",
        lambda s: analytic.FitzHughNagumo(0.33, z0=start(s, [2.0, 0.5], 0.1), eps=0.2),
        "I = 0.33 < 0.33128: a stable root inside a stable relaxation cycle",
        3000,
    ),
    _case(
        "Lorenz, rho = 28",
        "chaos",
        lambda s: analytic.Lorenz(z0=start(s, [1.0, 1.0, 20.0], 1.0)),
        "exponent 0.906",
        4000,
    ),
    _case(
        "Lorenz, rho = 10",
        "fixed-point|slow",
        lambda s: analytic.Lorenz(rho=10.0, z0=start(s, [3.0, 3.0, 9.0], 1.0), eps=0.01),
        "stable roots below rho = 24.74",
        4000,
    ),
    _case("Henon", "chaos", lambda s: analytic.Henon(z0=start(s, [0.0, 0.0], 0.1)), "exponent 0.419"),
    _case(
        "logistic, r = 2.8", "fixed-point", lambda s: analytic.Logistic(2.8, start(s, [0.4], 0.1)), "multiplier -0.8"
    ),
    _case("logistic, r = 3.2", "limit-cycle", lambda s: analytic.Logistic(3.2, start(s, [0.4], 0.1)), "period 2"),
    _case("logistic, r = 3.5", "limit-cycle", lambda s: analytic.Logistic(3.5, start(s, [0.4], 0.1)), "period 4"),
    _case("logistic, r = 4", "chaos", lambda s: analytic.Logistic(4.0, start(s, [0.4], 0.1)), "exponent ln 2"),
    _case("two oscillators", "torus", two_oscillators, "uncoupled, frequencies in the golden ratio", 2000),
    _case(
        "at a saddle",
        "saddle",
        lambda s: from_ode(lambda z: z - z**3, torch.zeros(SAMPLES, 1, dtype=torch.float64)),
        "mu = 1",
    ),
    _case("near a saddle", "fixed-point", _scalar(lambda z: z - z**3, 0.0, 0.5), "it leaves for +-1, mu = -2"),
    _case(
        "ghost of a saddle-node", "fold", _scalar(lambda z: 1e-4 + z * z, -1.0, 0.2), "passage pi/0.01 = 314, after 100"
    ),
    _case("on a fold", "fold", _scalar(lambda z: z * z, -1.0, 0.2), "z = -1/(t + 1): the double root, mu = 0"),
    _case("explosion", "diverged", _scalar(lambda z: z + z**3, 0.5, 0.2, 0.01), "infinite in finite time"),
    _case(
        "rotation, radius 0.99",
        "fixed-point|slow",
        lambda s: analytic.RotationMap(1.2, 0.99, start(s, [1.0, 0.0], 0.2)),
        "multiplier 0.99: residual 4e-5 after 1,000 steps",
    ),
    _case(
        "rotation, radius 1.05",
        "diverged",
        lambda s: analytic.RotationMap(1.2, 1.05, start(s, [1.0, 0.0], 0.2)),
        "multiplier 1.05",
    ),
    _case("random network, gain 0.8", "fixed-point", lambda s: network(s, 0.8), "circular law: multipliers within 0.8"),
    Case(
        "random network, gain 2",
        None,
        lambda s: network(s, 2.0),
        "sign of the exponent, by NumPy alone",
        truth=network_truth(2.0),
    ),
    _case(
        "rotating block",
        "limit-cycle",
        lambda s: rotating_block(s, pull=0.01),
        "closed form for x = 0: a circle, period pi/tan(0.7) = 3.73",
        2000,
    ),
    _case("held block", "fixed-point", lambda s: rotating_block(s, pull=20.0), "x = 20 against a branch of 2"),
    _case(
        "held block, large step",
        "discrete-instability",
        lambda s: rotating_block(s, pull=20.0, eps=1.05),
        "all rates near -2: eps* near 1",
    ),
    # where a check by simulation or by linearisation alone would be wrong
    _case("hidden saddle", "saddle", hidden_saddle, "mu = 0.02 in one of 100 dimensions, at rest there"),
    _case(
        "stiff beyond every step tried", "discrete-instability", _linear([-1.0 + 0.1j], [-1e4]), "planted: eps* 2e-4"
    ),
    _case("large root", "fixed-point|slow", _scalar(lambda z: -(z - 1e10), 0.0, 0.5), "mu = -1, root 1e10"),
    _case("long transient", "fixed-point|slow", _jordan, "eigenvalue -0.1; grows by 1e8 before it returns"),
    _case("blow-up without a fold", "diverged", _scalar(torch.exp, -7.0, 0.2), "z' = exp(z): no root anywhere"),
    _case(
        "overflow from afar", "discrete-instability", _scalar(lambda z: -(z**3) - 0.01 * z, 10.0, 0.5), "monotone flow"
    ),
    _case(
        "scalar, large step",
        "discrete-instability",
        _scalar(lambda z: 60 * z * (1 - z * z) / (1 + z.abs() ** 3), 1.5, 0.5),
        "a scalar flow has no cycles; its roots +-1 have mu = -60",
    ),
    _case(
        "stiff cycle around a weak focus",
        "limit-cycle",
        lambda s: from_ode(_subcritical, start(s, [0.3, 0.0], 0.1), eps=0.1),
        "bounded, its only root is unstable",
    ),
    _case(
        "heteroclinic cycle",
        "undetermined",
        lambda s: from_ode(_may_leonard, start(s, [0.5, 0.3, 0.2], 0.05)),
        "May and Leonard 1975: it visits three saddles for ever longer times",
    ),
    _case(
        "logistic, r = 3", "slow", lambda s: analytic.Logistic(3.0, start(s, [0.4], 0.1)), "multiplier -1, a power law"
    ),
    _case(
        "intermittency",
        "chaos",
        lambda s: analytic.Logistic(1 + math.sqrt(8) - 1e-9, start(s, [0.4], 0.1)),
        "just before the window of period 3",
    ),
    _case(
        "Lorenz, rho = 22",
        "fixed-point|slow|discrete-instability",
        lambda s: analytic.Lorenz(rho=22.0, z0=start(s, [3.0, 3.0, 9.0], 1.0), eps=0.01),
        "stable roots below rho = 24.74; transient chaos",
        2000,
    ),
    _case(
        "two tokens, slow and cycling",
        "limit-cycle",
        two_tokens(_coexisting, [0.0, 0.0], [1.0, 0.0]),
        "the circle r = 1",
    ),
    _case(
        "two tokens, the first lifts the second",
        "limit-cycle",
        two_tokens(_lifted, [0.0, 0.0], [0.3, 0.0]),
        "r = 0.4 in the end",
    ),
    _case(
        "two tokens, the first calms the second",
        "fixed-point|slow|saddle",
        two_tokens(_lowered, [0.0, 0.0], [0.3, 0.0]),
        "r = -0.4 in the end",
    ),
    _case(
        "two tokens, the second follows",
        "limit-cycle",
        two_tokens(_rootless, [0.7, 0.0], [-1.0, 0.0]),
        "token 0 circles",
    ),
    _case(
        "a small token beside a huge one",
        "limit-cycle",
        two_tokens(_beside_huge, [1e7, 1e7], [0.7, 0.0]),
        "token 1 circles",
    ),
    _reference("converges", 8),
    _reference("before", 8),
    _reference("after", 24),
]
