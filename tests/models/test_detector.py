"""The whole model: ordinary odd cases, and that what it computes reaches every parameter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import toolbox
from toolbox.masks import InstanceMasks, PolygonMask
from toolbox.structures import Regions, Targets

QUICKSTART = Path(__file__).resolve().parents[2] / "configs/quickstart.yaml"
CLASSES = ("a", "b", "c")
C4 = (
    "model.backbone.out=[c4]",
    "model.neck=null",
    "model.rpn.anchors.sizes=[[16, 32, 64]]",
    "model.roi_stage={type: ResNetStage, stage: 5, depth: 18, norm: gn}",
    "model.instance.mask={head: {type: FCNMaskHead, convolutions: 0, channels: 32}}",
)


def build(*overrides: str) -> nn.Module:
    torch.manual_seed(0)
    return toolbox.build_detector(toolbox.load_config(QUICKSTART, overrides), classes=CLASSES)


def image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def targets(*images: list[list[float]], crowd: bool = False) -> Targets:
    """One list of boxes per image; masks are the boxes themselves."""
    count = max(len(rows) for rows in images)
    boxes = torch.zeros(len(images), count, 4)
    valid = torch.zeros(len(images), count, dtype=torch.bool)
    for index, rows in enumerate(images):
        boxes[index, : len(rows)] = torch.tensor(rows).reshape(-1, 4)
        valid[index, : len(rows)] = True
    masks = [[PolygonMask([torch.tensor(b)[[0, 1, 2, 1, 2, 3, 0, 3]].view(4, 2).numpy()]) for b in r] for r in images]
    return Targets(
        boxes,
        torch.zeros(valid.shape, dtype=torch.int64),
        valid,
        valid & crowd,
        (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]),
        masks=InstanceMasks(masks),
    )


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(targets([[10.0, 10, 40, 50]], [[5.0, 5, 30, 30], [20.0, 8, 60, 40]]), id="objects"),
        pytest.param(targets([[10.0, 10, 40, 50]], []), id="one image without objects"),
        pytest.param(targets([], []), id="no objects at all"),
        pytest.param(targets([[10.0, 10, 40, 50]], [[0.0, 0, 60, 40]], crowd=True), id="only crowds"),
    ],
)
def test_losses_are_finite_and_reach_every_parameter(batch: Targets) -> None:
    detector = build()
    losses = detector([image(64, 96), image(50, 70)], batch)
    assert set(losses) == {"rpn_objectness", "rpn_box", "box_class", "box_delta", "mask"}
    assert all(loss.isfinite() and loss.dim() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    without = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert not without


def test_no_proposals_train_and_predict() -> None:
    detector = build("model.rpn.min_size=100000", "model.box.add_ground_truth=false")
    losses = detector([image(64, 64)], targets([[10.0, 10, 40, 50]]))
    sum(losses.values()).backward()
    assert losses["box_class"] == 0 and losses["mask"] == 0
    assert all(parameter.grad is not None for parameter in detector.parameters())
    assert len(detector.eval().predict([image(64, 64)])[0]) == 0


def test_prediction_in_a_batch_equals_prediction_alone() -> None:
    detector = build("test.score_threshold=0.0", "test.detections=5").double().eval()
    images = [image(64, 96), image(64, 96, seed=1)]  # of one size: padding reaches into a smaller one's features
    for together, alone in zip(detector.predict(images), (detector.predict([x])[0] for x in images), strict=True):
        torch.testing.assert_close(together.boxes, alone.boxes)
        assert together.masks == alone.masks


def test_lists_of_another_length_than_the_images_are_refused() -> None:
    detector = build().eval()
    with pytest.raises(ValueError, match="2 images, but 1 original_sizes"):
        detector.predict([image(64, 64), image(64, 64)], original_sizes=[(64, 64)])
    with pytest.raises(ValueError, match="1 images, but 2 image_ids"):
        detector.predict([image(64, 64)], image_ids=[1, 2])


def test_predictions_are_in_original_pixels() -> None:
    detector = build("test.score_threshold=0.0", "test.detections=5").eval()
    network = detector.predict([image(64, 96)])[0]
    scaled = detector.predict([image(64, 96)], original_sizes=[(128, 288)], image_ids=[7])[0]
    assert scaled.image_size == (128, 288) and scaled.image_id == 7
    torch.testing.assert_close(scaled.boxes, network.boxes * torch.tensor([3.0, 2, 3, 2]))
    assert all(mask["size"] == [128, 288] for mask in scaled.masks)


def test_prediction_keeps_the_threshold_and_the_limit_in_order() -> None:
    found = build("test.score_threshold=0.2", "test.detections=7").eval().predict([image(96, 96)])[0]
    assert 0 < len(found) <= 7
    assert found.scores.min() > 0.2 and found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_faster_rcnn_is_an_empty_mapping_of_branches() -> None:
    detector = build("model.instance={}")
    assert "mask" not in detector([image(64, 64)], targets([[10.0, 10, 40, 50]]))
    assert detector.eval().predict([image(64, 64)])[0].masks is None


def test_c4_model_shares_its_stage_between_boxes_and_masks() -> None:
    detector = build(*C4)
    losses = detector([image(64, 96)], targets([[10.0, 10, 40, 50]]))
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())
    assert losses["mask"] > 0
    found = detector.eval().predict([image(64, 96)])[0]
    assert len(found.masks) == len(found)


def test_c4_masks_train_on_the_pooled_regions_of_their_own_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build(*C4)
    branch, seen = detector.instance["mask"], {}

    def loss(prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        seen["regions"] = regions
        return {"mask": prediction.sum() * 0}

    def forward(regions: Tensor) -> Tensor:
        seen["pooled"] = regions
        return regions

    monkeypatch.setattr(branch.head, "loss", loss)
    monkeypatch.setattr(branch.head, "forward", forward)
    monkeypatch.setattr(detector, "extract", lambda images: seen.setdefault("maps", extract(images)))
    extract = type(detector).extract.__get__(detector)
    detector.eval()(
        [image(64, 96), image(64, 96, 1)], targets([[10.0, 10, 40, 50]], [[5.0, 5, 30, 30], [20, 8, 60, 40]])
    )
    assert len(seen["regions"].rois) > 3 and set(seen["regions"].rois[:, 0].tolist()) == {0.0, 1.0}
    torch.testing.assert_close(seen["pooled"], detector.pool(seen["maps"], seen["regions"]))


def test_the_same_seed_gives_the_same_loss() -> None:
    batch = targets([[10.0, 10, 40, 50]])

    def loss() -> float:
        return sum(build()([image(64, 64)], batch).values()).item()

    assert loss() == loss()


def test_a_width_mismatch_is_a_config_error_with_its_place() -> None:
    with pytest.raises(toolbox.errors.ConfigError, match=r"model\.rpn.*maps of different width.*add a neck"):
        build("model.neck=null", "model.rpn.anchors.sizes=[16, 32, 64, 128]")


def test_anchor_levels_that_do_not_fit_are_a_config_error_with_their_key() -> None:
    with pytest.raises(toolbox.errors.ConfigError, match=r"model\.rpn\.anchors.*2 levels, but there are 5: p2, p3, p4"):
        build("model.rpn.anchors.sizes=[16, 32]")


def test_a_loss_that_is_no_mapping_is_refused_with_the_head_and_what_to_return(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build()
    monkeypatch.setattr(detector.instance["mask"].head, "loss", lambda prediction, *_: prediction.sum())
    said = (
        "model.instance.mask: FCNMaskHead.loss returns Tensor, not a mapping of named losses; "
        "return a dict of scalars, e.g. {'mask': loss}"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(said)}$"):
        detector([image(64, 64)], targets([[10.0, 10, 40, 50]]))


def test_an_error_inside_a_head_says_which_branch_and_class(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build("test.score_threshold=0")
    monkeypatch.setattr(detector.instance["mask"].head, "forward", lambda regions: regions @ regions.new_ones(3))
    with pytest.raises(RuntimeError) as caught:
        detector([image(64, 64)], targets([[10.0, 10, 40, 50]]))
    assert caught.value.__notes__ == ["in training, model.instance.mask: FCNMaskHead"]
    with pytest.raises(RuntimeError) as caught:
        detector.eval().predict([image(64, 64)])
    assert caught.value.__notes__ == ["in prediction, model.instance.mask: FCNMaskHead"]


def test_images_are_padded_to_the_coarsest_stride_or_as_told() -> None:
    images = [image(50, 70)]
    assert build().preprocess(images).tensor.shape == (1, 3, 64, 96)
    assert build("model.pad_to=20").preprocess(images).tensor.shape == (1, 3, 60, 80)
    unpadded = build(*C4, "model.pad_to=1", "test.score_threshold=0.0").eval()
    assert unpadded.preprocess(images).tensor.shape == (1, 3, 50, 70)
    assert unpadded.predict(images)[0].image_size == (50, 70)
    with pytest.raises(toolbox.errors.ConfigError, match="pad_to is 1 pixel or more, got 0"):
        build("model.pad_to=0")
