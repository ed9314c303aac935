"""Anchors, proposals and losses of the RPN. torchvision is the oracle for anchors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from toolbox.models.boxes import Matcher, RandomSampler
from toolbox.models.rpn import RPN, AnchorGenerator, ConvRPNHead, ProposalCounts
from toolbox.models.rpn.cells import Cells, cells_of, surroundings
from toolbox.structures import FeatureSpec, ImageBatch, Targets

ONE = torch.ones(1, dtype=torch.bool)
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
    ours = AnchorGenerator(FEATURES, sizes=[[16, 20], [32, 40]], rounding=rounding)(features, (64, 64))
    theirs = TorchvisionAnchors(((16, 20), (32, 40)), ((0.5, 1.0, 2.0),) * 2)
    if not rounding:
        theirs.cell_anchors = [_unrounded(sizes) for sizes in ((16, 20), (32, 40))]
    expected = theirs(ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)]), features)[0]
    torch.testing.assert_close(torch.cat(ours), expected)


def _unrounded(sizes: tuple[int, ...]) -> torch.Tensor:
    rows = [[-s / r**0.5 / 2, -s * r**0.5 / 2, s / r**0.5 / 2, s * r**0.5 / 2] for r in (0.5, 1.0, 2.0) for s in sizes]
    return torch.tensor(rows)


def test_sizes_for_one_level_that_is_meant_to_have_them_all_are_written_out() -> None:
    with pytest.raises(ValueError) as caught:
        AnchorGenerator({"c4": FeatureSpec(8, 16)}, sizes=[16, 32.5, 64])
    assert str(caught.value) == (
        "sizes are given for 3 levels, but there is 1: c4; for all of them on that one, write [[16, 32.5, 64]]"
    )
    with pytest.raises(ValueError, match="for 2 levels, but there is 1: c4; give one size"):
        AnchorGenerator({"c4": FeatureSpec(8, 16)}, sizes=[[16, 32], [64, 128]])


def test_anchors_for_another_number_of_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="given for 3 levels, but there are 2: p2, p3"):
        AnchorGenerator(FEATURES, sizes=(16, 32, 64))


def test_head_deltas_of_an_anchor_stay_together() -> None:
    rpn = make_rpn()
    with torch.no_grad():
        rpn.head.deltas.weight.zero_()
        rpn.head.deltas.bias.copy_(torch.arange(12.0))
    predictions = rpn(maps(), image_batch((64, 64)))
    assert predictions.deltas[0][0, :3].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_proposals_lie_inside_their_own_image() -> None:
    batch = image_batch((64, 64), (40, 24))
    proposals = make_rpn().propose(make_rpn()(maps(2), batch), batch, ProposalCounts(100, 50))
    assert proposals.boxes.shape == (2, 50, 4)
    inside = proposals.boxes[1][proposals.valid[1]]
    assert len(inside) and inside[:, 2].max() <= 24 and inside[:, 3].max() <= 40


def test_proposals_are_the_best_anchors_in_order() -> None:
    rpn = make_rpn(nms=1.0)
    predictions = rpn(maps(), image_batch((64, 64)))
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
    proposals = rpn.propose(rpn(maps(), image_batch((64, 64))), image_batch((64, 64)), rpn.test_counts)
    assert not proposals.valid.any() and not proposals.boxes.any()


def test_nan_logits_give_no_proposal() -> None:
    rpn = make_rpn()
    predictions = rpn(maps(), image_batch((64, 64)))
    predictions.logits = [torch.full_like(level, float("nan")) for level in predictions.logits]
    assert not rpn.propose(predictions, image_batch((64, 64)), rpn.test_counts).valid.any()


@pytest.mark.parametrize("boxes", [[[]], [[[10, 10, 30, 30]]]], ids=["no objects", "one object"])
def test_losses_are_finite_and_reach_every_parameter(boxes: list[list[list[float]]]) -> None:
    rpn = make_rpn()
    losses = rpn.loss(rpn(maps(), image_batch((64, 64))), targets(boxes))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad is not None for parameter in rpn.parameters())


class TakeAll:
    """Every candidate, foreground first."""

    size = capacity = 10_000

    def sample(self, foreground: torch.Tensor, background: torch.Tensor) -> tuple[torch.Tensor, ...]:
        order = (foreground.int() * 2 + background.int()).argsort(dim=1, descending=True, stable=True)
        return order, (foreground | background).gather(1, order), foreground.gather(1, order)


def test_losses_by_hand() -> None:
    # One object: the anchor at row 8, column 8 of p2 with ratio 1, side 16, moved right by one pixel. Only that anchor
    # (IoU 15 / 17) and the one a cell further on (13 / 19) reach the threshold; the next have 11 / 21 and less.
    rpn = make_rpn(matcher=Matcher(0.59, 0.59), sampler=TakeAll())
    predictions = rpn(maps(), image_batch((64, 64)))
    predictions.deltas = [torch.zeros_like(level) for level in predictions.deltas]
    predictions.logits = [torch.zeros_like(level) for level in predictions.logits]
    anchors = torch.cat(predictions.anchors)
    x1, y1, x2, y2 = anchors[3 * (16 * 8 + 8) + 1].tolist()
    assert (x2 - x1, y2 - y1) == (16, 16)
    losses = rpn.loss(predictions, targets([[[x1 + 1, y1, x2 + 1, y2]]]))
    foreground = rpn.matcher.match(anchors, torch.tensor([[x1 + 1, y1, x2 + 1, y2]]), ONE, ~ONE).foreground
    assert foreground.sum() == 2  # dx = 1 / 16 and -3 / 16 of the side
    expected = [abs(d) - 0.5 / 9 if abs(d) > 1 / 9 else 0.5 * 9 * d * d for d in (1 / 16, -3 / 16)]
    assert losses["rpn_objectness"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert losses["rpn_box"].item() == pytest.approx(sum(expected) / len(anchors), rel=1e-5)


def test_whole_strides_space_the_anchors_as_torchvision_does() -> None:
    features = [torch.zeros(1, 8, 25, 34), torch.zeros(1, 8, 13, 17)]
    specs = {"p5": FeatureSpec(8, 32), "p6": FeatureSpec(8, 64)}
    ours = AnchorGenerator(specs, sizes=(256, 512), rounding=True, whole_strides=True)(features, (800, 1088))
    theirs = TorchvisionAnchors(((256,), (512,)), ((0.5, 1.0, 2.0),) * 2)
    expected = theirs(ImageList(torch.zeros(1, 3, 800, 1088), [(800, 1088)]), features)[0]
    torch.testing.assert_close(torch.cat(ours), expected)


def test_crowd_trains_no_anchor() -> None:
    rpn = make_rpn()
    everything = targets([[[0, 0, 64, 64]]], crowd=[[True]])
    predictions = rpn(maps(), image_batch((64, 64)))
    matches = rpn.matcher.match_batch(
        torch.cat(predictions.anchors), everything.boxes, everything.valid, everything.crowd
    )
    assert not matches.foreground.any()
    inside = (torch.cat(predictions.anchors)[:, :2] > 0).all(1) & (torch.cat(predictions.anchors)[:, 2:] < 64).all(1)
    assert not matches.background[0, inside].any()


@pytest.mark.parametrize("convolutions", [0, 1, 2])
def test_the_gradient_through_sampled_cells_is_the_one_through_whole_maps(convolutions: int) -> None:
    torch.manual_seed(0)
    anchors = AnchorGenerator(FEATURES, sizes=(16, 32))
    head = ConvRPNHead(8, anchors.num_anchors, convolutions=convolutions).double()
    for parameter in head.parameters():  # biases too: beyond the border is zero, not a convolution's bias
        torch.nn.init.normal_(parameter, std=0.3)
    rpn = RPN(FEATURES, head=head, anchors=anchors, sampler=RandomSampler(size=60))
    images, truth = image_batch((64, 48), (60, 64)), targets([[[2, 2, 20, 18]], [[30, 30, 63, 59]]])
    read = {"p2": torch.randn(2, 8, 16, 12).double(), "p3": torch.randn(2, 8, 8, 6).double()}
    found = []
    for whole in (True, False):
        features = {name: level.clone().requires_grad_() for name, level in read.items()}
        rpn.zero_grad()
        predictions = rpn(features, images)
        assert predictions.maps is not None and not predictions.logits[0].requires_grad
        if whole:  # as a head without `at` is trained
            logits, deltas = head(list(features.values()))
            predictions = replace(
                predictions,
                logits=[level.permute(0, 2, 3, 1).flatten(1) for level in logits],
                deltas=[level.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)) for level in deltas],
                maps=None,
            )
        torch.manual_seed(1)
        losses = rpn.loss(predictions, truth)
        sum(losses.values()).backward()
        gradients = [value.grad for value in (*features.values(), *head.parameters())]
        found.append([*losses.values(), *gradients])
    for expected, ours in zip(*found, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_cells_are_where_their_anchors_stand() -> None:
    # Two levels of 2 × 3 and 1 × 2 cells with 2 anchors each: 12 anchors, then 4.
    cells, anchor = cells_of(torch.tensor([[0, 11, 12], [7, 15, 2]]), [(2, 3), (1, 2)], 2)
    assert cells.image.tolist() == [0, 0, 0, 1, 1, 1]
    assert cells.level.tolist() == [0, 0, 1, 0, 1, 0]
    assert cells.y.tolist() == [0, 1, 0, 1, 0, 0] and cells.x.tolist() == [0, 2, 0, 0, 1, 1]
    assert anchor.tolist() == [0, 1, 0, 1, 1, 0]


def test_what_surrounds_a_corner_is_zero_beyond_the_border() -> None:
    level = torch.arange(1.0, 7.0).reshape(1, 1, 2, 3)
    at = torch.zeros(1, dtype=torch.int64)
    values, inside = surroundings([level], Cells(at, at, at, at), radius=1)
    assert values.tolist() == [[[[0, 0, 0], [0, 1, 2], [0, 4, 5]]]]
    assert torch.equal(inside, values > 0)


@pytest.mark.parametrize(("sampler", "few"), [(RandomSampler(size=80), True), (RandomSampler(size=81), False)])
def test_whole_maps_are_used_where_most_of_them_are_sampled(sampler: RandomSampler, few: bool) -> None:
    predictions = make_rpn(sampler=sampler)(maps(), image_batch((64, 64)))  # 16 · 16 + 8 · 8 = 320 cells
    assert (predictions.maps is not None) is few
    assert make_rpn(sampler=TakeAll())(maps(), image_batch((64, 64))).maps is None


def test_a_head_of_another_forward_is_trained_through_whole_maps() -> None:
    class Doubled(ConvRPNHead):
        def forward(self, features: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
            logits, deltas = super().forward(features)
            return [2 * level for level in logits], deltas

    rpn = make_rpn(sampler=RandomSampler(size=8))
    rpn.head = Doubled(8, 3)
    predictions = rpn(maps(), image_batch((64, 64)))
    assert predictions.maps is None and predictions.logits[0].requires_grad
