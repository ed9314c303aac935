"""Maps stay channels-last through a training step: a convolution that gets another layout converts it at every call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import toolbox
from toolbox.masks import InstanceMasks, PolygonMask
from toolbox.structures import Targets

ROOT = Path(__file__).resolve().parents[2]


class Convolutions(TorchDispatchMode):
    """Notes the shapes that convolutions get with channels elsewhere than innermost."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.converted: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(
        self, function: Any, types: Iterable[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in ("convolution", "convolution_backward"):
            self.calls.append(name)
            maps = [x for x in args if isinstance(x, Tensor) and x.dim() == 4]
            wrong = [x for x in maps if x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1 and x.stride(1) != 1]
            self.converted += [(name, tuple(x.shape)) for x in wrong]
        return function(*args, **(kwargs or {}))


def test_no_convolution_converts_a_map_but_for_the_gradient_of_mask_logits() -> None:
    torch.manual_seed(0)
    config = toolbox.load_config(ROOT / "configs/quickstart.yaml")
    model = toolbox.build_detector(config, classes=("a", "b", "c")).to(memory_format=torch.channels_last)
    box = torch.tensor([[[10.0, 10, 60, 50]]])
    one = torch.ones(1, 1, dtype=torch.int64)
    masks = InstanceMasks([[PolygonMask([np.array([[10.0, 10], [60, 10], [60, 50]])])]])
    targets = Targets(box, one, one.bool(), ~one.bool(), torch.tensor([[1000.0]]), masks=masks)
    with Convolutions() as seen:
        sum(model([torch.randint(256, (3, 64, 96), dtype=torch.uint8)], targets).values()).backward()
    assert seen.calls.count("convolution") > 40 and seen.calls.count("convolution_backward") > 30
    # The loss reads the logits of each region's own class, and its gradient has the layout of that.
    ((name, shape),) = seen.converted
    assert name == "convolution_backward" and shape[1:] == (3, 28, 28)
