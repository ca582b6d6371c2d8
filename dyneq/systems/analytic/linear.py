"""Linear systems, general and the named matrices that test an eigensolver."""

import math

import torch
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.systems.analytic.base import AnalyticFlow, AnalyticMap, scattered


def _check_square(matrix: Tensor, z0: Tensor | None) -> tuple[int, Tensor]:
    if matrix.ndim not in (2, 3) or matrix.shape[-1] != matrix.shape[-2]:
        raise DyneqError(
            f"a linear system needs a matrix [n, n] or [sample, n, n], but got {list(matrix.shape)}; pass a square one"
        )
    n = matrix.shape[-1]
    if z0 is None:
        samples = matrix.shape[0] if matrix.ndim == 3 else 4
        generator = torch.Generator().manual_seed(0)
        z0 = torch.randn(samples, n, generator=generator, dtype=torch.float64).to(matrix)
    if matrix.ndim == 3 and matrix.shape[0] != z0.shape[0]:
        raise DyneqError(
            f"{matrix.shape[0]} matrices were given for {z0.shape[0]} samples; give one for each, or one for all"
        )
    return n, z0


def _select_matrix(matrix: Tensor, samples: Tensor) -> Tensor:
    return matrix[samples] if matrix.ndim == 3 else matrix


def _times(matrix: Tensor, z: Tensor) -> Tensor:
    return (matrix @ z.unsqueeze(-1)).squeeze(-1)


class LinearFlow(AnalyticFlow):
    """dz/dt = A z; the Jacobian is A at every state.

    Args:
        matrix: A ``[n, n]``, or one for each sample ``[sample, n, n]``.
        z0: Start ``[sample, n]``; standard normal from seed 0 if None.
        eps: Step size.

    Raises:
        DyneqError: If the matrix is not square, or the numbers of matrices and samples differ.
    """

    def __init__(self, matrix: Tensor, z0: Tensor | None = None, *, eps: float = 0.1) -> None:
        n, z0 = _check_square(matrix, z0)
        super().__init__(n, z0, eps)
        self.matrix = matrix

    def rhs(self, z: Tensor) -> Tensor:
        """Return A z ``[sample, n]``."""
        return _times(self.matrix, z)

    def select(self, samples: Tensor) -> "LinearFlow":
        """Return the samples with their matrices, indices ``[k]``."""
        copy = super().select(samples)
        copy.matrix = _select_matrix(self.matrix, samples)
        return copy


class LinearMap(AnalyticMap):
    """z -> M z; the multipliers are the eigenvalues of M at every state.

    Args:
        matrix: M ``[n, n]``, or one for each sample ``[sample, n, n]``.
        z0: Start ``[sample, n]``; standard normal from seed 0 if None.

    Raises:
        DyneqError: If the matrix is not square, or the numbers of matrices and samples differ.
    """

    def __init__(self, matrix: Tensor, z0: Tensor | None = None) -> None:
        n, z0 = _check_square(matrix, z0)
        super().__init__(n, z0)
        self.matrix = matrix

    def step(self, z: Tensor) -> Tensor:
        """Return M z ``[sample, n]``."""
        return _times(self.matrix, z)

    def select(self, samples: Tensor) -> "LinearMap":
        """Return the samples with their matrices, indices ``[k]``."""
        copy = super().select(samples)
        copy.matrix = _select_matrix(self.matrix, samples)
        return copy


class RotationMap(LinearMap):
    """z -> r R(theta) z in the plane; multipliers r exp(+-i theta), so the spectral radius is r at every angle.

    A power iteration with a Rayleigh quotient reads r cos(theta) instead (SCIENCE.md, trap 2).

    Args:
        angle: theta, radians per step.
        radius: r.
        z0: Start ``[sample, 2]``.
    """

    def __init__(self, angle: float = 1.2, radius: float = 0.99, z0: Tensor | None = None) -> None:
        c, s = radius * math.cos(angle), radius * math.sin(angle)
        super().__init__(torch.tensor([[c, -s], [s, c]], dtype=torch.float64), z0)
        self.angle, self.radius = angle, radius

    @property
    def spectral_radius(self) -> float:
        """Largest modulus of a multiplier."""
        return abs(self.radius)

    @property
    def multipliers(self) -> tuple[complex, complex]:
        """The two multipliers, a conjugate pair."""
        pair = complex(self.radius * math.cos(self.angle), self.radius * math.sin(self.angle))
        return pair, pair.conjugate()


class Shear(LinearFlow):
    """dz/dt = [[-1, k], [0, -1]] z: stable at every coupling, with growth before decay when k > 2.

    Kreiss constant and growth as in Trefethen and Embree, Spectra and Pseudospectra (2005), sections 14 and 15.

    Args:
        coupling: k, at least 2 for the facts about growth.
        z0: Start ``[sample, 2]``.
        eps: Step size.
    """

    def __init__(self, coupling: float = 10.0, z0: Tensor | None = None, *, eps: float = 0.1) -> None:
        super().__init__(torch.tensor([[-1.0, coupling], [0.0, -1.0]], dtype=torch.float64), z0, eps=eps)
        self.coupling = coupling

    @property
    def numerical_abscissa(self) -> float:
        """Largest initial growth rate, -1 + abs(k)/2."""
        return abs(self.coupling) / 2 - 1

    @property
    def kreiss_constant(self) -> float:
        """Sup over Re s > 0 of Re s times the norm of the resolvent, k/4 + 1/k where k >= 2."""
        return self._growing() / 4 + 1 / self._growing()

    @property
    def largest_growth_time(self) -> float:
        """Time at which the norm of exp(A t) is largest, sqrt(1 - 4/k^2) where k >= 2."""
        return math.sqrt(1 - 4 / self._growing() ** 2)

    @property
    def largest_growth(self) -> float:
        """Largest norm of exp(A t), exp(asinh(k t/2) - t) at its time."""
        t = self.largest_growth_time
        return math.exp(math.asinh(self._growing() * t / 2) - t)

    def _growing(self) -> float:
        k = abs(self.coupling)
        if k < 2:
            raise DyneqError(
                f"the closed forms of transient growth hold for a coupling of at least 2, but it is {self.coupling}; "
                "below it nothing grows and both constants are 1"
            )
        return k


class Jordan(LinearFlow):
    """dz/dt = (decay I + k N) z with N the shift: one eigenvalue, one eigenvector, n-fold.

    Args:
        size: n.
        decay: The eigenvalue.
        coupling: k, the superdiagonal.
        z0: Start ``[sample, n]``.
        eps: Step size.
    """

    def __init__(
        self,
        size: int = 8,
        decay: float = -1.0,
        coupling: float = 1.0,
        z0: Tensor | None = None,
        *,
        eps: float = 0.1,
    ) -> None:
        ones = torch.ones(size, dtype=torch.float64)
        super().__init__(torch.diag(decay * ones) + torch.diag(coupling * ones[1:], 1), z0, eps=eps)
        self.size, self.decay, self.coupling = size, decay, coupling

    @property
    def numerical_abscissa(self) -> float:
        """Largest initial growth rate, decay + abs(k) cos(pi/(n + 1)): a symmetric tridiagonal Toeplitz matrix."""
        return self.decay + abs(self.coupling) * math.cos(math.pi / (self.size + 1))


class Grcar(LinearFlow):
    """dz/dt = (G + shift I) z with Grcar's matrix G: -1 below, 1 on and above the diagonal; strongly non-normal.

    Source: Grcar (1989), as in Trefethen and Embree (2005), section 7. G itself is unstable (abscissa 1.657 at n = 32).

    Args:
        size: n.
        superdiagonals: How many diagonals of ones lie above the main one.
        shift: Added to the diagonal, to make it stable.
        z0: Start ``[sample, n]``.
        eps: Step size.
    """

    def __init__(
        self,
        size: int = 32,
        superdiagonals: int = 3,
        shift: float = 0.0,
        z0: Tensor | None = None,
        *,
        eps: float = 0.1,
    ) -> None:
        ones = torch.ones(size, size, dtype=torch.float64)
        matrix = ones.triu().tril(superdiagonals) - ones.tril(-1).triu(-1)
        super().__init__(matrix + shift * torch.eye(size, dtype=torch.float64), z0, eps=eps)


class GradientFlow(AnalyticFlow):
    """dz/dt = -grad V with V = z^T S z/2 + sum z^4/4: the Jacobian -(S + 3 diag(z^2)) is symmetric everywhere.

    Args:
        matrix: S ``[n, n]``, symmetric positive definite (then 0 is the only root); a fixed one of size 6 if None.
        z0: Start ``[sample, n]``; within 1 of the origin if None.
        eps: Step size.

    Raises:
        DyneqError: If the matrix is not square and symmetric.
    """

    def __init__(self, matrix: Tensor | None = None, z0: Tensor | None = None, *, eps: float = 0.1) -> None:
        if matrix is None:
            n = torch.arange(1, 7, dtype=torch.float64)
            matrix = torch.diag(n / 2) + 0.2 / (n[:, None] + n[None, :])
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not torch.equal(matrix, matrix.mT):
            raise DyneqError(
                f"the matrix of a gradient flow should be symmetric [n, n], but {list(matrix.shape)} was given that is "
                "not; symmetrise it"
            )
        super().__init__(matrix.shape[0], scattered([0.0] * matrix.shape[0], 1.0) if z0 is None else z0, eps)
        self.matrix = matrix

    def rhs(self, z: Tensor) -> Tensor:
        """Return -S z - z^3 ``[sample, n]``."""
        return -z @ self.matrix - z**3

    def potential(self, z: Tensor) -> Tensor:
        """Return V ``[sample]``, which never grows along the flow."""
        return ((z @ self.matrix) * z).sum(-1) / 2 + (z**4).sum(-1) / 4
