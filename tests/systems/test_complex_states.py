"""Complex states: against 30-digit arithmetic, Cauchy's integrals, and the real path, which they must leave alone."""

import math

import mpmath
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dyneq.systems.block import BoundBlock
from dyneq.systems.parts import continuation
from dyneq.systems.thick import ThickBlock, ThickConfig

EPS = torch.finfo(torch.float64).eps
OPTIONS = [
    {},
    {"gelu": "tanh"},
    {"qk_norm": True, "final_norm": True, "attention_bias": True},
    {"qk_norm": True, "gelu": "tanh", "ffn_bias": False, "norm_eps": 0.1, "damping": 0.5},
    {"attention": "fused"},
]
each_option = pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "-"
)


def bound(samples: int = 2, **options: object) -> tuple[BoundBlock, Tensor]:
    """A tiny block with every parameter random, and a complex state off the real one by a tenth."""
    generator = torch.Generator().manual_seed(1)
    sizes = {"vocabulary": 5, "channels": 4, "heads": 2, "tokens": 3, "widening": 2, **options}
    block = ThickBlock(ThickConfig(**sizes), generator).double()
    with torch.no_grad():
        for p in block.parameters():
            if p.ndim == 1:
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=0.3)
    tokens = torch.randint(5, (samples, 4), generator=generator)
    system = block.bind(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    parts = torch.randn(2, samples, 3, 4, generator=generator, dtype=torch.float64)
    return system, torch.complex(parts[0], 0.1 * parts[1])


def precise(system: BoundBlock, z: Tensor) -> tuple[list[list[mpmath.mpc]], list[mpmath.mpc]]:
    """Force and loss of the first sample's tokens from their definitions, one number at a time, in 30 digits."""
    config, weights = system.block.config, {n: p.detach().tolist() for n, p in system.block.named_parameters()}
    mp = mpmath.mp

    def linear(u, name):
        bias = weights.get(f"{name}.bias", [0] * len(weights[f"{name}.weight"]))
        return [
            sum(w * x for w, x in zip(row, u, strict=True)) + b
            for row, b in zip(weights[f"{name}.weight"], bias, strict=True)
        ]

    def layer_norm(u, name):
        mean = sum(u) / len(u)
        centred = [x - mean for x in u]
        root = mp.sqrt(sum(x * x for x in centred) / len(u) + config.norm_eps)
        gains, biases = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return [x / root * g + b for x, g, b in zip(centred, gains, biases, strict=True)]

    def rms(u):
        if not config.qk_norm:
            return u
        root = mp.sqrt(sum(x * x for x in u) / len(u) + config.norm_eps)
        return [x / root for x in u]

    def gelu(x):
        if config.gelu == "erf":
            return x / 2 * (1 + mp.erf(x / mp.sqrt(2)))
        return x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf(0.044715) * x**3)))

    def heads(u):
        width = config.channels // config.heads
        return [u[i : i + width] for i in range(0, config.channels, width)]

    state = [[mp.mpc(x.real, x.imag) for x in token] for token in z[0].tolist()]
    normed = [layer_norm(token, "ln1") for token in state]
    queries = [[rms(h) for h in heads(linear(u, "attn.wq"))] for u in normed]
    keys = [[rms(h) for h in heads(linear(u, "attn.wk"))] for u in normed]
    values = [heads(linear(u, "attn.wv")) for u in normed]
    force, losses = [], []
    for t, token in enumerate(state):
        mixed = []
        for h in range(config.heads):
            width = config.channels // config.heads
            scores = [
                sum(a * b for a, b in zip(queries[t][h], keys[s][h], strict=True)) / mp.sqrt(width)
                for s in range(t + 1)
            ]
            exponentials = [mp.exp(s) for s in scores]
            total = sum(exponentials)
            mixed += [sum(e / total * values[s][h][c] for s, e in enumerate(exponentials)) for c in range(width)]
        attended = linear(mixed, "attn.wo")
        fed = linear([gelu(x) for x in linear(layer_norm(token, "ln2"), "ffn.fc")], "ffn.pj")
        x = system.x[0, t].tolist()
        terms = zip(x, token, attended, fed, strict=True)
        force.append([a - (1 + config.damping) * b + c + d for a, b, c, d in terms])
        logits = linear(token if system.block.final is None else layer_norm(token, "final"), "head")
        losses.append(mp.log(sum(mp.exp(v) for v in logits)) - logits[int(system.targets[0, t])])
    return force, losses


@each_option
def test_force_and_loss_equal_their_definitions_in_thirty_digits(options: dict[str, object]) -> None:
    system, z = bound(**options)
    with mpmath.workdps(30):
        force, losses = precise(system, z)
    found, loss = system.force(z).detach(), system.token_loss(z).detach()
    # sums of at most 8 terms, five of them nested, of numbers of order 1 to 10
    torch.testing.assert_close(
        found[0], torch.tensor([[complex(x) for x in t] for t in force], dtype=z.dtype), rtol=0, atol=500 * EPS
    )
    torch.testing.assert_close(
        loss[0], torch.tensor([complex(x) for x in losses], dtype=z.dtype), rtol=0, atol=500 * EPS
    )
    assert found.imag.abs().min() > 0.0
    torch.testing.assert_close(system.loss(z).detach(), loss.mean(-1), rtol=1e-14, atol=0)


@each_option
def test_cauchys_integral_over_a_circle_returns_value_and_derivative(options: dict[str, object]) -> None:
    system, z = bound(**options)
    real = z.real.contiguous()
    v = torch.randn(z.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    # Taylor coefficients fall like (r/R)^k, R the distance to the next singularity: 64 points leave (r/R)^64, which is
    # below 1e-19 for all R > 2 r; the derivative divides rounding by r
    n, r = 64, 0.02
    for name, f in (("force", system.force), ("loss", system.token_loss)):
        angles = [2 * math.pi * k / n for k in range(n)]
        roots = [complex(math.cos(t), math.sin(t)) for t in angles]
        values = [f(real + r * root * v).detach() for root in roots]
        mean = sum(values) / n
        torch.testing.assert_close(mean.real, f(real).detach(), rtol=0, atol=500 * EPS)
        torch.testing.assert_close(mean.imag, torch.zeros_like(mean.imag), rtol=0, atol=500 * EPS)
        slope = sum(value / root for value, root in zip(values, roots, strict=True)) / (n * r)
        # the fused kernel has no forward-mode derivative
        fused = name == "force" and system.block.attn.form == "fused"
        expected = system.linearize(real)[0](v) if fused else torch.func.jvp(f, (real,), (v,))[1]
        torch.testing.assert_close(slope.real, expected.detach(), rtol=0, atol=500 * EPS / r)


@each_option
def test_a_real_state_written_as_complex_gives_the_real_numbers(options: dict[str, object]) -> None:
    system, z = bound(**options)
    real = z.real.contiguous()
    embedded = torch.complex(real, torch.zeros_like(real))
    for f in (system.force, system.loss):
        found = f(embedded).detach()
        torch.testing.assert_close(found.real, f(real).detach(), rtol=0, atol=200 * EPS)
        assert found.imag.abs().max() <= 200 * EPS


@each_option
def test_conjugate_states_have_conjugate_forces(options: dict[str, object]) -> None:
    system, z = bound(**options)
    for f in (system.force, system.loss):
        torch.testing.assert_close(f(z.conj().resolve_conj()).detach(), f(z).detach().conj(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_real_path_is_bit_for_bit_what_torch_computes(gelu: str, qk_norm: bool) -> None:
    system, z = bound(gelu=gelu, qk_norm=qk_norm, final_norm=True)
    block, c, real = system.block, system.block.config, z.real.contiguous()

    def norm(layer: torch.nn.LayerNorm, u: Tensor) -> Tensor:
        return functional.layer_norm(u, (c.channels,), layer.weight, layer.bias, layer.eps)

    def split(u: Tensor) -> Tensor:
        return u.unflatten(-1, (c.heads, -1)).transpose(-2, -3)

    u, attn = norm(block.ln1, real), block.attn
    q, k, v = (split(functional.linear(u, w.weight, w.bias)) for w in (attn.wq, attn.wk, attn.wv))
    if qk_norm:
        q, k = (functional.rms_norm(x, (x.shape[-1],), eps=c.norm_eps) for x in (q, k))
    future = torch.ones(3, 3, dtype=torch.bool).triu_(1)
    scores = (q * attn.scale) @ k.transpose(-1, -2)
    mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ v
    attended = functional.linear(mixed.transpose(-2, -3).flatten(-2), attn.wo.weight, attn.wo.bias)
    hidden = functional.linear(norm(block.ln2, real), block.ffn.fc.weight, block.ffn.fc.bias)
    activated = functional.gelu(hidden, approximate="none" if gelu == "erf" else "tanh")
    fed = functional.linear(activated, block.ffn.pj.weight, block.ffn.pj.bias)
    assert torch.equal(system.force(real), system.x - (1 + c.damping) * real + attended + fed)
    logits = functional.linear(norm(block.final, real), block.head.weight)
    expected = functional.cross_entropy(logits.flatten(0, 1), system.targets.flatten(), reduction="none").view(2, 3)
    assert torch.equal(system.token_loss(real), expected)


def test_real_arithmetic_never_enters_the_continuation(monkeypatch: pytest.MonkeyPatch) -> None:
    system, z = bound(qk_norm=True, final_norm=True)

    def never(*args: object) -> None:
        raise AssertionError("a real state went through the complex branch")

    for name in ("layer_norm", "rms_norm", "gelu", "erf", "inverse_root"):
        monkeypatch.setattr(continuation, name, never)
    system.loss(z.real.contiguous())
    assert system.force(z.real.contiguous()).dtype == torch.float64
    with pytest.raises(AssertionError):
        system.force(z)


def test_single_precision_states_stay_single() -> None:
    system, z = bound(qk_norm=True, final_norm=True)
    expected = system.force(z).detach()
    system.block.float()
    single = system.block.bind(system.tokens, system.targets)
    found = single.force(z.to(torch.complex64))
    assert found.dtype == torch.complex64
    assert single.loss(z.to(torch.complex64)).dtype == torch.complex64
    unit = float(torch.finfo(torch.float32).eps)
    torch.testing.assert_close(found.detach().to(torch.complex128), expected, rtol=0, atol=500 * unit)


def test_samples_and_later_tokens_do_not_reach_a_token() -> None:
    system, z = bound()
    moved = z.clone()
    moved[0, 2] += 3.0 - 1.0j
    assert torch.equal(system.force(moved)[0, :2], system.force(z)[0, :2])
    assert torch.equal(system.force(moved)[1], system.force(z)[1])


def test_what_leaves_the_domain_of_the_square_root_has_no_value() -> None:
    system, z = bound()
    beyond = z.clone()
    # an imaginary direction longer than the real one: the mean square of the centred token is negative
    beyond[0, 1] = torch.tensor([1.0, -1.0, 1.0, -1.0]) * 2j
    force = system.force(beyond)
    assert torch.isnan(force[0, 1].real).all()
    assert torch.isfinite(force[1].real).all()
    u = torch.tensor([[1.0 + 0.9j, -1.0 - 0.9j], [1.0 + 1.1j, -1.0 - 1.1j]], dtype=torch.complex128)
    inside = torch.isfinite(continuation.rms_norm(u, 0.0).real)  # Re (1 + iy)^2 = 1 - y^2
    assert inside.tolist() == [[True, True], [False, False]]


def test_the_error_function_and_its_derivative() -> None:
    x = torch.randn(20, dtype=torch.complex128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with mpmath.workdps(30):
        expected = torch.tensor([complex(mpmath.erf(v)) for v in x.detach().tolist()], dtype=x.dtype)
    torch.testing.assert_close(continuation.erf(x).detach(), expected, rtol=1e-13, atol=0)
    assert torch.autograd.gradcheck(continuation.erf, x)
    assert continuation.erf(x.detach().conj()).dtype == torch.complex128


@pytest.mark.parametrize("options", [{"final_norm": True}, {"gelu": "tanh", "qk_norm": True}])
def test_gradients_at_complex_states(options: dict[str, object]) -> None:
    system, z = bound(samples=1, **options)
    for p in system.block.parameters():
        p.requires_grad_(False)
    system = system.block.bind(system.tokens, system.targets)
    assert torch.autograd.gradcheck(system.force, z.clone().requires_grad_())
    assert torch.autograd.gradcheck(system.loss, z.clone().requires_grad_())


def test_the_cross_entropy_does_not_wrap_a_common_phase() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, dtype=torch.complex128, generator=generator) * 0.5
    targets = torch.randint(5, (6,), generator=generator)
    plain = continuation.cross_entropy(logits, targets)
    torch.testing.assert_close(continuation.cross_entropy(logits + 4j, targets), plain, rtol=1e-13, atol=1e-14)
    # and a large real part does not overflow
    torch.testing.assert_close(continuation.cross_entropy(logits + 800, targets), plain, rtol=1e-12, atol=1e-12)


def test_a_loss_says_how_many_terms_it_is_the_mean_of() -> None:
    system, z = bound()
    assert system.loss_terms == 3
    assert system.select(torch.tensor([1])).loss_terms == 3
    real = z.real.contiguous()
    torch.testing.assert_close(system.loss(real) * system.loss_terms, system.token_loss(real).sum(-1))
    wrapped = super(BoundBlock, system).select(torch.tensor([1]))
    assert wrapped.loss_terms == 3
    assert system.with_eps(0.05).loss_terms == 3
