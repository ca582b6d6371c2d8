"""The block's hand-derived Jacobian products against torch's own derivatives and the dense Jacobian, in float64."""

import pytest
import torch
from test_thick_force import close, each_option

from dyneq.errors import DyneqError
from dyneq.systems.parts.attention import CausalAttention
from dyneq.systems.parts.feedforward import FeedForward, gelu_derivative
from dyneq.systems.parts.norms import LayerNorm, linearize_rms, rms_normalize


def plain_twin(bound):
    """The same weights with plain attention, which has every derivative."""
    config = bound.block.config.model_copy(update={"attention": "plain"})
    twin = type(bound.block)(config).double()
    twin.load_state_dict(bound.block.state_dict())
    return twin.bind(bound.tokens, bound.targets)


@each_option
def test_whole_products_against_the_dense_jacobian(make_bound, options):
    bound, z, generator = make_bound(**options)
    twin = plain_twin(bound)
    dense = torch.func.jacrev(twin.force)(z).detach().reshape(80, 80)
    matvec, rmatvec = bound.linearize(z)
    v, w = (torch.randn(z.shape, generator=generator, dtype=z.dtype) for _ in range(2))
    scale = float(dense.abs().sum(1).max())
    close(matvec(v).flatten(), dense @ v.flatten(), scale)
    close(rmatvec(w).flatten(), dense.T @ w.flatten(), scale)
    close(matvec(v), torch.func.jvp(twin.force, (z,), (v,))[1], scale)
    close(rmatvec(w), torch.func.vjp(bound.force, z)[1](w)[0], scale)  # reverse mode also of the fused kernel
    default_matvec, default_rmatvec = super(type(bound), twin).linearize(z)
    close(default_matvec(v), matvec(v), scale)
    close(default_rmatvec(w), rmatvec(w), scale)
    close((w * matvec(v)).sum(), (rmatvec(w) * v).sum(), scale * float(v.norm() * w.norm()))


@each_option
def test_token_diagonal_products_are_the_diagonal_blocks(make_bound, options):
    bound, z, generator = make_bound(**options)
    twin = plain_twin(bound)
    dense = torch.func.jacrev(twin.force)(z).detach()
    matvec, rmatvec = bound.linearize_tokens(z)
    v, w = (torch.randn(z.shape, generator=generator, dtype=z.dtype) for _ in range(2))
    blocks = torch.stack([torch.stack([dense[b, t, :, b, t] for t in range(5)]) for b in range(2)])
    scale = float(blocks.abs().sum(-1).max())
    close(matvec(v), torch.einsum("btij,btj->bti", blocks, v), scale)
    close(rmatvec(w), torch.einsum("btij,bti->btj", blocks, w), scale)
    default_matvec, default_rmatvec = super(type(bound), twin).linearize_tokens(z)
    close(default_matvec(v), matvec(v), scale)
    close(default_rmatvec(w), rmatvec(w), scale)
    close((w * matvec(v)).sum(), (rmatvec(w) * v).sum(), scale * float(v.norm() * w.norm()))


@each_option
def test_the_jacobian_is_block_lower_triangular(make_bound, options):
    """dF_t/dz_s is exactly 0 for s > t and between samples; in the two-argument force also for s < t."""
    bound, z, _ = make_bound(**options)
    twin = plain_twin(bound)
    dense = torch.func.jacrev(twin.force)(z).detach()
    own = torch.func.jacrev(lambda y: twin.force(y, z))(z)
    for b, t, c, s in torch.cartesian_prod(*[torch.arange(n) for n in (2, 5, 2, 5)]).tolist():
        if b != c or s > t:
            assert not dense[b, t, :, c, s].any()
        if (b, t) != (c, s):
            assert not own[b, t, :, c, s].any()
        else:
            close(own[b, t, :, c, s], dense[b, t, :, c, s])
    assert dense[0, 4, :, 0, 0].any()  # earlier tokens do enter


@each_option
def test_token_force_has_the_diagonal_block_as_its_jacobian(make_bound, options):
    bound, z, _ = make_bound(**options)
    dense = torch.func.jacrev(plain_twin(bound).force)(z)
    for t in range(5):
        of = bound.token_force(t, z)
        own = torch.func.jacrev(of)(z[:, t])
        for b in range(2):
            close(own[b, :, b], dense[b, t, :, b, t])


def test_products_do_not_change_what_they_were_given(make_bound):
    """They work in place on their own buffers: a second product must equal the first, bit for bit."""
    bound, z, generator = make_bound(qk_norm=True)
    v = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    kept = v.clone(), z.clone()
    for product in (*bound.linearize(z), *bound.linearize_tokens(z)):
        first = product(v).clone()
        assert torch.equal(product(v), first)
        assert torch.equal(v, kept[0])
        assert torch.equal(z, kept[1])


def test_a_block_that_is_not_causal_offers_no_token_blocks(make_bound):
    bound, z, _ = make_bound()
    bound.structure = type(bound.structure)(token_axis=1, causal=False)
    for ask in (lambda: bound.linearize_tokens(z), lambda: bound.token_force(0, z)):
        with pytest.raises(DyneqError, match="needs a block that is causal"):
            ask()


@pytest.mark.parametrize("form", ["erf", "tanh"])
def test_gelu_derivative_against_autograd(form):
    u = torch.linspace(-12, 12, 4001, dtype=torch.float64, requires_grad=True)
    approximate = "none" if form == "erf" else "tanh"
    (expected,) = torch.autograd.grad(torch.nn.functional.gelu(u, approximate=approximate).sum(), u)
    # the two terms cancel to about u^2 eps in the tails
    torch.testing.assert_close(gelu_derivative(u.detach(), form), expected, rtol=0, atol=150 * 2.3e-16)


def check_products(function, u, products, generator):
    v, w = (torch.randn(u.shape, generator=generator, dtype=u.dtype) for _ in range(2))
    matvec, rmatvec = products
    close(matvec(v), torch.func.jvp(function, (u,), (v,))[1])
    close(rmatvec(w), torch.func.vjp(function, u)[1](w)[0])


def test_parts_are_linearised_at_their_own_value():
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    norm = LayerNorm(6, eps=1e-3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(6, generator=generator, dtype=torch.float64))
        norm.bias.copy_(torch.randn(6, generator=generator, dtype=torch.float64))
        out, *products = norm.linearize(u)
        close(out, norm(u))
        check_products(norm, u, products, generator)
        out, *products = linearize_rms(u, 1e-3)
        close(out, u / torch.sqrt((u**2).mean(-1, keepdim=True) + 1e-3))
        close(out, rms_normalize(u, 1e-3))
        check_products(lambda y: rms_normalize(y, 1e-3), u, products, generator)
        for gelu in ("erf", "tanh"):
            ffn = FeedForward(6, 2, gelu, bias=True).double()
            check_products(ffn, u, ffn.linearize(u), generator)
        attention = CausalAttention(6, 2, True, True, 1e-3, "plain").double()
        check_products(attention, u, attention.linearize(u, tokens_only=False), generator)
        check_products(lambda y: attention(y, u), u, attention.linearize(u, tokens_only=True), generator)


def test_a_layer_norm_input_without_variance_stays_finite():
    """At an LN-degenerate state the small constant carries the derivative: gain/sqrt(eps) times the centring."""
    norm = LayerNorm(4, eps=1e-6).double()
    u = torch.full((1, 4), 3.0, dtype=torch.float64)
    with torch.no_grad():
        out, matvec, rmatvec = norm.linearize(u)
        v = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64)
        expected = (v - 3.0) * 1e3
        assert not out.any()
        torch.testing.assert_close(matvec(v), expected, rtol=1e-14, atol=0)
        torch.testing.assert_close(rmatvec(v), expected, rtol=1e-14, atol=0)
