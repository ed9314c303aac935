"""Anchors, proposals and losses of the RPN. torchvision is the oracle for anchors."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from toolbox.models.rpn import RPN, AnchorGenerator, ConvRPNHead, ProposalCounts
from toolbox.structures import FeatureSpec, ImageBatch, Targets

FEATURES = {"p2": FeatureSpec(8, 4), "p3": FeatureSpec(8, 8)}


def image_batch(*sizes: tuple[int, int]) -> ImageBatch:
    height, width = (max(s[axis] for s in sizes) for axis in range(2))
    tensor = torch.tensor(sizes)
    return ImageBatch(torch.zeros(len(sizes), 3, height, width), tensor, tensor)


def targets(boxes: list[list[list[float]]], crowd: list[list[bool]] | None = None) -> Targets:
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(len(boxes), -1, 4)
    shape = tensor.shape[:2]
    marks = torch.zeros(shape, dtype=torch.bool) if crowd is None else torch.tensor(crowd)
    return Targets(
        tensor, torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.bool), marks, tensor[..., 0]
    )


def make_rpn(**settings: object) -> RPN:
    torch.manual_seed(0)
    anchors = AnchorGenerator(FEATURES, sizes=(16, 32))
    return RPN(FEATURES, head=ConvRPNHead(8, anchors.num_anchors), anchors=anchors, **settings)


def maps(images: int = 1) -> dict[str, torch.Tensor]:
    return {"p2": torch.randn(images, 8, 16, 16), "p3": torch.randn(images, 8, 8, 8)}


@pytest.mark.parametrize("rounding", [True, False])
def test_anchors_equal_torchvisions(rounding: bool) -> None:
    features = list(maps().values())
    ours = AnchorGenerator(FEATURES, sizes=[[16, 20], [32, 40]], rounding=rounding)(features)
    theirs = TorchvisionAnchors(((16, 20), (32, 40)), ((0.5, 1.0, 2.0),) * 2)
    if not rounding:
        theirs.cell_anchors = [_unrounded(sizes) for sizes in ((16, 20), (32, 40))]
    expected = theirs(ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)]), features)[0]
    torch.testing.assert_close(torch.cat(ours), expected)


def _unrounded(sizes: tuple[int, ...]) -> torch.Tensor:
    rows = [[-s / r**0.5 / 2, -s * r**0.5 / 2, s / r**0.5 / 2, s * r**0.5 / 2] for r in (0.5, 1.0, 2.0) for s in sizes]
    return torch.tensor(rows)


def test_anchors_for_another_number_of_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="given for 3 levels, but there are 2: p2, p3"):
        AnchorGenerator(FEATURES, sizes=(16, 32, 64))


def test_head_deltas_of_an_anchor_stay_together() -> None:
    rpn = make_rpn()
    with torch.no_grad():
        rpn.head.deltas.weight.zero_()
        rpn.head.deltas.bias.copy_(torch.arange(12.0))
    predictions = rpn(maps())
    assert predictions.deltas[0][0, :3].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_proposals_lie_inside_their_own_image() -> None:
    batch = image_batch((64, 64), (40, 24))
    proposals = make_rpn().propose(make_rpn()(maps(2)), batch, ProposalCounts(100, 50))
    assert proposals.boxes.shape == (2, 50, 4)
    inside = proposals.boxes[1][proposals.valid[1]]
    assert len(inside) and inside[:, 2].max() <= 24 and inside[:, 3].max() <= 40


def test_proposals_are_the_best_anchors_in_order() -> None:
    rpn = make_rpn(nms=1.0)
    predictions = rpn(maps())
    predictions.deltas = [torch.zeros_like(level) for level in predictions.deltas]
    predictions.logits[0][0].fill_(-9.0)
    predictions.logits[1][0].fill_(-9.0)
    predictions.logits[0][0, 3 * (16 * 8 + 8)] = 2.0  # row 8, column 8, ratio 0.5
    predictions.logits[1][0, 3 * (8 * 4 + 4) + 1] = 3.0  # row 4, column 4, ratio 1
    proposals = rpn.propose(predictions, image_batch((64, 64)), ProposalCounts(100, 2))
    side = 16 * 2**0.5 / 2
    expected = [[16.0, 16, 48, 48], [32 - side, 32 - side / 2, 32 + side, 32 + side / 2]]
    torch.testing.assert_close(proposals.boxes[0], torch.tensor(expected))
    torch.testing.assert_close(proposals.scores[0], torch.tensor([3.0, 2.0]).sigmoid())


def test_no_proposals_is_an_ordinary_case() -> None:
    rpn = make_rpn(min_size=1000)
    proposals = rpn.propose(rpn(maps()), image_batch((64, 64)), rpn.test_counts)
    assert not proposals.valid.any() and not proposals.boxes.any()


def test_nan_logits_give_no_proposal() -> None:
    rpn = make_rpn()
    predictions = rpn(maps())
    predictions.logits = [torch.full_like(level, float("nan")) for level in predictions.logits]
    assert not rpn.propose(predictions, image_batch((64, 64)), rpn.test_counts).valid.any()


@pytest.mark.parametrize("boxes", [[[]], [[[10, 10, 30, 30]]]], ids=["no objects", "one object"])
def test_losses_are_finite_and_reach_every_parameter(boxes: list[list[list[float]]]) -> None:
    rpn = make_rpn()
    losses = rpn.loss(rpn(maps()), targets(boxes))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad is not None for parameter in rpn.parameters())


def test_box_loss_by_hand() -> None:
    # Untouched deltas (zero) against one object equal to an anchor: its box loss is zero, its objectness log 2.
    rpn = make_rpn()
    predictions = rpn(maps())
    predictions.deltas = [torch.zeros_like(level) for level in predictions.deltas]
    predictions.logits = [torch.zeros_like(level) for level in predictions.logits]
    anchor = torch.cat(predictions.anchors)[3 * (16 * 8 + 8) + 1]
    losses = rpn.loss(predictions, targets([[anchor.tolist()]]))
    assert losses["rpn_objectness"].item() == pytest.approx(0.6931, abs=1e-4)
    # Low-quality and 0.7 matches beside the exact one have small offsets; the exact one adds nothing.
    assert 0 <= losses["rpn_box"].item() < 0.05


def test_crowd_trains_no_anchor() -> None:
    rpn = make_rpn()
    everything = targets([[[0, 0, 64, 64]]], crowd=[[True]])
    predictions = rpn(maps())
    matches = rpn.matcher.match_batch(
        torch.cat(predictions.anchors), everything.boxes, everything.valid, everything.crowd
    )
    assert not matches.foreground.any()
    inside = (torch.cat(predictions.anchors)[:, :2] > 0).all(1) & (torch.cat(predictions.anchors)[:, 2:] < 64).all(1)
    assert not matches.background[0, inside].any()
