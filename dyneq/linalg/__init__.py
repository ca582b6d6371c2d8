"""Batched linear operators and Krylov methods on them; this layer knows no system."""

from dyneq.linalg.arnoldi import Arnoldi
from dyneq.linalg.dense import dense_eigenpairs, dense_eigenvalues
from dyneq.linalg.gmres import GmresResult, GmresStatus, solve
from dyneq.linalg.krylov_schur import eigenpairs
from dyneq.linalg.lanczos import SymmetricResult, extremal_symmetric
from dyneq.linalg.operator import CallableOperator, LinearOperator, MatrixOperator
from dyneq.linalg.result import EigenResult, default_tolerance
from dyneq.linalg.targets import CriticalStep, LargestMagnitude, LargestModulus, Rightmost, Target, critical_step

__all__ = [
    "Arnoldi",
    "CallableOperator",
    "CriticalStep",
    "EigenResult",
    "GmresResult",
    "GmresStatus",
    "LargestMagnitude",
    "LargestModulus",
    "LinearOperator",
    "MatrixOperator",
    "Rightmost",
    "SymmetricResult",
    "Target",
    "critical_step",
    "default_tolerance",
    "dense_eigenpairs",
    "dense_eigenvalues",
    "eigenpairs",
    "extremal_symmetric",
    "solve",
]
