"""Operators: algebra against dense matrices, the count of products, and refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyneq.linalg import CallableOperator, LinearOperator, MatrixOperator

from .matrices import gaussian, generator


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=generator(seed))


def as_callable(a: torch.Tensor) -> CallableOperator:
    return CallableOperator(
        lambda v: torch.einsum("bij,bj->bi", a, v),
        lambda v: torch.einsum("bji,bj->bi", a, v),
        batch=a.shape[0],
        dim=a.shape[1],
        dtype=a.dtype,
        device="cpu",
    )


@pytest.mark.parametrize("make", [MatrixOperator, as_callable])
def test_algebra_agrees_with_dense_matrices(make):
    a, b, v, many = gaussian(3, 7), gaussian(3, 7, seed=2), random(3, 7), random(3, 7, 4)
    x, y = make(a), make(b)
    eye = torch.eye(7, dtype=torch.float64)
    cases = {
        "sum": (x + y, a + b),
        "difference": (x - y, a - b),
        "scaled": (2.5 * x, 2.5 * a),
        "scaled right": (x * 3, 3 * a),
        "negative": (-x, -a),
        "transposed": (x.T, a.mT),
        "twice transposed": (x.T.T, a),
        "composed": (x @ y, a @ b),
        "shifted": (x.shift(-0.7), a - 0.7 * eye),
        "symmetric": (x.symmetric_part(), (a + a.mT) / 2),
        "nested": ((2 * (x + y.T) @ x.shift(1.0)).T, (2 * (a + b.mT) @ (a + eye)).mT),
    }
    part = torch.tensor([2, 0])
    for name, (op, dense) in cases.items():
        for got, expected in (
            (op.matvec(v), torch.einsum("bij,bj->bi", dense, v)),
            (op.rmatvec(v), torch.einsum("bji,bj->bi", dense, v)),
            (op @ v, torch.einsum("bij,bj->bi", dense, v)),
            (op @ many, dense @ many),
            (op.rmatmat(many), dense.mT @ many),
            (op.to_dense(), dense),
            (op.restrict(part).matvec(v[part]), torch.einsum("bij,bj->bi", dense[part], v[part])),
            (op.restrict(part).rmatvec(v[part]), torch.einsum("bji,bj->bi", dense[part], v[part])),
            (op.restrict(part).restrict(torch.tensor([1])) @ many[:1], dense[:1] @ many[:1]),
        ):
            torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13, msg=name)


def test_complex_vectors_are_two_real_products():
    a = gaussian(2, 5)
    op = MatrixOperator(a)
    v = torch.complex(random(2, 5), random(2, 5, seed=2))
    torch.testing.assert_close(op.matvec(v), torch.einsum("bij,bj->bi", a.to(v.dtype), v))
    assert op.products == 2
    # the transpose, not the adjoint
    torch.testing.assert_close(op.rmatvec(v), torch.einsum("bji,bj->bi", a.to(v.dtype), v))
    many = torch.stack([v, v.conj()], -1)
    torch.testing.assert_close(op.matmat(many), a.to(v.dtype) @ many)
    assert op.products == 8


def test_products_count_applications_of_the_operator_itself_once():
    op = as_callable(gaussian(2, 5))
    v = random(2, 5)
    op.matvec(v)
    op.rmatvec(v)
    assert op.products == 2
    op.symmetric_part().matvec(v)
    assert op.products == 4
    both = op + op
    assert both.products == 4, "the same operator on both sides is one operator"
    both.matvec(v)
    assert (op.products, both.products) == (6, 6)
    op.T.shift(1.0).restrict(torch.tensor([1])).matvec(v[1:])
    assert op.products == 7
    op.to_dense()
    assert op.products == 12


def test_gradients_flow_through_products():
    a = gaussian(1, 4).requires_grad_()
    MatrixOperator(a).matvec(random(1, 4)).sum().backward()
    assert a.grad is not None
    assert bool((a.grad != 0).all())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=0, max_size=4))
def test_every_wrong_shape_is_refused(shape):
    op = MatrixOperator(gaussian(2, 3))
    v = torch.zeros(shape, dtype=torch.float64)
    if tuple(shape) == (2, 3):
        assert op.matvec(v).shape == (2, 3)
    else:
        with pytest.raises(ValueError, match=r"\[2, 3\]"):
            op.matvec(v)
    if len(shape) != 3 or tuple(shape[:2]) != (2, 3):
        with pytest.raises(ValueError, match=r"\[2, 3, k\]"):
            op.matmat(v)


def test_refusals_name_what_is_wrong():
    op = MatrixOperator(gaussian(2, 3))
    with pytest.raises(ValueError, match="float32"):
        op.matvec(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="square"):
        MatrixOperator(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="float16"):
        MatrixOperator(torch.zeros(2, 3, 3, dtype=torch.float16))
    with pytest.raises(ValueError, match="agree"):
        _ = op + MatrixOperator(gaussian(2, 4))
    with pytest.raises(ValueError, match="empty"):
        op.restrict(torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one"):
        CallableOperator(lambda v: v, batch=0, dim=1, dtype=torch.float64, device="cpu")
    wrong = CallableOperator(lambda v: v[:, :2], batch=2, dim=3, dtype=torch.float64, device="cpu")
    with pytest.raises(ValueError, match="should return"):
        wrong.matvec(torch.zeros(2, 3, dtype=torch.float64))


class Forward(LinearOperator):
    """An operator without a transpose."""

    def _matvec(self, v):
        return 2 * v


@pytest.mark.parametrize(
    "op",
    [
        Forward(batch=1, dim=2, dtype=torch.float64, device="cpu"),
        CallableOperator(lambda v: v, batch=1, dim=2, dtype=torch.float64, device="cpu"),
        Forward(batch=1, dim=2, dtype=torch.float64, device="cpu") + MatrixOperator(gaussian(1, 2)),
    ],
)
def test_a_missing_transpose_is_said(op):
    v = torch.ones(1, 2, dtype=torch.float64)
    op.matvec(v)
    assert not op.has_rmatvec
    for use in (lambda: op.rmatvec(v), lambda: op.T, op.symmetric_part, lambda: op.rmatmat(v[:, :, None])):
        with pytest.raises(NotImplementedError, match="transposed"):
            use()
