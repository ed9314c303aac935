"""COCO metrics against pycocotools' published numbers, and against cases small enough for the hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from toolbox.engine.coco_metrics import coco_metrics, coco_results, records_of
from toolbox.errors import DataError
from toolbox.structures import Detections

REFERENCE = Path(__file__).resolve().parents[2] / "../shared/data/coco_eval"
BACKENDS = ["hotcoco", "pycocotools"]
NAMES = {
    "bbox": ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"],
    "keypoints": ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"],
}
NAMES["segm"] = NAMES["bbox"]
SQUARE = "0d0`20000000000000000000000000000000000000Pj7"  # rows and columns 0 … 19 of 100 × 100


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return request.param


@pytest.mark.parametrize("case", ["bbox", "segm", "segm_as_bbox", "keypoints_1", "keypoints_52"])
def test_metrics_equal_pycocotools_to_the_last_digit(case: str, backend: str) -> None:
    if not REFERENCE.is_dir():
        pytest.skip("reference data coco_eval is not beside the project")
    expected = json.loads((REFERENCE / "expected.json").read_text())["results"][case]
    ground_truth = json.loads((REFERENCE / expected["gt"]).read_text())
    results = json.loads((REFERENCE / expected["dt"]).read_text())
    metrics = coco_metrics(ground_truth, results, expected["iou_type"], backend=backend)
    per_class = metrics.pop("per_class")
    assert metrics == dict(zip(NAMES[expected["iou_type"]], expected["stats"], strict=True))
    assert per_class == {name: -1.0 if ap is None else ap for name, ap in expected["ap_per_category"].items()}


def one_image(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "height": 100, "width": 100}],
        "categories": [{"id": 3, "name": "nut"}, {"id": 9, "name": "bolt"}],
        "annotations": [
            {"id": i + 1, "image_id": 7, "iscrowd": 0, "area": 400.0, **annotation}
            for i, annotation in enumerate(annotations)
        ],
    }


def test_one_of_two_objects_found_gives_half_of_the_recall(backend: str) -> None:
    truth = one_image([{"category_id": 3, "bbox": [0, 0, 20, 20]}, {"category_id": 3, "bbox": [50, 50, 20, 20]}])
    results = [{"image_id": 7, "category_id": 3, "bbox": [0.0, 0.0, 20.0, 20.0], "score": 0.9}]
    metrics = coco_metrics(truth, results, "bbox", backend=backend)
    assert metrics["AR100"] == 0.5
    assert metrics["AP"] == pytest.approx(51 / 101)  # precision 1 at the recalls 0, 0.01 … 0.5
    assert metrics["APs"] == metrics["AP"]  # 20 × 20 is small
    assert metrics["APl"] == -1.0
    assert metrics["per_class"] == {"nut": metrics["AP"], "bolt": -1.0}


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_no_detections_give_zeros(kind: str, backend: str) -> None:
    truth = one_image(
        [
            {
                "category_id": 3,
                "bbox": [0, 0, 20, 20],
                "segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]],
                "keypoints": [5, 5, 2, 9, 9, 2],
            }
        ]
    )
    metrics = coco_metrics(truth, [], kind, sigmas=(0.1, 0.1), backend=backend)
    assert metrics["AP"] == metrics["AP50"] == 0.0
    assert metrics["per_class"] == {"nut": 0.0, "bolt": -1.0}


def test_more_than_100_detections_are_stated_in_the_key_and_leave_the_standard_numbers(backend: str) -> None:
    boxes = [
        [float(x), float(y), 4.0, 4.0] for x in range(0, 80, 5) for y in range(0, 50, 5)
    ]  # 160 apart from each other
    truth = one_image([{"category_id": 3, "bbox": box, "area": 16.0} for box in boxes])
    results = [{"image_id": 7, "category_id": 3, "bbox": box, "score": 0.5} for box in boxes]
    metrics = coco_metrics(truth, results, "bbox", max_detections=200, backend=backend)
    assert metrics["AR100"] == pytest.approx(100 / 160)
    assert metrics["AR@200"] == metrics["AP@200"] == 1.0
    assert {**metrics, "AR@200": 0, "AP@200": 0} == {
        **coco_metrics(truth, results, "bbox", backend=backend),
        "AR@200": 0,
        "AP@200": 0,
    }


def test_joints_without_sigmas_are_refused_unless_they_are_cocos_17() -> None:
    truth = one_image([{"category_id": 3, "bbox": [0, 0, 20, 20], "keypoints": [5, 5, 2, 9, 9, 2]}])
    with pytest.raises(DataError, match="skeleton of 2 joints has no sigmas"):
        coco_metrics(truth, [], "keypoints")
    with pytest.raises(DataError, match="3 sigmas for a skeleton of 2 joints"):
        coco_metrics(truth, [], "keypoints", sigmas=(0.1, 0.1, 0.1))


def test_inputs_are_not_changed(backend: str) -> None:
    truth = one_image([{"category_id": 3, "bbox": [0, 0, 20, 20], "segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]]}])
    rle = {"size": [100, 100], "counts": SQUARE}
    results = [{"image_id": 7, "category_id": 3, "segmentation": rle, "score": 0.9}]
    before = json.dumps([truth, results])
    coco_metrics(truth, results, "segm", backend=backend)
    assert json.dumps([truth, results]) == before


def test_results_are_coco_records() -> None:
    detections = Detections(
        image_size=(100, 100),
        boxes=torch.tensor([[1.0, 2.0, 11.0, 22.0]]),
        scores=torch.tensor([0.5]),
        labels=torch.tensor([1]),
        masks=[{"size": [100, 100], "counts": SQUARE.encode()}],
        keypoints=torch.tensor([[[3.0, 4.0, 1.0], [5.0, 6.0, 0.5]]]),
        image_id=7,
    )
    records = coco_results([detections], (3, 9))
    assert records == [
        {
            "image_id": 7,
            "category_id": 9,
            "bbox": [1.0, 2.0, 10.0, 20.0],
            "score": 0.5,
            "segmentation": {"size": [100, 100], "counts": SQUARE},
            "keypoints": [3.0, 4.0, 1.0, 5.0, 6.0, 0.5],
        }
    ]
    json.dumps(records)
    assert detections.boxes.tolist() == [[1.0, 2.0, 11.0, 22.0]]
    assert set(records_of(records, "segm")[0]) == {"image_id", "category_id", "score", "segmentation"}


def test_a_match_with_annotation_0_counts(backend: str) -> None:
    truth = one_image([{"id": i, "category_id": 3, "bbox": [40 * i, 0, 20, 20]} for i in range(2)])
    results = [{"image_id": 7, "category_id": 3, "bbox": [40.0 * i, 0.0, 20.0, 20.0], "score": 0.9} for i in range(2)]
    assert coco_metrics(truth, results, "bbox", backend=backend)["AP"] == 1.0


def test_fields_that_are_not_compared_may_be_of_any_type(backend: str) -> None:
    truth = one_image([{"category_id": 3, "bbox": [0, 0, 20, 20], "segmentation": [], "keypoints": None}])
    truth["info"], truth["licenses"] = None, "MIT"
    truth["images"][0].update(license="MIT", flickr_url=None, date_captured=2020)
    truth["categories"][0].update(supercategory=5)
    truth["annotations"][0].update(id=-1, attributes={"occluded": True}, num_keypoints=None)
    results = [{"image_id": 7, "category_id": 3, "bbox": [0.0, 0.0, 20.0, 20.0], "score": 0.9}]
    assert coco_metrics(truth, results, "bbox", backend=backend)["AP"] == pytest.approx(1.0)
