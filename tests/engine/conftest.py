"""A detector and a data set small enough to train in milliseconds; not registered, so no other test meets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toolbox.data.interfaces import Sample
from toolbox.models.box_branch import TestSettings
from toolbox.plan import Plan, plain
from toolbox.sections import DataConfig, RunConfig, TrainConfig, register_builtin
from toolbox.structures import Detections, Targets
from toolbox.yaml_nodes import write


class TinyDetector(nn.Module):
    """Guesses one box per image from its mean colour. The dropout makes it depend on torch's random state."""

    wired: ClassVar[tuple[str, ...]] = ("num_classes",)

    def __init__(self, num_classes: int, *, dropout: float = 0.0, nan_at: int | None = None) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 16)
        self.norm = nn.LayerNorm(16)
        self.box = nn.Linear(16, 4)
        self.dropout = nn.Dropout(dropout)
        self.nan_at = nan_at
        self.calls = 0

    def boxes(self, images: Sequence[Tensor]) -> Tensor:
        """(N, 4)."""
        colour = torch.stack([image.float().mean((1, 2)) / 255 for image in images])
        return self.box(self.dropout(self.norm(self.hidden(colour)).relu())) * 8

    def forward(self, images: Sequence[Tensor], targets: Targets) -> dict[str, Tensor]:
        self.calls += 1
        error = (self.boxes(images) - targets.boxes[:, 0]) / 8
        size = error[:, 2:].square().mean() * (float("nan") if self.calls == self.nan_at else 1.0)
        return {"corner": error[:, :2].square().mean(), "size": size}

    def predict(
        self, images: Sequence[Tensor], original_sizes: Sequence[tuple[int, int]], image_ids: Sequence[int]
    ) -> list[Detections]:
        assert not self.training
        return [
            Detections(image_size=size, boxes=box[None], scores=torch.ones(1), labels=torch.zeros(1).long(), image_id=i)
            for box, size, i in zip(self.boxes(images), original_sizes, image_ids, strict=True)
        ]


class TinyImages:
    """Images 8 × 8 of one colour; the colour says where the object is."""

    classes = ("thing",)
    category_ids = (5,)
    skeleton = None

    def __init__(self, *, length: int = 12) -> None:
        colours = np.random.default_rng(0).integers(0, 256, (length, 3))
        self.images = np.broadcast_to(colours[:, None, None].astype(np.uint8), (length, 8, 8, 3))
        corners = colours[:, :2] / 64
        self.boxes = np.concatenate([corners, corners + 3], axis=1).astype(np.float32)

    def __len__(self) -> int:
        return len(self.images)

    def size(self, index: int) -> tuple[int, int]:
        return (8, 8)

    def load(self, index: int) -> Sample:
        zeros = np.zeros(1, dtype=np.int64)
        return Sample(
            image=self.images[index].copy(),
            boxes=self.boxes[index : index + 1],
            labels=zeros,
            crowd=zeros.astype(bool),
            area=np.array([9.0], dtype=np.float32),
            image_id=100 + index,
        )

    def ground_truth(self) -> dict[str, Any]:
        boxes = [[*box[:2].tolist(), 3.0, 3.0] for box in self.boxes]
        common = {"category_id": 5, "area": 9.0, "iscrowd": 0}
        return {
            "images": [{"id": 100 + i, "height": 8, "width": 8} for i in range(len(self))],
            "categories": [{"id": 5, "name": "thing"}],
            "annotations": [{"id": i + 1, "image_id": 100 + i, "bbox": b, **common} for i, b in enumerate(boxes)],
        }


@pytest.fixture
def tiny_config() -> Callable[..., Any]:
    """A function of `train` settings, `model` settings and `val` that gives a config."""
    register_builtin()

    def make(*, model: dict[str, Any] | None = None, val: type | None = None, **train: Any) -> Any:
        settings = {"steps": 12, "batch": 4, "lr": 0.05, "device": "cpu", "log_every": 3, **train}
        said = {"model": model or {}, "train": plain(settings), "data": {"workers": 0}}
        plan = Plan(TinyDetector, model or {})
        return SimpleNamespace(
            model=plan,
            data=DataConfig(train=Plan(TinyImages, {}), val=val and Plan(val, {}), resize=None, workers=0),
            train=TrainConfig(**settings),
            test=TestSettings(),
            plugins=(),
            plan=Plan(RunConfig, {"model": plan, "train": Plan(TrainConfig, settings, key="train")}),
            path="tiny.yaml",
            to_yaml=lambda: write(said),
        )

    return make


@pytest.fixture
def tiny_images() -> type:
    return TinyImages


@pytest.fixture
def tiny_detector() -> type:
    return TinyDetector
