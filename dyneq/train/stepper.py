"""From a gradient to new weights: learning rate, clipping, Adam, weight caps, moving average; or nothing at all."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dyneq.gradients.base import Grouped
from dyneq.systems.block import EquilibriumBlock
from dyneq.train.sections import OptimizerSection

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
#: Groups whose matrices mu-P scales and weight caps bound: those inside the relaxation.
INNER = ("attn", "ffn")
#: Times its size, or 1, that a weight may be after one update: beyond that the learning rate is a mistake.
GROWTH = 1e6


class Stepper:
    """The optimiser of a block and what surrounds it.

    Args:
        block: The block it moves.
        section: The optimiser of the recipe.
        weight_cap: Largest root-mean-square singular value of the block's inner weight matrices; no cap if None.

    Attributes:
        average: The block with the moving average of the weights; None without one.
    """

    def __init__(self, block: EquilibriumBlock, section: OptimizerSection, weight_cap: float | None = None) -> None:
        self.section, self.weight_cap = section, weight_cap
        groups = block.parameter_groups()
        self.parameters = {n: p for members in groups.values() for n, p in members.items()}
        self._inner = [p for g in INNER for p in groups.get(g, {}).values() if p.ndim == 2]
        self._scales = _mup_scales(groups, section.mup_base, getattr(block.config, "channels", None))
        self.optimizer = _OPTIMIZERS[section.name](
            [{"params": [p]} for p in self.parameters.values()] if section.mup_base else self.parameters.values(),
            lr=section.lr,
            betas=section.betas,
            weight_decay=section.weight_decay,
        )
        self._block = block
        self.average: EquilibriumBlock | None = None
        if section.ema is not None:
            self.average = copy.deepcopy(block).requires_grad_(False)
            self._averaged = dict(self.average.named_parameters())

    def refuses(self, norm: Tensor) -> str | None:
        """Return why a gradient of that norm is none to step along, None if it is one."""
        if not norm.isfinite():
            return "the gradient is not finite"
        clip = self.section.clip
        taken = norm if clip is None else norm.clamp(max=clip)
        # Adam's second moment would be infinite, and the weight never move again
        return None if taken.square().isfinite() else "the gradient has a square that is not finite"

    def apply(self, direction: Grouped, norm: Tensor, lr: float) -> str | None:
        """Step along a gradient, or change nothing and return what would be wrong with a weight afterwards.

        Args:
            direction: The gradient.
            norm: Its norm.
            lr: Learning rate.
        """
        clip = self.section.clip
        scale = None if clip is None else (clip / norm).clamp(max=1.0)
        before = [p.detach().clone() for p in self.parameters.values()]
        bounds = GROWTH * _sizes(before).clamp(min=1.0)
        moments = _copied(self.optimizer.state_dict())
        for members in direction.values():
            for name, value in members.items():
                self.parameters[name].grad = value if scale is None else value * scale
        scales = self._scales.values() if self.section.mup_base else [1.0]
        for group, own in zip(self.optimizer.param_groups, scales, strict=True):
            group["lr"] = lr * own
        wrong = None
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            wrong = f"the learning rate {lr:g} is no number of this precision"
        self.optimizer.zero_grad(set_to_none=True)
        if wrong is None:
            sizes = _sizes([p.detach() for p in self.parameters.values()])
            if not sizes.isfinite().all():
                wrong = "a weight is not finite"
            elif (sizes > bounds).any():
                worst = int((sizes / bounds).argmax())
                wrong = f"a weight is {float(sizes[worst]):.1e}, from {float(before[worst].abs().max()):.1e},"
        if wrong is not None:
            with torch.no_grad():
                for p, old in zip(self.parameters.values(), before, strict=True):
                    p.copy_(old)
            self.optimizer.load_state_dict(moments)
            return wrong
        self._settle()
        return None

    @torch.no_grad()
    def _settle(self) -> None:
        """Cap what has grown too large, then move the average."""
        if self.weight_cap is not None:
            for p in self._inner:
                size = torch.linalg.vector_norm(p) / min(p.shape) ** 0.5
                p.mul_((self.weight_cap / size).clamp(max=1.0))
        if self.average is not None:
            assert self.section.ema is not None
            for name, p in self._block.named_parameters():
                self._averaged[name].lerp_(p, 1 - self.section.ema)

    def forget(self) -> None:
        """Drop the optimiser's moments, for a jump of the weights they know nothing of."""
        self.optimizer.state.clear()

    def state(self) -> dict[str, Any]:
        """Return the moments, and the average if there is one."""
        average = {} if self.average is None else {"ema": dict(self.average.state_dict())}
        return {"optimizer": self.optimizer.state_dict(), **average}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])


def _sizes(tensors: list[Tensor]) -> Tensor:
    """Return the largest modulus of each tensor; NaN where it holds one."""
    return torch.stack([torch.linalg.vector_norm(tensor, torch.inf) for tensor in tensors])


def _mup_scales(groups: Mapping[str, Mapping[str, Tensor]], base: int | None, channels: int | None) -> dict[str, float]:
    """Return the factor on every parameter's learning rate.

    Under Adam, mu-P scales matrices with a fan-in that grows with the width, the read-out's included, by base/width and
    leaves embeddings, biases and gains alone (Yang et al., arXiv:2203.03466, table 3).
    """
    wide = base / channels if base is not None and channels is not None else 1.0
    return {
        name: wide if p.ndim == 2 and group in (*INNER, "head") else 1.0
        for group, members in groups.items()
        for name, p in members.items()
    }


def _copied(state: Any) -> Any:
    """Return an optimiser's state with its tensors copied."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state
