"""Parts of a model that do not train."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from toolbox.engine.name_patterns import parameters_named


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Take the gradient from what the patterns name, in place.

    A module of which nothing trains any more rests: it stays in evaluation mode whatever mode the model is in, so that
    batch norms in it keep their statistics and dropout and stochastic depth let everything through.

    Args:
        model: a detector, on any device.
        patterns: names of parameters and modules, with `*` and `?`.

    Raises:
        ValueError: a pattern names nothing, or nothing is left to train.
    """
    wrong, frozen = [], set()
    for pattern in patterns:
        try:
            frozen |= set(parameters_named(model, pattern).values())
        except ValueError as error:
            wrong.append(f"freeze has {error}")
    if wrong:
        raise ValueError("\n".join(wrong))
    for parameter in frozen:
        parameter.requires_grad_(False)
    if frozen and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze leaves nothing to train: {', '.join(patterns)} name all that would; leave a part out")
    resting = [module for module in model.modules() if _rests(module, frozen)]
    if resting:
        # A function of (model, resting), not a closure, so that a deep copy of the model holds its own modules.
        model.train = partial(_train, model, resting)  # type: ignore[method-assign]
        model.train(model.training)


def _rests(module: nn.Module, frozen: set[nn.Parameter]) -> bool:
    parameters = set(module.parameters())
    return not parameters.isdisjoint(frozen) and not any(parameter.requires_grad for parameter in parameters)


def _train(model: nn.Module, resting: Sequence[nn.Module], mode: bool = True) -> nn.Module:
    """`nn.Module.train` of a model with parts that stay in evaluation mode."""
    type(model).train(model, mode)
    for module in resting:
        module.eval()
    return model
