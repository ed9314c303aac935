"""Optimizers, parameter groups and learning-rate schedules.

The optimizers are torch's own, with every argument named so that YAML can be checked. A schedule is a pure function of
the step, so that a resumed run has nothing to restore.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from toolbox.errors import ConfigError, Problem
from toolbox.registry import OPTIMIZERS, SCHEDULES

if TYPE_CHECKING:
    from toolbox.schema import Config

logger = logging.getLogger("toolbox")

Params = Iterable[Any]  # tensors, or torch's parameter groups

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm)


@OPTIMIZERS.register
class SGD(torch.optim.SGD):
    """Stochastic gradient descent with momentum: what the R-CNN papers train with."""

    def __init__(
        self, params: Params, lr: float, *, momentum: float = 0.9, weight_decay: float = 1e-4, nesterov: bool = False
    ) -> None:
        if momentum < 0:
            raise ValueError(f"momentum is 0 or more, got {momentum:g}")
        super().__init__(params, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


@OPTIMIZERS.register
class Adam(torch.optim.Adam):
    """Adam; its weight decay is added to the gradient, see AdamW."""

    def __init__(
        self,
        params: Params,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay)


@OPTIMIZERS.register
class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay: what transformer backbones want."""

    def __init__(
        self,
        params: Params,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(params, lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay)


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a config over a model's parameters.

    Raises:
        ConfigError: at the optimizer's settings, or at `train.layer_decay` if the model cannot train with one.
    """
    settings = config.train
    try:
        groups = parameter_groups(model, layer_decay=settings.layer_decay)
    except ValueError as error:
        raise ConfigError([config.plan["train"].problem(str(error), "layer_decay")]) from error
    return settings.optimizer.build(params=groups, lr=settings.lr)


def parameter_groups(
    model: nn.Module, *, decay_norms: bool = False, decay_biases: bool = False, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """The trainable parameters, those without weight decay in groups of their own.

    Args:
        model: only its parameters that require a gradient are returned, each once.
        decay_norms: decay the weights and biases of normalisation layers, and other scales of one dimension.
        decay_biases: decay the biases of all other layers.
        layer_decay: factor on the learning rate per layer of the backbone, from its last layer towards the image
            (Clark et al., *ELECTRA*, arXiv:2003.10555; of images Bao et al., *BEiT*, arXiv:2106.08254); the product
            stands in each group as `lr_scale`. None for one rate.

    Returns:
        Groups in an order that the model's structure alone decides: slow ones first, those with weight decay first.

    Raises:
        ValueError: `layer_decay` is given, but the model has no backbone that says how deep its parameters lie.
    """
    scales = {} if layer_decay is None else _layer_scales(model, layer_decay)
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            is_bias = name.endswith("bias") and not isinstance(module, _NORMS)
            is_norm = isinstance(module, _NORMS) or (parameter.ndim <= 1 and not is_bias)
            keeps = decay_biases if is_bias else decay_norms if is_norm else True
            members.setdefault((scales.get(parameter, 1.0), not keeps), []).append(parameter)
    return [
        {"params": parameters}
        | ({} if layer_decay is None else {"lr_scale": scale})
        | ({"weight_decay": 0.0} if plain else {})
        for (scale, plain), parameters in sorted(members.items(), key=lambda item: item[0])
    ]


def _layer_scales(model: nn.Module, layer_decay: float) -> dict[nn.Parameter, float]:
    """Factor on the learning rate of each parameter of the backbone; what follows it would be one layer deeper."""
    backbone = getattr(model, "backbone", None)
    depth_of = getattr(backbone, "depth_of", None)
    if not isinstance(backbone, nn.Module) or depth_of is None:
        what = f"{type(model).__name__} has no backbone" if backbone is None else f"{type(backbone).__name__} has none"
        raise ValueError(
            "layer_decay needs a backbone with a method depth_of(name), which says how deep a parameter lies "
            f"(toolbox/models/interfaces.py); {what}: remove layer_decay, or add the method"
        )
    depths = {parameter: depth_of(name) for name, parameter in backbone.named_parameters()}
    above = max(depths.values(), default=0) + 1
    return {parameter: layer_decay ** (above - depth) for parameter, depth in depths.items()}


@SCHEDULES.register
@dataclass(frozen=True)
class MultiStep:
    """Drop the learning rate at milestones, after a linear warm-up.

    Attributes:
        steps: length of the run.
        milestones: where to drop; a number below 1 is a fraction of the run, else a step.
        gamma: factor of each drop.
        warmup_steps: length of the warm-up; by default a tenth of the run, at most 1000 steps.
        warmup_factor: factor at step 0.
    """

    steps: int
    _: KW_ONLY
    milestones: Sequence[float] = (0.75, 0.92)
    gamma: float = 0.1
    warmup_steps: int | None = None
    warmup_factor: float = 0.001

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps, self.warmup_factor)
        at = self.drops()
        if any(m < 0 for m in self.milestones) or list(at) != sorted(at) or len({*self.milestones}) < len(at):
            raise ConfigError(
                [
                    Problem(
                        "",
                        "train.schedule.milestones",
                        f"got {list(self.milestones)}, which are the steps {list(at)} of {self.steps}; "
                        "expected growing steps, or fractions of the run below 1",
                    )
                ]
            )
        late = [m for m in self.milestones if m >= max(1, self.steps)]
        if late:
            logger.warning(
                "train.schedule.milestones: the run ends after %d steps, so the learning rate does not drop at %s",
                self.steps,
                ", ".join(f"{m:g}" for m in late),
            )

    def drops(self) -> tuple[int, ...]:
        """The milestones as steps."""
        return tuple(round(m * self.steps) if m < 1 else int(m) for m in self.milestones)

    def __call__(self, step: int) -> float:
        """Factor on the base learning rate for the optimizer step number `step`, from 0."""
        factor = self.gamma ** sum(step >= drop for drop in self.drops())
        return factor * _warmup(step, self.steps, self.warmup_steps, self.warmup_factor)


@SCHEDULES.register
@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to `final`, after a linear warm-up.

    Attributes:
        steps: length of the run.
        final: factor at the end.
        warmup_steps: length of the warm-up; by default a tenth of the run, at most 1000 steps.
        warmup_factor: factor at step 0.
    """

    steps: int
    _: KW_ONLY
    final: float = 0.0
    warmup_steps: int | None = None
    warmup_factor: float = 0.001

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps, self.warmup_factor)

    def __call__(self, step: int) -> float:
        """Factor on the base learning rate for the optimizer step number `step`, from 0."""
        start = _warmup_length(self.steps, self.warmup_steps)
        if step < start:
            return _warmup(step, self.steps, self.warmup_steps, self.warmup_factor)
        done = min(1.0, (step - start) / max(1, self.steps - start))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


def _check_warmup(warmup_steps: int | None, warmup_factor: float) -> None:
    wrong = []
    if warmup_steps is not None and warmup_steps < 0:
        wrong.append(f"warmup_steps is 0 (no warm-up) or more, got {warmup_steps}")
    if not 0 <= warmup_factor <= 1:
        wrong.append(f"warmup_factor lies between 0 and 1, got {warmup_factor:g}")
    if wrong:
        raise ValueError("\n".join(wrong))


def _warmup_length(steps: int, warmup_steps: int | None) -> int:
    return min(1000, steps // 10) if warmup_steps is None else warmup_steps


def _warmup(step: int, steps: int, warmup_steps: int | None, warmup_factor: float) -> float:
    length = _warmup_length(steps, warmup_steps)
    return 1.0 if step >= length else warmup_factor + (1 - warmup_factor) * step / length
