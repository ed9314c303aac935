"""Which parameters train, and at which rate and weight decay: torch's parameter groups."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from toolbox.engine.freezing import freeze
from toolbox.engine.name_patterns import parameters_named
from toolbox.errors import ConfigError

if TYPE_CHECKING:
    from toolbox.schema import Config

logger = logging.getLogger("toolbox")

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm)


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a config over what trains of a model; what `train.freeze` names is frozen first.

    Raises:
        ConfigError: at the optimizer's settings, or at those of `train` that name what the model does not have.
    """
    settings = config.train
    try:
        freeze(model, settings.freeze)
        groups = parameter_groups(
            model,
            decay_norms=settings.decay_norms,
            decay_biases=settings.decay_biases,
            layer_decay=settings.layer_decay,
            lr_factors=settings.lr_factors,
        )
    except ValueError as error:
        plan = config.plan["train"]
        lines = str(error).splitlines()
        raise ConfigError([plan.problem(line, re.split(r"\W", line, maxsplit=1)[0]) for line in lines]) from error
    return settings.optimizer.build(params=groups, lr=settings.lr)


def parameter_groups(
    model: nn.Module,
    *,
    decay_norms: bool = False,
    decay_biases: bool = False,
    layer_decay: float | None = None,
    lr_factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters in groups of one learning rate and one weight decay.

    What the backbone's `no_weight_decay()` names (position embeddings, class tokens: interfaces.py) is never decayed.

    Args:
        model: only its parameters that require a gradient are returned, each once.
        decay_norms: decay the weights and biases of normalisation layers, and other scales of one dimension.
        decay_biases: decay the biases of all other layers.
        layer_decay: factor on the learning rate per layer of the backbone, from its last layer towards the image
            (Clark et al., *ELECTRA*, arXiv:2003.10555; of images Bao et al., *BEiT*, arXiv:2106.08254). None for one
            rate.
        lr_factors: factor on the learning rate by pattern of names (name_patterns.py); the first pattern that means a
            parameter counts. With `layer_decay`, the product stands in each group as `lr_scale`.

    Returns:
        Groups in an order that the model's structure alone decides: slow ones first, those with weight decay first.

    Raises:
        ValueError: `layer_decay` is given, but the model has no backbone that says how deep its parameters lie; or a
            pattern of `lr_factors` means nothing. Each line begins with the setting.
    """
    scales = {} if layer_decay is None else _layer_scales(model, layer_decay)
    factors = _factors(model, lr_factors or {})
    plain = _never_decayed(model)
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            is_bias = name.endswith("bias") and not isinstance(module, _NORMS)
            is_norm = isinstance(module, _NORMS) or (parameter.ndim <= 1 and not is_bias)
            decays = decay_biases if is_bias else decay_norms if is_norm else True
            scale = scales.get(parameter, 1.0) * factors.get(parameter, 1.0)
            members.setdefault((scale, parameter in plain or not decays), []).append(parameter)
    return [
        {"params": parameters}
        | ({} if layer_decay is None and not lr_factors else {"lr_scale": scale})
        | ({"weight_decay": 0.0} if without else {})
        for (scale, without), parameters in sorted(members.items(), key=lambda item: item[0])
    ]


def _factors(model: nn.Module, lr_factors: Mapping[str, float]) -> dict[nn.Parameter, float]:
    """Factor of each parameter that a pattern means; the first pattern counts."""
    factors: dict[nn.Parameter, float] = {}
    wrong = []
    for pattern, factor in lr_factors.items():
        try:
            meant = parameters_named(model, pattern).values()
        except ValueError as error:
            wrong.append(f"lr_factors has {error}")
            continue
        new = [parameter for parameter in meant if parameter not in factors]
        if not new:
            wrong.append(
                f"lr_factors has '{pattern}' below patterns that name all of the same, and the first one counts; "
                f"write '{pattern}' above them"
            )
        elif not any(parameter.requires_grad for parameter in new):
            logger.warning("train.lr_factors: nothing that '%s' names trains, so its factor has no effect", pattern)
        factors |= dict.fromkeys(new, factor)
    if wrong:
        raise ValueError("\n".join(wrong))
    return factors


def _never_decayed(model: nn.Module) -> set[nn.Parameter]:
    """What the backbone wants without weight decay whatever the settings; a pull towards zero means nothing there."""
    backbone = getattr(model, "backbone", None)
    wishes = getattr(backbone, "no_weight_decay", None)
    if not isinstance(backbone, nn.Module) or wishes is None:
        return set()
    patterns = tuple(wishes())
    return {p for name, p in backbone.named_parameters() if any(fnmatchcase(name, pattern) for pattern in patterns)}


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
