"""`evaluate` with joints beside boxes and masks: a detector that is right, and one whose joints are moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toolbox.data.shapes import Shapes
from toolbox.engine import evaluate
from toolbox.engine.coco_metrics import coco_results, records_of
from toolbox.engine.evaluate import check_skeleton
from toolbox.errors import DataError
from toolbox.structures import Detections, Skeleton

CPU = torch.device("cpu")


class Teller(nn.Module):
    """Tells the true objects by image id, its joints moved by `shift` times a step that differs between objects."""

    def __init__(self, dataset: Shapes, shift: float) -> None:
        super().__init__()
        self.samples = {sample.image_id: sample for sample in map(dataset.load, range(len(dataset)))}
        self.shift = shift

    def predict(
        self, images: Sequence[Tensor], original_sizes: Sequence[tuple[int, int]], image_ids: Sequence[int]
    ) -> list[Detections]:
        return [self.tell(image_id) for image_id in image_ids]

    def tell(self, image_id: int) -> Detections:
        sample = self.samples[image_id]
        height, width = sample.image.shape[:2]
        joints = torch.from_numpy(sample.keypoints.copy())
        joints[..., 0] += self.shift * torch.arange(1, len(sample) + 1)[:, None]
        return Detections(
            image_size=(height, width),
            boxes=torch.from_numpy(sample.boxes),
            scores=torch.linspace(1, 0.5, len(sample)),
            labels=torch.from_numpy(sample.labels),
            masks=[mask.to_rle(height, width) for mask in sample.masks],
            keypoints=joints,
            image_id=image_id,
        )


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes(length=6, keypoints=True, seed=3)


def test_true_joints_score_one_beside_true_boxes_and_masks(shapes: Shapes) -> None:
    metrics = evaluate(Teller(shapes, 0.0), shapes, resize=None, device=CPU)
    assert list(metrics) == ["bbox", "segm", "keypoints"]
    assert [metrics[kind]["AP"] for kind in metrics] == pytest.approx([1, 1, 1])


def test_moved_joints_score_what_pycocotools_says(shapes: Shapes) -> None:
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    teller = Teller(shapes, 1.0)
    metrics = evaluate(teller, shapes, resize=None, device=CPU)["keypoints"]
    truth = coco.COCO()
    truth.dataset = shapes.ground_truth()
    truth.createIndex()
    results = coco_results([teller.tell(image_id) for image_id in teller.samples], shapes.category_ids)
    assert {len(record["keypoints"]) for record in results} == {3 * len(shapes.skeleton.names)}
    peers = cocoeval.COCOeval(truth, truth.loadRes(records_of(results, "keypoints")), "keypoints")
    peers.params.kpt_oks_sigmas = np.array(shapes.skeleton.sigmas)
    peers.evaluate()
    peers.accumulate()
    peers.summarize()
    names = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
    assert [metrics[name] for name in names] == peers.stats.tolist()
    assert 0.1 < metrics["AP"] < 0.9


def test_the_sigmas_of_the_data_set_count(shapes: Shapes, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = evaluate(Teller(shapes, 1.0), shapes, resize=None, device=CPU)["keypoints"]["AP"]
    lax = Skeleton(shapes.skeleton.names, shapes.skeleton.pairs, sigmas=(0.5,) * 4)
    monkeypatch.setattr(shapes, "skeleton", lax)
    assert evaluate(Teller(shapes, 1.0), shapes, resize=None, device=CPU)["keypoints"]["AP"] > strict + 0.1


def test_joints_of_another_data_set_are_refused_and_other_sigmas_said(
    shapes: Shapes, caplog: pytest.LogCaptureFixture
) -> None:
    def told(skeleton: Skeleton | None) -> Any:
        check_skeleton(skeleton, shapes, "the run", "data.val")

    told(shapes.skeleton)
    assert not caplog.records
    told(Skeleton(("tip", "left", "right", "tail"), sigmas=(0.1,) * 4))
    assert "data.val has other OKS sigmas than the run" in caplog.text
    with pytest.raises(DataError, match="the first that differs is 'left' for 'right'"):
        told(Skeleton(("tip", "right", "left", "tail")))
    with pytest.raises(DataError, match=r"the run \(0\): none"):
        told(None)
