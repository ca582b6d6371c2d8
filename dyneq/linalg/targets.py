"""What is wanted of a spectrum: a target ranks the eigenvalues mu of J.

One Krylov space of J serves every target, because the space of 1 + eps J is the same one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class Target(ABC):
    """A ranking of eigenvalues.

    Krylov methods converge to the outside of a spectrum first, so a ranking should want what lies outside: its level
    sets should be circles or lines beyond which there is nothing more wanted.
    """

    @abstractmethod
    def key(self, mu: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Return one real number an eigenvalue, the larger the more wanted, never NaN.

        A key must not depend on the sign of the imaginary part, so that a conjugate pair is wanted as a whole.

        Args:
            mu: Eigenvalues, any shape.
        """


@dataclass(frozen=True)
class Rightmost(Target):
    """Largest Re mu: the abscissa, which decides the stability of the flow."""

    def key(self, mu: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Return Re mu."""
        return np.asarray(mu.real, dtype=np.float64)


@dataclass(frozen=True)
class LargestMagnitude(Target):
    """Largest abs(mu): the spectral radius of the operator itself."""

    def key(self, mu: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Return abs(mu)."""
        return np.asarray(np.abs(mu), dtype=np.float64)


@dataclass(frozen=True)
class LargestModulus(Target):
    """Largest abs(1 + eps mu): the spectral radius of the relaxation map M = I + eps J.

    Args:
        eps: Step of the relaxation, positive.

    Raises:
        ValueError: If `eps` is not positive.
    """

    eps: float

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise ValueError(f"LargestModulus needs a positive step eps, got {self.eps}.")

    def key(self, mu: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Return abs(1 + eps mu)."""
        return np.asarray(np.abs(1.0 + self.eps * mu), dtype=np.float64)


@dataclass(frozen=True)
class CriticalStep(Target):
    """The mode that sets the critical step of Euler's method, min over modes of -2 Re mu / abs(mu)^2.

    The level set of -2 Re mu / abs(mu)^2 = eps is the circle abs(1 + eps mu) = 1, so the mode with the smallest value
    is an exterior one. Modes with Re mu >= 0, for which no step is stable, come before all others, rightmost first.
    """

    def key(self, mu: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Return Re mu where it is not negative, else 2 Re mu / abs(mu)^2."""
        real = np.asarray(mu.real, dtype=np.float64)
        return np.where(real >= 0, real, -critical_step(mu, unstable=0.0))


def critical_step(mu: NDArray[np.complex128], *, unstable: float = np.nan) -> NDArray[np.float64]:
    """Return the step -2 Re mu / abs(mu)^2 above which Euler's method amplifies each mode.

    Args:
        mu: Eigenvalues of J, any shape.
        unstable: Value for modes with Re mu >= 0 (or NaN), which no step makes stable.

    Returns:
        One step for each mode, in units of 1/abs(mu); the critical step of the whole is the minimum over modes, and is
        defined only where every mode has Re mu < 0.
    """
    real = np.asarray(mu.real, dtype=np.float64)
    stable = real < 0
    # hypot first, divided one factor at a time: abs(mu)^2 would underflow for tiny mu
    modulus = np.where(stable, np.abs(mu), 1.0)
    with np.errstate(over="ignore"):
        step = 2.0 * (-real / modulus) / modulus
    return np.where(stable, step, unstable)


def ranked(mu: NDArray[np.complex128], target: Target) -> NDArray[np.float64]:
    """Return `target.key`, evaluated in the upper half plane so that both members of a pair get the same number.

    Args:
        mu: Eigenvalues, any shape.
        target: The ranking.

    Raises:
        ValueError: If the key has another shape than `mu` or holds NaN.
    """
    key = np.asarray(target.key(mu.real + 1j * np.abs(mu.imag)), dtype=np.float64)
    if key.shape != mu.shape or np.isnan(key).any():
        raise ValueError(
            f"{target!r}.key should return one real number for each of {mu.shape} eigenvalues and no NaN, "
            f"it returned shape {key.shape}{' with NaN' if np.isnan(key).any() else ''}; correct the target."
        )
    return key


def check_targets(targets: Sequence[Target], count: int) -> tuple[Target, ...]:
    """Return the targets as a tuple.

    Args:
        targets: At least one target.
        count: Pairs wanted of each, at least 1.

    Raises:
        ValueError: If there is no target or nothing is wanted.
        TypeError: If one of them is not a `Target`.
    """
    found = tuple(targets)
    if not found:
        raise ValueError("At least one target is needed, such as Rightmost(), got none.")
    for target in found:
        if not isinstance(target, Target):
            raise TypeError(f"A target is an object such as Rightmost(), got {target!r}.")
    if count < 1:
        raise ValueError(f"At least one eigenvalue of each target must be wanted, got count={count}.")
    return found
