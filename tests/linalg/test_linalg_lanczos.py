"""Extremal eigenvalues of symmetric operators against LAPACK and analytic values."""

import math

import numpy as np
import pytest
import torch

from dyneq.linalg import MatrixOperator, extremal_symmetric

from .matrices import gaussian, generator, grcar, jordan, orthogonal, zoo


def omega(a: torch.Tensor) -> float:
    result = extremal_symmetric(MatrixOperator(a).symmetric_part(), generator=generator())
    assert result.converged.all()
    return float(result.values[0, 0])


def test_numerical_abscissas_of_the_reference():
    assert omega(torch.tensor([[-1.0, 10.0], [0.0, -1.0]], dtype=torch.float64)) == pytest.approx(4, abs=1e-13)
    assert omega(grcar(32)) == pytest.approx(2.9459949997, abs=1e-9)
    for n, value, k in ((5, -1.0, 3.0), (40, 0.5, 0.3), (100, 0.0, 2.0)):
        exact = value + k * math.cos(math.pi / (n + 1))
        # a residual of tol * scale bounds the error; at an extreme it is smaller still
        assert omega(jordan(n, value, k)) == pytest.approx(exact, abs=1e-10 * (abs(value) + k))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("n", [6, 40, 90])
def test_agreement_with_lapack_for_a_batch(which, dtype, n):
    a = torch.stack([*zoo(n).values(), *gaussian(3, n)])
    s = ((a + a.mT) / 2).to(dtype)
    r = extremal_symmetric(MatrixOperator(s), which, 3, generator=generator())
    exact = np.linalg.eigvalsh(s.double().numpy())
    exact = exact[:, ::-1][:, :3] if which == "largest" else exact[:, :3]
    noise = 50 * torch.finfo(dtype).eps * r.scale[:, None]
    assert r.converged.all()
    assert (np.abs(r.values - exact) <= r.residual + noise).all()
    # Rayleigh quotients lie inside the spectrum
    sign = 1 if which == "largest" else -1
    assert (sign * (r.values[:, :1] - exact[:, :1]) <= noise).all()
    v = r.vectors.double()
    explicit = torch.linalg.vector_norm(v @ s.double() - torch.as_tensor(r.values)[:, :, None] * v, dim=2).numpy()
    assert (np.abs(explicit - r.residual) <= noise).all()
    gram = v @ v.mT - torch.eye(3, dtype=torch.float64)
    assert float(gram.abs().max()) <= 500 * torch.finfo(dtype).eps


def test_an_eigenvector_as_start_and_a_repeated_extreme_value():
    n = 60
    q = orthogonal(n)
    values = torch.cat([torch.tensor([2.0, 2.0]), torch.linspace(1, -1, n - 2)]).double()
    a = (q * values) @ q.T
    start = q[:, 0][None].contiguous()
    r = extremal_symmetric(MatrixOperator(a), "largest", 3, generator=generator(), start=start)
    np.testing.assert_allclose(r.values, [[2, 2, 1]], atol=1e-9)


def test_what_has_not_converged_is_marked():
    s = gaussian(2, 300)
    r = extremal_symmetric(MatrixOperator(s + s.mT), generator=generator(), subspace=4, max_restarts=0)
    assert not r.converged.any()
    assert (r.residual > r.tol * r.scale[:, None]).all()
    assert r.matvecs == 5


def test_refusals():
    op = MatrixOperator(gaussian(2, 40))
    g = generator()
    with pytest.raises(ValueError, match="not symmetric"):
        extremal_symmetric(op, generator=g)
    s = op.symmetric_part()
    with pytest.raises(ValueError, match="'largest' or 'smallest'"):
        extremal_symmetric(s, "biggest", generator=g)
    for count in (0, 41):
        with pytest.raises(ValueError, match=f"count={count}"):
            extremal_symmetric(s, count=count, generator=g)
    with pytest.raises(ValueError, match="at least 5"):
        extremal_symmetric(s, count=3, subspace=4, generator=g)
    with pytest.raises(ValueError, match="tolerance"):
        extremal_symmetric(s, tol=-1.0, generator=g)
    bad = torch.full((1, 5, 5), float("nan"), dtype=torch.float64)
    with pytest.raises(ArithmeticError, match=r"\[0\]"):
        extremal_symmetric(MatrixOperator(bad), generator=g)
