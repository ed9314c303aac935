"""torch's optimizers, with every argument named, so that YAML can be checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from toolbox.registry import OPTIMIZERS

Params = Iterable[Any]  # tensors, or torch's parameter groups


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
