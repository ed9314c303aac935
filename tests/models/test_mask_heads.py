"""What mask heads make of their logits: loss and probability by hand, and that every form learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolbox.masks import InstanceMasks, PolygonMask
from toolbox.models.heads import FCNMaskHead, MLPMaskHead
from toolbox.models.losses import BinaryCrossEntropy, CrossEntropy
from toolbox.structures import Regions, RoIShape, Targets

SHAPE = RoIShape(4, 2, 2)
HEADS = [FCNMaskHead, MLPMaskHead]


def head(cls: type[nn.Module] = FCNMaskHead, classes: int = 3, **settings: Any) -> Any:
    return cls(SHAPE, classes, channels=8, **settings)


def regions(*labels: int) -> Regions:
    """Regions 0 … 4 in both directions, all of the one object of image 0."""
    count = len(labels)
    rois = torch.tensor([[0.0, 0, 0, 4, 4]]).repeat(count, 1)
    zeros = torch.zeros(count, dtype=torch.int64)
    return Regions(rois, torch.tensor(labels), zeros, zeros == 0, torch.arange(count))


def left_half() -> Targets:
    """One object, the left half of 4 × 4 pixels."""
    box, yes = torch.tensor([[[0.0, 0, 2, 4]]]), torch.ones(1, 1, dtype=torch.bool)
    polygon = PolygonMask([torch.tensor([[0.0, 0], [2, 0], [2, 4], [0, 4]]).numpy()])
    zeros = torch.zeros(1, 1, dtype=torch.int64)
    return Targets(box, zeros, yes, ~yes, torch.tensor([[8.0]]), masks=InstanceMasks([[polygon]]))


def test_softmax_loss_is_the_cross_entropy_of_own_class_inside_and_background_outside() -> None:
    # K = 3 and background: logit 2 for class 1 and 1 for background at every pixel of 2 × 2, 0 elsewhere.
    logits = torch.zeros(1, 4, 2, 2)
    logits[:, 1], logits[:, 3] = 2.0, 1.0
    total = math.log(2 + math.e + math.e**2)
    inside, outside = total - 2, total - 1
    loss = head(activation="softmax").loss(logits, regions(1), left_half())
    assert loss["mask"].item() == pytest.approx((inside + outside) / 2)


def test_sigmoid_loss_is_on_the_true_class_alone() -> None:
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 5
    logits[:, 1] = 2.0
    inside, outside = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    loss = head().loss(logits, regions(1), left_half())
    assert loss["mask"].item() == pytest.approx((inside + outside) / 2)


def test_prediction_is_the_probability_of_the_own_class() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0, 1.0]]).T.reshape(1, 4, 1, 1).repeat(2, 1, 1, 1)
    labels = torch.tensor([0, 2])
    softmax = [math.exp(value) / sum(math.exp(v) for v in (2, 0, -1, 1)) for value in (2, -1)]
    assert head(activation="softmax").predict(logits, labels).flatten().tolist() == pytest.approx(softmax)
    sigmoid = [1 / (1 + math.exp(-value)) for value in (2, -1)]
    assert head().predict(logits[:, :3], labels).flatten().tolist() == pytest.approx(sigmoid)


@pytest.mark.parametrize("cls", HEADS)
@pytest.mark.parametrize(
    ("settings", "masks"),
    [
        ({}, 3),
        ({"activation": "softmax"}, 4),
        ({"class_agnostic": True}, 1),
        ({"class_agnostic": True, "activation": "softmax"}, 2),
    ],
)
def test_number_of_masks(cls: type[nn.Module], settings: dict[str, Any], masks: int) -> None:
    made = head(cls, **settings)
    assert made(torch.randn(5, 4, 2, 2)).shape[:2] == (5, masks)
    assert made.predict(made(torch.randn(5, 4, 2, 2)), torch.tensor([0, 1, 2, 0, 1])).shape[0] == 5


def test_a_class_agnostic_softmax_has_one_mask_for_all_classes() -> None:
    made, logits = head(class_agnostic=True, activation="softmax"), torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)
    expected = 1 / (1 + math.exp(2))
    assert [made.predict(logits, torch.tensor([k])).item() for k in range(3)] == pytest.approx([expected] * 3)
    zero_and_two = [made.loss(logits.expand(1, 2, 2, 2), regions(k), left_half())["mask"].item() for k in (0, 2)]
    assert zero_and_two[0] == zero_and_two[1] == pytest.approx(math.log(1 + math.exp(2)) - 1)


def test_mlp_has_the_papers_layers() -> None:
    # 'fc: 1024 → 1024 → 80 · 28²' on 256 × 14 × 14: weights and biases of three matrices.
    with torch.device("meta"):
        two = MLPMaskHead(RoIShape(256, 14, 14), 80)
        three = MLPMaskHead(RoIShape(256, 14, 14), 80, fully_connected=3)
    widths = [256 * 14 * 14, 1024, 1024, 80 * 28 * 28]
    expected = sum((a + 1) * b for a, b in zip(widths, widths[1:], strict=False))
    assert sum(p.numel() for p in two.parameters()) == expected
    assert sum(p.numel() for p in three.parameters()) == expected + 1025 * 1024


@pytest.mark.parametrize(("activation", "wrong"), [("sigmoid", CrossEntropy), ("softmax", BinaryCrossEntropy)])
@pytest.mark.parametrize("cls", HEADS)
def test_the_loss_of_the_other_activation_is_refused(cls: type[nn.Module], activation: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"^loss {wrong.__name__} does not go with activation '{activation}'; leave"):
        head(cls, activation=activation, loss=wrong())


def accuracy(made: Any, maps: Tensor) -> float:
    """Part of the mask pixels that are right, of regions of the classes 0, 1 and 2."""
    rows = regions(0, 1, 2)
    found = made.predict(made(maps), rows.labels) > 0.5
    wanted = left_half().masks.rasterise(rows.rois, rows.matched, tuple(found.shape[-2:])) > 0.5
    return (found == wanted).float().mean().item()


@pytest.mark.parametrize("cls", HEADS)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_every_form_learns_masks_by_heart(cls: type[nn.Module], activation: str, class_agnostic: bool) -> None:
    torch.manual_seed(0)
    size = {"mask_size": 4} if cls is MLPMaskHead else {}
    made = cls(SHAPE, 3, channels=32, activation=activation, class_agnostic=class_agnostic, **size)
    maps, targets, rows = torch.randn(3, 4, 2, 2), left_half(), regions(0, 1, 2)
    assert accuracy(made, maps) < 0.8
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        made.loss(made(maps), rows, targets)["mask"].backward()
        optimizer.step()
    assert accuracy(made, maps) == 1.0
