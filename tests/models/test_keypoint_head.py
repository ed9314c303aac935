"""The keypoint head: cells by hand, torchvision as the oracle of loss and decoding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypointrcnn_loss, keypoints_to_heatmap

import toolbox
from toolbox.data.shape_painting import SKELETON as SHAPES_SKELETON
from toolbox.models.heads import FCNKeypointHead
from toolbox.models.heads.heat_maps import decode_bicubic, decode_parabola, encode_joints, resizing_matrix
from toolbox.models.postprocess import finish
from toolbox.structures import Regions, RoIShape, Skeleton, Targets

QUICKSTART = Path(__file__).resolve().parents[2] / "configs/quickstart.yaml"
SKELETON = Skeleton(("nose", "left", "right"), pairs=((1, 2),), sigmas=(0.05,) * 3)


def head(**settings: Any) -> FCNKeypointHead:
    return FCNKeypointHead(RoIShape(8, 14, 14), 2, SKELETON, **{"convolutions": 1, "channels": 8, **settings})


def regions_of(boxes: Tensor, image: list[int], matched: list[int], valid: list[bool] | None = None) -> Regions:
    rows = torch.arange(len(boxes))
    flags = torch.ones(len(boxes), dtype=torch.bool) if valid is None else torch.tensor(valid)
    rois = torch.cat((torch.tensor(image)[:, None].to(boxes), boxes), dim=1)
    return Regions(rois, torch.zeros_like(rows), torch.tensor(matched), flags, rows)


def targets_of(keypoints: Tensor) -> Targets:
    """(N, G, J, 3)"""
    shape = keypoints.shape[:2]
    yes = torch.ones(shape, dtype=torch.bool)
    return Targets(torch.zeros(*shape, 4), torch.zeros(shape).long(), yes, ~yes, torch.ones(shape), keypoints=keypoints)


def random_scene(count: int, joints: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (R, J, 56, 56), boxes (R, 4) and joints (R, J, 3), some of them outside or not labelled."""
    generator = torch.Generator().manual_seed(4)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 40
    extent = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 90 + 5
    extent[0] = torch.tensor([0.4, 30.0])  # narrower than a pixel
    boxes = torch.cat((corner, corner + extent), dim=1)
    points = corner[:, None] + torch.rand(count, joints, 2, generator=generator) * extent[:, None] * 1.3
    visibility = torch.randint(0, 3, (count, joints, 1), generator=generator)
    coarse = torch.randn(count, joints, 9, 9, generator=generator, dtype=torch.float64)
    maps = torch.nn.functional.interpolate(coarse, size=(56, 56), mode="bicubic")
    return maps, boxes, torch.cat((points, visibility), dim=-1)


def test_joints_fall_into_the_cells_computed_by_hand() -> None:
    # 28 × 14 pixels on 56 × 56 cells: two columns and four rows a pixel.
    box = torch.tensor([[10.0, 20, 38, 34]])
    joints = torch.tensor([[10.0, 20, 2], [24, 27.25, 1], [37.99, 33.99, 2], [38, 34, 2], [10.49, 20.26, 2]])
    cells, inside = encode_joints(joints[None], box, (56, 56))
    assert cells.tolist() == [[0, 29 * 56 + 28, 55 * 56 + 55, 55 * 56 + 55, 1 * 56 + 0]]
    assert inside.all()


def test_joints_outside_and_without_label_have_no_cell() -> None:
    box = torch.tensor([[10.0, 20, 38, 34]])
    joints = torch.tensor([[9.99, 25, 2], [38.01, 25, 2], [20, 34.01, 2], [20, 19.9, 2], [20, 25, 0]])
    cells, inside = encode_joints(joints[None], box, (56, 56))
    assert not inside.any() and not cells.any()


def test_a_region_without_extent_holds_no_joint() -> None:
    joints = torch.tensor([[20.0, 25, 2], [20, 27, 2], [20, 30, 2], [19, 27, 2], [21, 27, 2]])  # on it and beside it
    for box in ([20.0, 25, 20, 30], [19.0, 27, 21, 27]):
        cells, inside = encode_joints(joints[None], torch.tensor([box]), (56, 56))
        assert not inside.any() and not cells.any()


def test_cells_equal_torchvisions() -> None:
    _, boxes, joints = random_scene(60, 17)
    joints[5, 0, :2], joints[6, 1, 0] = boxes[5, 2:], boxes[6, 2]  # on the far edges
    expected, valid = keypoints_to_heatmap(joints, boxes, 56)
    cells, inside = encode_joints(joints, boxes, (56, 56))
    assert torch.equal(cells, expected) and torch.equal(inside, valid.bool())
    assert 100 < int(inside.sum()) < 900


def test_a_joint_is_decoded_at_the_middle_of_the_highest_cell() -> None:
    maps = torch.zeros(1, 2, 56, 56)
    maps[0, 0, 10, 20], maps[0, 1, 0, 55] = 7.0, 5.0
    found = decode_bicubic(maps, torch.tensor([[100.0, 200, 156, 256]]))
    torch.testing.assert_close(found, torch.tensor([[[120.5, 210.5, 7], [155.5, 200.5, 5]]]))


def test_a_width_that_is_no_whole_number_is_rounded_up_and_corrected() -> None:
    maps = torch.zeros(1, 1, 2, 2)
    maps[0, 0, 0, 1] = 1.0
    # 2 × 2 cells on ceil(1.5) = 2 pixels a side, each of them 0.75 wide.
    found = decode_bicubic(maps, torch.tensor([[10.0, 10, 11.5, 11.5]]))
    torch.testing.assert_close(found, torch.tensor([[[10 + 1.5 * 0.75, 10 + 0.5 * 0.75, 1.0]]]))


def test_decoding_equals_torchvisions_in_float64() -> None:
    maps, boxes, _ = random_scene(60, 17)
    points, scores = heatmaps_to_keypoints(maps, boxes)
    found = decode_bicubic(maps, boxes)
    torch.testing.assert_close(found[..., :2].float(), points[..., :2], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[..., 2].float(), scores, rtol=1e-6, atol=1e-6)
    assert len(torch.unique(found[..., :2].reshape(-1, 2), dim=0)) > 900


@pytest.mark.parametrize("pixels", [1, 3, 56, 57, 240])
def test_the_resizing_matrix_is_torchs_bicubic_interpolation(pixels: int) -> None:
    row = torch.randn(1, 1, 1, 56, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(row, size=(1, pixels), mode="bicubic")
    torch.testing.assert_close(row.flatten() @ resizing_matrix(56, pixels, row).T, expected.flatten())


def test_the_parabola_through_three_cells_has_its_top_where_the_hand_finds_it() -> None:
    maps = torch.full((1, 1, 8, 8), -9.0)
    maps[0, 0, 3, 3:6] = torch.tensor([0.0, 3, 2])  # along x: (2 - 0) / (2 · (2 · 3 - 0 - 2)) = 0.25 cells to the right
    maps[0, 0, 2, 4], maps[0, 0, 4, 4] = 1.0, 1.0  # along y: as high above as below
    found = decode_parabola(maps, torch.tensor([[0.0, 0, 16, 8]]))
    torch.testing.assert_close(found, torch.tensor([[[(4.5 + 0.25) * 2, 3.5, 3.0]]]))


def test_a_flat_map_and_a_peak_in_the_corner_stay_inside_the_region() -> None:
    maps = torch.zeros(1, 2, 8, 8)
    maps[0, 1, 7, 7] = 4.0
    for decode in (decode_bicubic, decode_parabola):
        found = decode(maps, torch.tensor([[10.0, 10, 18, 18]]))
        assert found.isfinite().all()
        assert (found[..., :2] >= 10).all() and (found[..., :2] <= 18).all()


def test_loss_and_gradient_equal_torchvisions() -> None:
    maps, boxes, joints = random_scene(12, 3)
    images, matched = [0] * 5 + [1] * 7, [0, 1, 2, 3, 4, 6, 5, 4, 3, 2, 1, 0]
    truth = torch.zeros(2, 7, 3, 3, dtype=torch.float64)
    truth[0, :5], truth[1] = joints[:5], joints[5:]
    own, peers = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    found = head().loss(own, regions_of(boxes, images, matched), targets_of(truth))["keypoint"]
    split = [boxes[:5], boxes[5:]]
    expected = keypointrcnn_loss(
        peers, split, [truth[0, :5], truth[1]], [torch.tensor(matched[:5]), torch.tensor(matched[5:])]
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    found.backward()
    expected.backward()
    assert own.grad is not None and peers.grad is not None and peers.grad.abs().max() > 1e-3
    torch.testing.assert_close(own.grad, peers.grad, rtol=1e-5, atol=1e-8)


def test_the_layers_are_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(KeypointRCNNHeads(8, (512,) * 8), KeypointRCNNPredictor(512, 3)).double()
    ours = head(convolutions=8, channels=512).double()
    ours.convolutions.load_state_dict(theirs[0].state_dict())
    ours.deconvolution.load_state_dict(theirs[1].kps_score_lowres.state_dict())
    regions = torch.randn(2, 8, 14, 14, dtype=torch.float64)
    torch.testing.assert_close(ours(regions), theirs(regions), rtol=1e-9, atol=1e-12)


def test_a_fixed_normaliser_divides_the_sum_by_itself_and_the_images() -> None:
    maps, boxes, joints = random_scene(4, 3)
    truth = targets_of(torch.stack((joints, joints)))
    regions = regions_of(boxes, [0, 0, 1, 1], [0, 1, 2, 3])
    mean = head().loss(maps, regions, truth)["keypoint"]
    count = encode_joints(joints, boxes, (56, 56))[1].sum()
    fixed = head(normaliser=100.0, weight=3.0).loss(maps, regions, truth)["keypoint"]
    torch.testing.assert_close(fixed, mean * count * 3 / (2 * 100))


def test_only_labelled_joints_of_valid_regions_train() -> None:
    maps, boxes, joints = random_scene(4, 3)
    boxes = torch.tensor([[0.0, 0, 200, 200]], dtype=torch.float64).expand(4, 4)
    joints[..., 2] = torch.tensor([2.0, 0, 0])
    maps.requires_grad_()
    regions = regions_of(boxes, [0] * 4, [0, 1, 2, 3], valid=[True, False, True, False])
    head().loss(maps, regions, targets_of(joints[None]))["keypoint"].backward()
    assert maps.grad is not None
    reached = maps.grad.flatten(2).abs().sum(2) > 0
    assert reached.tolist() == [[True, False, False], [False] * 3, [True, False, False], [False] * 3]


@pytest.mark.parametrize("case", ["no regions", "no labels", "nothing inside"])
@pytest.mark.parametrize("normaliser", [None, 50.0])
def test_without_joints_the_loss_is_zero_with_a_gradient(case: str, normaliser: float | None) -> None:
    model = head(normaliser=normaliser)
    count = 0 if case == "no regions" else 2
    boxes = torch.tensor([[0.0, 0, 20, 20], [5, 5, 30, 30]])[:count]
    joints = torch.tensor([50.0, 50, 2] if case == "nothing inside" else [10.0, 10, 0]).expand(1, 2, 3, 3)
    loss = model.loss(
        model(torch.randn(count, 8, 14, 14)), regions_of(boxes, [0] * count, [0] * count), targets_of(joints)
    )
    assert loss["keypoint"].item() == 0
    loss["keypoint"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("decode", ["bicubic", "parabola"])
def test_joints_come_back_to_the_pixels_of_the_original_image(decode: str) -> None:
    model = head(decode=decode)
    maps = torch.zeros(1, 3, 56, 56)
    maps[0, :, 13, 27] = 5.0
    maps[0, :, 13, 26] = maps[0, :, 13, 28] = maps[0, :, 12, 27] = maps[0, :, 14, 27] = 1.0
    network = torch.tensor([[100.0, 50, 212, 106]])  # 112 × 56
    kept = model.predict(maps, torch.tensor([1]))
    # The image was 600 × 200 pixels and is 300 × 400 in the network: twice as wide, half as high.
    found = finish(model, kept, network * torch.tensor([2, 0.5, 2, 0.5]), (200, 600), network, (400, 300))
    x, y, _ = found["keypoints"][0].unbind(-1)
    torch.testing.assert_close(x, torch.full((3,), (100 + 27.5 * 2) * 2), rtol=0, atol=1.01)
    torch.testing.assert_close(y, torch.full((3,), (50 + 13.5) * 0.5), rtol=0, atol=0.5)


def test_no_detections_give_no_joints() -> None:
    for decode in ("bicubic", "parabola"):
        model = head(decode=decode)
        kept = model.predict(model(torch.zeros(0, 8, 14, 14)), torch.zeros(0).long())
        found = finish(model, kept, torch.zeros(0, 4), (60, 80), torch.zeros(0, 4), (60, 80))
        assert found["keypoints"].shape == (0, 3, 3)


def test_what_the_head_refuses_begins_with_the_settings_name() -> None:
    for wrong in ({"channels": 0}, {"convolutions": -1}, {"normaliser": 0.0}, {"decode": "cubic"}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))} "):
            head(**wrong)
    with pytest.raises(ValueError, match="needs ground-truth joints"):
        boxes = torch.tensor([[0.0, 0, 9, 9]])
        truth = targets_of(torch.zeros(1, 1, 3, 3))
        truth.keypoints = None
        head().loss(torch.zeros(1, 3, 56, 56), regions_of(boxes, [0], [0]), truth)


def detector(*overrides: str) -> tuple[Any, Any]:
    """The quickstart model with masks and joints, and its data set of four classes with one skeleton."""
    keypoint = (
        "{extractor: {type: RoIAlign, output_size: 14}, head: {type: FCNKeypointHead, convolutions: 1, channels: 16}}"
    )
    common = ["data.train.keypoints=true", "data.train.length=4", f"model.instance.keypoint={keypoint}"]
    config = toolbox.load_config(QUICKSTART, [*common, *overrides])
    dataset = config.data.train.build()
    torch.manual_seed(0)
    return toolbox.build_detector(config, classes=dataset.classes, skeleton=dataset.skeleton), dataset


def test_masks_and_joints_of_several_classes_train_and_predict_together() -> None:
    from toolbox.data.source import collate

    model, dataset = detector("test.score_threshold=0.0", "test.detections=9")
    samples = [dataset.load(0), dataset.load(1)]
    batch = collate(samples)
    assert len({label for sample in samples for label in sample.labels.tolist()}) > 1
    losses: Mapping[str, Tensor] = model(batch.images, batch.targets)
    assert {"mask", "keypoint"} <= losses.keys() and losses["keypoint"] > 0
    sum(losses.values()).backward()
    assert model.instance.keypoint.head.deconvolution.weight.grad.any()

    model.eval()
    plain = model.predict(batch.images)[0]
    doubled = model.predict(batch.images, original_sizes=[(256, 256), (256, 256)])[0]
    assert plain.keypoints.shape == (9, len(SHAPES_SKELETON.names), 3) and len(plain.masks) == 9
    torch.testing.assert_close(doubled.keypoints[..., :2], plain.keypoints[..., :2] * 2)
    torch.testing.assert_close(doubled.keypoints[..., 2], plain.keypoints[..., 2])


def test_an_image_without_detections_has_an_empty_set_of_joints() -> None:
    model, dataset = detector("test.score_threshold=1.0")
    found = model.eval().predict([torch.zeros(3, 128, 128, dtype=torch.uint8)])[0]
    assert len(found) == 0 and found.keypoints.shape == (0, len(dataset.skeleton.names), 3)


def test_data_without_joints_are_refused_before_training() -> None:
    from toolbox.errors import ConfigError
    from toolbox.models.builder import check_ground_truth, check_wiring

    keypoint = "{extractor: {type: RoIAlign, output_size: 14}, head: {type: FCNKeypointHead}}"
    config = toolbox.load_config(QUICKSTART, [f"model.instance.keypoint={keypoint}", "data.train.length=4"])
    with pytest.raises(ConfigError, match="has no keypoints here, but model.instance.keypoint"):
        check_ground_truth(config, config.data.train.build())
    with pytest.raises(ConfigError, match="FCNKeypointHead needs joints"):
        check_wiring(config, classes=("a",), skeleton=None)
