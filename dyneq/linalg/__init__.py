"""Batched linear operators and Krylov methods on them; this layer knows no system."""

from dyneq.linalg.arnoldi import Arnoldi
from dyneq.linalg.dense import dense_eigenpairs, dense_eigenvalues
from dyneq.linalg.dense_growth import FlowGrowth, PowerGrowth, flow_growth, power_growth
from dyneq.linalg.gmres import GmresResult, GmresStatus, solve
from dyneq.linalg.growth import Growth, transient_growth
from dyneq.linalg.henrici import Departure, departure_from_normality
from dyneq.linalg.hutchinson import Estimate, Probes, jackknife, random_products
from dyneq.linalg.kreiss import Kreiss, kreiss_lower_bound
from dyneq.linalg.krylov_schur import eigenpairs
from dyneq.linalg.lanczos import SymmetricResult, extremal_symmetric
from dyneq.linalg.operator import CallableOperator, LinearOperator, MatrixOperator
from dyneq.linalg.pseudospectra import Abscissa, pseudospectral_abscissa, smallest_singular_values
from dyneq.linalg.result import EigenResult, default_tolerance
from dyneq.linalg.targets import CriticalStep, LargestMagnitude, LargestModulus, Rightmost, Target, critical_step

__all__ = [
    "Abscissa",
    "Arnoldi",
    "CallableOperator",
    "CriticalStep",
    "Departure",
    "EigenResult",
    "Estimate",
    "FlowGrowth",
    "GmresResult",
    "GmresStatus",
    "Growth",
    "Kreiss",
    "LargestMagnitude",
    "LargestModulus",
    "LinearOperator",
    "MatrixOperator",
    "PowerGrowth",
    "Probes",
    "Rightmost",
    "SymmetricResult",
    "Target",
    "critical_step",
    "default_tolerance",
    "dense_eigenpairs",
    "dense_eigenvalues",
    "departure_from_normality",
    "eigenpairs",
    "extremal_symmetric",
    "flow_growth",
    "jackknife",
    "kreiss_lower_bound",
    "power_growth",
    "pseudospectral_abscissa",
    "random_products",
    "smallest_singular_values",
    "solve",
    "transient_growth",
]
