"""The normal form of a Hopf bifurcation: z' = i omega z + c1 z abs(z)^2 + ...

Re c1, the first Lyapunov coefficient up to a positive factor, decides what happens beyond the critical parameter: below
0 (supercritical) a small stable cycle grows out of the root, with an amplitude like the square root of the distance;
above 0 (subcritical) there is none near, and the state jumps to something far away.
"""

import enum
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.multilinear import complex_form, disagreement
from dyneq.dynamics.subsystem import TokenSystem
from dyneq.errors import UsageError
from dyneq.systems.protocol import System, Time

#: Real or complex.
Vector = NDArray[Any]
#: Largest state whose dense algebra is done.
LIMIT = 2000
#: A coefficient is told from 0 if it is this many times its error.
CLEAR = 3.0


class Criticality(enum.StrEnum):
    """What a Hopf bifurcation does."""

    SUPERCRITICAL = "supercritical"
    SUBCRITICAL = "subcritical"
    UNDETERMINED = "undetermined"


@dataclass(frozen=True)
class NormalForm:
    """The cubic coefficient at one root.

    Attributes:
        c1: The coefficient with norm(q) = 1 and <p, q> = 1, per unit time and squared state; NaN where not known.
        error: Estimate of abs(error of c1) from the residual of the pair and the rounding of the sum.
        mu: The pair's eigenvalue, imaginary part above 0.
        scale: Sum of the absolute values of the three terms of c1.
        reason: Why it is not known; empty if it is.
    """

    c1: complex
    error: float
    mu: complex
    scale: float
    reason: str = ""

    @property
    def known(self) -> bool:
        """Whether there is a coefficient."""
        return math.isfinite(self.c1.real)


def criticality(value: float, error: float) -> Criticality:
    """Return what the sign of Re c1 says, undetermined unless it is :data:`CLEAR` of its error."""
    if not abs(value) > CLEAR * error or math.isnan(error):
        return Criticality.UNDETERMINED
    return Criticality.SUBCRITICAL if value > 0 else Criticality.SUPERCRITICAL


def unknown(reason: str) -> NormalForm:
    """Return a normal form that is not known, for a reason."""
    return NormalForm(complex(math.nan, math.nan), math.nan, complex(math.nan, math.nan), math.nan, reason)


def at_token(system: System, z: Tensor, token: int) -> tuple[System, Tensor]:
    """Return the system that a pair of one sample belongs to, and its root ``[1, n]`` or ``[1, ...]``.

    In a causal block nothing after a token acts on it, and where the tokens before it are stable, their deviations from
    the root die out: on the centre manifold of a pair of J_tt they are zero, so that the normal form is that of token t
    alone with the earlier tokens at their root.

    Args:
        system: System of one sample.
        z: Its root ``[1, ...]``.
        token: Token of the pair, -1 without tokens.
    """
    if token < 0:
        return system, z
    return TokenSystem(system, z, [0], [token]), z[:, token]


def hopf_normal_form(system: System, z: Tensor, frequency: float) -> NormalForm:
    """Return the cubic coefficient of a Hopf bifurcation at a root, from the pair nearest to i ``frequency``.

    c1 = 1/2 <p, C(q, q, q*) - 2 B(q, A^{-1} B(q, q*)) + B(q*, (2 i omega - A)^{-1} B(q, q))> with A q = i omega q,
    A^T p = -i omega p, norm(q) = 1, <p, q> = 1, and B, C the second and third derivatives of the force (Kuznetsov,
    Elements of Applied Bifurcation Theory, 2004, equations 3.20 and 5.62; the first Lyapunov coefficient is Re
    c1/omega). Halving q would divide it by four: its sign, not its size, is free of that choice.

    Args:
        system: System of one sample, or one row of a token system.
        z: Root ``[1, ...]``, at or very near the critical parameter.
        frequency: Angular frequency of the pair, positive.

    Raises:
        UsageError: If there is more than one sample, or the state is too large for dense algebra.
    """
    if z.shape[0] != 1:
        raise UsageError(f"a normal form is that of one sample, but {z.shape[0]} were given; select one")
    n = z.numel()
    if n > LIMIT:
        raise UsageError(
            f"the normal form of a state of dimension {n} was asked for, but above {LIMIT} its dense algebra is "
            "refused; use a causal block, whose normal form is that of one token"
        )
    if system.time is Time.MAP:
        return unknown("it is computed for flows, and this is a map")
    if not frequency > 0:
        return unknown("the eigenvalue is real: there is no oscillation")
    with torch.no_grad():
        a = Linearization(system, z).dense()[0].double().cpu().numpy()
    pair = _pair(a, frequency)
    try:
        return _coefficient(system, z, a, *pair)
    except (RuntimeError, NotImplementedError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return unknown(f"the force cannot be differentiated three times ({first})")


def _pair(a: NDArray[np.float64], frequency: float) -> tuple[complex, Vector, Vector]:
    """Return the eigenvalue nearest to i frequency, q with norm 1, and p with p^H q = 1 (infinite if defective)."""
    values, left, right = scipy.linalg.eig(a, left=True, right=True)
    at = int(np.argmin(np.abs(values - 1j * frequency)))
    q, p = right[:, at] / np.linalg.norm(right[:, at]), left[:, at]
    with np.errstate(divide="ignore", invalid="ignore"):
        return complex(values[at]), q, p / np.conj(np.vdot(p, q))


def _coefficient(
    system: System,
    z: Tensor,
    a: NDArray[np.float64],
    mu: complex,
    q: Vector,
    p: Vector,
) -> NormalForm:
    n, omega = len(a), abs(mu.imag)
    if not np.isfinite(p).all() or omega == 0:
        return unknown("the pair is defective or real: a double eigenvalue, where another normal form holds")

    def to_state(v: Vector) -> Tensor:
        return torch.as_tensor(v, device=z.device).view_as(z)

    def of(*vectors: Vector) -> Vector:
        return complex_form(system.force, z, [to_state(v) for v in vectors]).flatten().cpu().numpy()

    size = max(float(torch.linalg.vector_norm(x.double())) for x in (z, system.initial_state().detach()))
    for u, v in ((q.real, q.imag), (q.imag, q.real)):
        first, second = (to_state(x).to(z.dtype) for x in (u, v))
        if disagreement(system.force, z, first, second, size or 1.0) > 1:
            return unknown("second and third derivatives of the force disagree with finite differences")
    shifted = 2j * omega * np.eye(n) - a
    condition = [np.linalg.cond(m) for m in (a, shifted)]
    if not np.isfinite(condition).all() or max(condition) * torch.finfo(z.dtype).eps > 1e-3:
        return unknown("a second eigenvalue is critical as well (0 or twice the frequency)")
    mean = -np.linalg.solve(a, of(q, q.conj()))
    double = np.linalg.solve(shifted, of(q, q))
    terms = of(q, q, q.conj()), 2 * of(q, mean), of(q.conj(), double)
    c1 = complex(sum(np.vdot(p, term) for term in terms)) / 2
    # what rounding of the forms, of the solves and of the pair leaves of each term
    unit = torch.finfo(z.dtype).eps * n
    backward = float(np.linalg.norm(a @ q - mu * q)) / max(omega, np.finfo(float).tiny) + unit
    sizes = [float(np.linalg.norm(p) * np.linalg.norm(term)) / 2 for term in terms]
    weights = [1.0, condition[0], condition[1]]
    error = (backward * float(np.linalg.norm(p)) + 8 * unit) * sum(s * w for s, w in zip(sizes, weights, strict=True))
    return NormalForm(c1, error, complex(mu.real, omega), sum(sizes))
