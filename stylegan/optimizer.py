"""Adam with the official place of epsilon, and updates that are dropped without asking the host."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam of both networks (Karras et al. 2019, Appendix C)."""

    beta1: float = 0.0
    """Decay of the first moment; 0 as in Progressive GAN."""
    beta2: float = 0.99
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the square root of the raw second moment (before bias correction)."""

    def __post_init__(self) -> None:
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise ValueError(f"optimizer.{name} is {value}; it must lie in [0, 1)")
        if not 0 < self.epsilon < float("inf"):
            raise ValueError(f"optimizer.epsilon is {self.epsilon}; it must be above 0")


def lazy(config: OptimizerConfig, interval: int) -> OptimizerConfig:
    """Adam for a loss whose regularization has an update of its own every `interval` minibatches.

    With k + 1 updates where there were k, moments decay as before over the same images
    (Karras et al. 2020, Section 3.1); the step size is for the caller to multiply by k / (k + 1).
    """
    if not interval:
        return config
    c = interval / (interval + 1)
    return replace(config, beta1=config.beta1**c if config.beta1 else 0.0, beta2=config.beta2**c)


# Fused Adam corrects its moments by 1 - beta ** step; at this step both corrections are exactly 1,
# so that the correction can be put into the step size where the official code has it.
_SETTLED_STEP = 1e9

# Loss scale of float16: half of it after gradients that are not finite, twice after so many good
# updates (Micikevicius et al. 2018, Section 3.2).
_FIRST_SCALE, _GROWS_AFTER = 2.0**13, 2000
_OF_THE_SCALE = {"scale", "good"}


class Adam:
    """p -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon).

    That is the form at the end of Section 2 of Kingma & Ba 2015. `torch.optim.Adam` adds epsilon to
    the corrected second moment instead; gradients below 1e-7 then take other steps. A non-finite
    gradient drops the whole update, moments and count included; `skipped` counts these.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        config: OptimizerConfig,
        *,
        interval: int = 0,
        scaled: bool = False,
    ) -> None:
        """With an `interval` as in `lazy`; with `scaled`, gradients are `scale` times as large."""
        self.config = lazy(config, interval)
        self.lr_factor = interval / (interval + 1) if interval else 1.0
        self.parameters = parameters
        tensors = list(parameters.values())
        device = tensors[0].device
        self.exp_avg = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.skipped = torch.zeros((), dtype=torch.float64, device=device)
        self.scale: Tensor | None = None
        """What the loss is to be multiplied by; None for 1."""
        self._good: Tensor | None = None
        if scaled:
            self.scale = torch.full((), _FIRST_SCALE, dtype=torch.float32, device=device)
            self._good = torch.zeros_like(self.scale)
        # The CUDA kernel reads the step size as float32, the CPU's as float64.
        self._lr_dtype = torch.float32 if device.type == "cuda" else torch.float64
        self._settled = torch.full((), _SETTLED_STEP, dtype=torch.float32, device=device)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update every parameter that has a gradient, or none if any of them is not finite."""
        names = [name for name, p in self.parameters.items() if p.grad is not None]
        if not names:
            return
        params: list[Tensor] = [self.parameters[name] for name in names]
        grads: list[Tensor] = [p.grad for p in params if p.grad is not None]
        bad = (~torch.isfinite(torch.stack(torch._foreach_norm(grads)))).any()

        # Step size with both bias corrections; a dropped update does not count.
        self.count += (~bad).to(self.count)
        self.skipped += bad.to(self.count)
        correction = torch.sqrt(1 - self.config.beta2**self.count)
        correction = correction / (1 - self.config.beta1**self.count)

        torch._fused_adam_(
            params,
            grads,
            [self.exp_avg[name] for name in names],
            [self.exp_avg_sq[name] for name in names],
            [],
            [self._settled] * len(names),
            lr=(lr * self.lr_factor * correction).to(self._lr_dtype),
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            weight_decay=0.0,
            eps=self.config.epsilon,
            amsgrad=False,
            maximize=False,
            grad_scale=self.scale,
            found_inf=bad.to(torch.float32),
        )
        self._adapt_scale(bad)

    def _adapt_scale(self, bad: Tensor) -> None:
        if self.scale is None or self._good is None:
            return
        self._good.copy_(torch.where(bad, 0, self._good + 1))
        grows = self._good >= _GROWS_AFTER
        factor = torch.where(bad, 0.5, torch.where(grows, 2.0, 1.0))
        self.scale.copy_((self.scale * factor).clamp(min=1.0))
        self._good.copy_(torch.where(grows, 0, self._good))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """All of its state, by name."""
        state = {f"exp_avg.{name}": value for name, value in self.exp_avg.items()}
        state |= {f"exp_avg_sq.{name}": value for name, value in self.exp_avg_sq.items()}
        state |= {"count": self.count, "skipped": self.skipped}
        if self.scale is not None and self._good is not None:
            state |= {"scale": self.scale, "good": self._good}
        return state

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the state that `tensors()` gave.

        Raises:
            ValueError: The names differ, that is, the state belongs to another phase.
        """
        own = self.tensors()
        odd = sorted((own.keys() ^ tensors.keys()) - _OF_THE_SCALE)[:4]
        if odd:
            raise ValueError(
                f"optimizer state of another phase: {len(tensors)} tensors for {len(own)}, "
                f"for example {', '.join(odd)}; resume with the schedule the checkpoint was made "
                "with"
            )
        for name, value in own.items():
            if name in tensors:  # the precision may have changed
                value.copy_(tensors[name])


def named(module: nn.Module, parameters: Iterable[nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those of `parameters` by their names in `module`, in the order of the module."""
    wanted = {id(p) for p in parameters}
    return {name: p for name, p in module.named_parameters() if id(p) in wanted}
