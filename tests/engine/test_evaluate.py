"""`evaluate` over a detector that is right, and one that is wrong."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from toolbox.engine import Progress, evaluate, progress
from toolbox.engine.evaluate import check_classes, spelled_alike
from toolbox.errors import DataError
from toolbox.structures import Detections

CPU = torch.device("cpu")


class Oracle(nn.Module):
    """Knows the boxes by image id, and gives those below `count`; every second one with a mask of the whole image."""

    def __init__(self, boxes: Tensor, count: int, *, masks: bool = False) -> None:
        super().__init__()
        self.boxes = boxes
        self.count = count
        self.masks = masks

    def predict(
        self, images: Sequence[Tensor], original_sizes: Sequence[tuple[int, int]], image_ids: Sequence[int]
    ) -> list[Detections]:
        found = []
        for image, size, image_id in zip(images, original_sizes, image_ids, strict=True):
            assert image.dtype == torch.uint8 and not self.training
            number = int(image_id - 100 < self.count)
            found.append(
                Detections(
                    image_size=size,
                    boxes=self.boxes[image_id - 100][None][:number],
                    scores=torch.ones(number),
                    labels=torch.zeros(number, dtype=torch.int64),
                    masks=[{"size": [8, 8], "counts": b"0P2"}] * number if self.masks else None,
                    image_id=image_id,
                )
            )
        return found


def test_a_perfect_detector_has_an_ap_of_one_and_is_left_in_its_mode(tiny_images: type) -> None:
    dataset = tiny_images()
    seen: list[Progress] = []
    detector = Oracle(torch.from_numpy(dataset.boxes), 12).train()
    metrics = evaluate(detector, dataset, resize=None, device=CPU, batch=5, on_progress=seen.append)
    assert metrics.keys() == {"bbox"}
    assert metrics["bbox"]["AP"] == pytest.approx(1.0) and metrics["bbox"]["per_class"] == {
        "thing": metrics["bbox"]["AP"]
    }
    assert [(p.phase, p.done, p.total) for p in seen] == [("eval", 5, 12), ("eval", 10, 12), ("eval", 12, 12)]
    assert detector.training


def test_a_detector_that_finds_three_of_twelve_has_a_recall_of_a_quarter(tiny_images: type) -> None:
    dataset = tiny_images()
    metrics = evaluate(Oracle(torch.from_numpy(dataset.boxes), 3), dataset, resize=None, device=CPU)
    assert metrics["bbox"]["AR100"] == 0.25


def test_a_detector_that_finds_nothing_scores_zero(tiny_images: type) -> None:
    dataset = tiny_images()
    metrics = evaluate(Oracle(torch.from_numpy(dataset.boxes), 0), dataset, resize=None, device=CPU)
    assert metrics["bbox"]["AP"] == metrics["bbox"]["AR100"] == 0.0


def test_the_log_says_how_far_an_evaluation_is(
    tiny_images: type, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, now = tiny_images(), iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))  # ten seconds a batch
    with caplog.at_level(logging.INFO, logger="toolbox"):
        evaluate(Oracle(torch.from_numpy(dataset.boxes), 12), dataset, resize=None, device=CPU, batch=2)
    assert [record.getMessage() for record in caplog.records] == [
        "evaluating: 12 images",
        "evaluating: 6 of 12 images done, about 30 s left",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "about 1 s"), (89, "about 89 s"), (730, "about 12 min"), (9000, "about 2.5 h")]
)
def test_forecasts_are_given_in_words(seconds: float, words: str) -> None:
    assert progress.about(seconds) == words


def test_masks_without_true_masks_are_left_out_and_said_to_be(
    tiny_images: type, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = tiny_images()
    with caplog.at_level(logging.INFO, logger="toolbox"):
        metrics = evaluate(Oracle(torch.from_numpy(dataset.boxes), 12, masks=True), dataset, resize=None, device=CPU)
    assert metrics.keys() == {"bbox"}
    assert "segm are predicted, but the ground truth has none" in caplog.text


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (("cat", "dog"), "the same in another order"),
        (("dog", "kat"), r"the run \(2\): dog, kat\n  data.val \(2\): dog, cat\n"),
        (("dog", "cat", "cow"), r"data.val are not those of the run: data.val lacks 'cow'\n"),
    ],
)
def test_classes_that_differ_are_named(tiny_images: type, model: tuple[str, ...], message: str) -> None:
    dataset = tiny_images()
    dataset.classes = ("dog", "cat")
    check_classes(("dog", "cat"), dataset, "the run", "data.val")
    with pytest.raises(DataError, match=message):
        check_classes(model, dataset, "the run", "data.val")


@pytest.mark.parametrize(
    ("model", "source", "advice", "unfit"),
    [
        (("dog", "cat", "cow"), "runs/a", "add 'cow' to the 'categories' of data.val's file", "classes: ["),
        (
            ("dog", "cat", "cow"),
            "data.train",
            "or give both data sets .* 'classes: \\[dog, cat\\]'",
            "correct the names",
        ),
        (("cat",), "runs/a", r"give data.val 'classes: \[cat\]'", "categories"),
        (("cat", "dog"), "runs/a", r"give data.val 'classes: \[cat, dog\]'", "categories"),
        (("dog", "Cat"), "runs/a", "correct the names in one of the files", "categories"),
        (("dog", "cow"), "runs/a", r"add 'cow' .*; then give data.val 'classes: \[dog, cow\]'", "or give both"),
    ],
)
def test_the_way_out_of_other_classes_is_one_that_can_be_gone(
    tiny_images: type, model: tuple[str, ...], source: str, advice: str, unfit: str
) -> None:
    dataset = tiny_images()
    dataset.classes = ("dog", "cat")
    with pytest.raises(DataError, match=advice) as raised:
        check_classes(model, dataset, source, "data.val")
    assert unfit not in str(raised.value)


def test_names_spelled_alike_are_paired_once_each() -> None:
    known = ["traffic light", "cat", "Wolf"]
    assert spelled_alike(["traffic-light", "CAT", "Cat", "zebra"], known) == [
        ("traffic-light", "traffic light"),
        ("CAT", "cat"),
    ]
