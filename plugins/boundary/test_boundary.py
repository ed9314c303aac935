"""The plugin's own test, as a third party would write it: no import from the toolbox's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import toolbox
from toolbox.masks import InstanceMasks, PolygonMask
from toolbox.registry import INSTANCE_HEADS
from toolbox.structures import Regions, RoIShape, Targets
from toolbox.testing import check_component

FOLDER = Path(__file__).parent


def config(*overrides: str) -> object:
    return toolbox.load_config(FOLDER / "boundary.yaml", overrides)


def regions(*boxes: list[float]) -> Regions:
    rois = torch.tensor([[0, *box] for box in boxes], dtype=torch.float32).reshape(-1, 5)
    index = torch.zeros(len(boxes), dtype=torch.int64)
    return Regions(rois, labels=index, matched=index, valid=index == 0, rows=torch.arange(len(boxes)))


def square_target() -> Targets:
    square = PolygonMask([torch.tensor([[8.0, 8], [24, 8], [24, 24], [8, 24]]).numpy()])
    one = torch.ones(1, 1, dtype=torch.bool)
    return Targets(
        boxes=torch.tensor([[[8.0, 8, 24, 24]]]),
        labels=torch.zeros(1, 1, dtype=torch.int64),
        valid=one,
        crowd=~one,
        area=torch.tensor([[256.0]]),
        masks=InstanceMasks([[square]]),
    )


def test_outline_of_a_square_is_a_ring() -> None:
    config()
    outline = sys.modules[INSTANCE_HEADS.get("BoundaryHead").__module__].outline
    mask = torch.zeros(1, 6, 6)
    mask[:, 1:5, 1:5] = 1
    assert outline(mask, 1)[0].tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_a_perfect_prediction_has_almost_no_loss_and_its_opposite_a_large_one() -> None:
    config()
    head = INSTANCE_HEADS.get("BoundaryHead")(RoIShape(4, 8, 8), 1)
    rows = regions([0, 0, 32, 32])  # one target pixel per two image pixels: the square is rows and columns 4 … 11
    wanted = torch.zeros(1, 16, 16)
    wanted[:, 4:12, 4:12] = 1
    wanted[:, 5:11, 5:11] = 0
    logits = (wanted * 2 - 1) * 20
    assert head.loss(logits, rows, square_target())["edge"] < 1e-6
    assert head.loss(-logits, rows, square_target())["edge"] > 10


def test_the_head_keeps_every_promise_of_its_family() -> None:
    config()
    check_component("BoundaryHead", settings={"channels": 8, "thickness": 2})


def test_the_branch_trains_and_predicts_beside_the_mask_without_a_change_in_the_toolbox() -> None:
    detector = toolbox.build_detector(config("test.score_threshold=0"), classes=("a", "b"))
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    losses = detector([image], square_target())
    assert {"mask", "boundary_edge"} <= losses.keys()
    found = detector.eval().predict([image])[0]
    assert len(found) > 0
    assert found.extras["boundary"].shape == (len(found), 28, 28)
    assert found.masks is not None and len(found.masks) == len(found)
