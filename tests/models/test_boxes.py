"""Boxes: overlap, coding, matching, sampling, suppression. Expected values by hand or from torchvision."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision

from toolbox.models.boxes import (
    BoxCoder,
    Matcher,
    RandomSampler,
    batched_nms,
    box_overlap,
    clip_boxes,
    to_padded,
    to_regions,
)


def boxes(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def flags(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


def test_overlap_by_hand() -> None:
    found = box_overlap(boxes([0, 0, 10, 10]), boxes([5, 0, 15, 10], [0, 0, 10, 10], [20, 20, 30, 30], [3, 3, 3, 3]))
    assert found.tolist() == [[pytest.approx(50 / 150), 1.0, 0.0, 0.0]]


def test_overlap_with_a_crowd_is_over_the_box_itself() -> None:
    found = box_overlap(boxes([0, 0, 100, 100]), boxes([95, 0, 105, 10]), crowd=flags(1))
    assert found.item() == pytest.approx(0.5)


def test_overlap_equals_torchvision_on_random_boxes() -> None:
    corners = torch.rand(2, 50, 4, generator=torch.Generator().manual_seed(0)) * 100
    a, b = (torch.cat((c[:, :2], c[:, :2] + c[:, 2:] + 0.1), dim=1) for c in corners)
    torch.testing.assert_close(box_overlap(a, b), torchvision.ops.box_iou(a, b))


def test_clip_keeps_each_image_to_its_own_size() -> None:
    batch = torch.tensor([[[-5.0, -5, 50, 50]], [[10, 10, 500, 500]]])
    clipped = clip_boxes(batch, torch.tensor([[20, 30], [100, 200]]))
    assert clipped.tolist() == [[[0, 0, 30, 20]], [[10, 10, 200, 100]]]


def test_encoding_by_hand() -> None:
    # From (0, 0, 10, 20), centre (5, 10), to (5, 10, 25, 50), centre (15, 30) and size (20, 40).
    deltas = BoxCoder(weights=(10, 10, 5, 5)).encode(boxes([5, 10, 25, 50]), boxes([0, 0, 10, 20]))
    assert deltas.tolist() == [[pytest.approx(v, rel=1e-6) for v in (10.0, 10.0, 5 * math.log(2), 5 * math.log(2))]]


def test_decoding_inverts_encoding() -> None:
    coder, target, source = BoxCoder(weights=(10, 10, 5, 5)), boxes([3, 4, 50, 60]), boxes([0, 0, 32, 32])
    torch.testing.assert_close(coder.decode(coder.encode(target, source), source), target)


def test_decoding_clamps_growth() -> None:
    grown = BoxCoder(clamp=math.log(2)).decode(torch.tensor([[0.0, 0, 100, 100]]), boxes([0, 0, 10, 10]))
    torch.testing.assert_close(grown, boxes([-5, -5, 15, 15]))


def test_encoding_of_a_box_without_area_is_finite() -> None:
    assert BoxCoder().encode(boxes([5, 5, 5, 5]), boxes([1, 1, 1, 1])).isfinite().all()


def test_matching_by_hand() -> None:
    rows = boxes([0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 4], [50, 50, 60, 60])  # IoU 1, 0.6, 0.4, 0
    match = Matcher(0.7, 0.5).match(rows, boxes([0, 0, 10, 10]), flags(1), flags(0))
    assert match.foreground.tolist() == [True, False, False, False]
    assert match.background.tolist() == [False, False, True, True]


def test_low_quality_match_gives_every_object_an_anchor() -> None:
    rows = boxes([0, 0, 10, 4], [0, 0, 10, 3], [50, 50, 60, 60])
    match = Matcher(0.7, 0.3, low_quality=True).match(rows, boxes([0, 0, 10, 10]), flags(1), flags(0))
    assert match.foreground.tolist() == [True, False, False]


def test_an_object_that_overlaps_nothing_takes_no_anchor() -> None:
    match = Matcher(0.7, 0.3, low_quality=True).match(
        boxes([0, 0, 10, 10]), boxes([50, 50, 60, 60]), flags(1), flags(0)
    )
    assert not match.foreground.any()


def test_padding_is_never_matched() -> None:
    match = Matcher().match(boxes([0, 0, 10, 10]), boxes([0, 0, 10, 10]), flags(0), flags(0))
    assert not match.foreground.any() and match.background.all()


def test_crowd_is_no_match_and_silences_the_background_it_covers() -> None:
    rows = boxes([10, 10, 20, 20], [95, 0, 106, 10], [200, 200, 210, 210])
    match = Matcher().match(rows, boxes([0, 0, 100, 100]), flags(1), flags(1))
    assert not match.foreground.any()
    assert match.background.tolist() == [False, True, True]  # covered whole, 5/11 covered, apart


def test_foreground_on_a_crowd_stays_foreground() -> None:
    rows = boxes([10, 10, 20, 20])
    match = Matcher().match(rows, boxes([0, 0, 100, 100], [10, 10, 20, 20]), flags(1, 1), flags(1, 0))
    assert match.foreground.tolist() == [True] and match.matched.tolist() == [1]


def test_no_objects_make_everything_background() -> None:
    match = Matcher(low_quality=True).match(boxes([0, 0, 1, 1]), boxes(), flags(), flags())
    assert match.background.all() and not match.foreground.any()


@pytest.mark.parametrize(("positives", "expected"), [(0, 0), (3, 3), (50, 16)])
def test_sampler_keeps_the_ratio_and_puts_foreground_first(positives: int, expected: int) -> None:
    foreground = torch.arange(200)[None] < positives
    index, valid, chosen = RandomSampler(size=64, positive_fraction=0.25).sample(foreground, ~foreground)
    assert valid.all() and chosen.sum() == expected
    assert chosen[0, :expected].all() and not chosen[0, expected:].any()
    assert foreground[0, index[0]].eq(chosen[0]).all()
    assert len(index[0].unique()) == 64


def test_sampler_marks_rows_it_cannot_fill() -> None:
    foreground, background = torch.zeros(2, 1, 100, dtype=torch.bool)
    foreground[0, 3], background[0, 50:55] = True, True
    index, valid, chosen = RandomSampler(size=32).sample(foreground, background)
    assert valid.sum() == 6 and chosen.sum() == 1 and index[0, 0] == 3


def test_sampler_draws_every_candidate_alike() -> None:
    torch.manual_seed(0)
    foreground = torch.ones(2000, 10, dtype=torch.bool)
    index, _, chosen = RandomSampler(size=4, positive_fraction=0.5).sample(foreground, ~foreground)
    share = torch.bincount(index[chosen], minlength=10) / 2000
    assert (share - 0.2).abs().max() < 0.04  # 2 of 10 drawn; 0.04 is over four standard deviations


def test_nms_equals_torchvision_per_image_and_group() -> None:
    generator = torch.Generator().manual_seed(0)
    corner, side = torch.rand(2, 40, 2, generator=generator) * 50, torch.rand(2, 40, 2, generator=generator) * 30 + 1
    rows, scores = torch.cat((corner, corner + side), dim=-1), torch.rand(2, 40, generator=generator)
    groups = torch.randint(3, (2, 40), generator=generator)
    valid = torch.rand(2, 40, generator=generator) > 0.3
    index, kept = batched_nms(rows, scores, groups, valid, iou=0.4, keep=12)
    for image in range(2):
        own = valid[image].nonzero()[:, 0]
        expected = own[torchvision.ops.batched_nms(rows[image, own], scores[image, own], groups[image, own], 0.4)[:12]]
        assert index[image, kept[image]].tolist() == expected.tolist()


def test_nms_of_nothing_keeps_nothing() -> None:
    zeros = torch.zeros(1, 5)
    _, kept = batched_nms(torch.zeros(1, 5, 4), zeros, zeros.long(), zeros.bool(), iou=0.5, keep=3)
    assert kept.shape == (1, 3) and not kept.any()


def test_regions_drop_padding_and_come_back_to_their_places() -> None:
    batch = torch.arange(24.0).reshape(2, 3, 4)
    valid = torch.tensor([[True, False, True], [False, False, True]])
    regions = to_regions(batch, valid, labels=torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert regions.rois[:, 0].tolist() == [0, 0, 1] and regions.labels.tolist() == [1, 3, 6]
    back = to_padded(regions.rois[:, 1:], regions, valid.shape)
    assert back.tolist() == (batch * valid[..., None]).tolist()
