"""What the log says of a data set; the whole of it is tested with the training loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from toolbox.data import CocoDataset
from toolbox.data.sampling import ImageSampling, RepeatFactors
from toolbox.engine.announce import contents, learning_rate, sampled
from toolbox.engine.train import train
from toolbox.sections import TrainConfig


def test_objects_are_counted_where_there_is_an_index(tmp_path: Path, tiny_images: type) -> None:
    common = {"image_id": 1, "category_id": 4, "area": 4, "iscrowd": 0}
    annotations = [{"id": i, "bbox": [i, 1, 2, 2], **common} for i in range(3)]
    images, categories = [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}], [{"id": 4, "name": "cat"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "a.json").write_text(json.dumps(content))
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    assert contents(CocoDataset(images=tmp_path, annotations=tmp_path / "a.json")) == "1 image, 3 objects, 1 class"
    assert contents(tiny_images()) == "12 images, 1 class"


def test_an_epoch_of_sampled_images_has_its_own_length() -> None:
    images = [np.array(labels, dtype=np.int64) for labels in [[0]] + [[1]] * 15 + [[]] * 9]
    repeat = RepeatFactors(threshold=0.64)  # class 0 is in 1 of 25: sqrt(0.64 · 25) = 4; class 1 in 15, sqrt(16 / 15)
    made = ImageSampling(images, 2, repeat=repeat, negatives=0.2)
    said = "an epoch is about 24 images, 2 rare classes repeated up to 4.0 times, 20% of them without objects"
    assert sampled(made) == said  # 4 + 15 · 1.0328 = 19.5, and a quarter of it without objects, 5


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr": 0.02}, "learning rate 0.02"),
        # Goyal et al.: a half of the batch takes a half of the rate.
        (
            {"lr": 0.02, "batch": 8, "scale_lr_from": 16},
            "learning rate 0.01 = 0.02 × 8 / 16 (lr × batch / scale_lr_from)",
        ),
        (
            {"lr": 0.02, "batch": 64, "scale_lr_from": 16, "layer_decay": 0.5},
            "learning rate 0.08 = 0.02 × 64 / 16 (lr × batch / scale_lr_from), "
            "down to 0.02 towards the image (layer_decay 0.5)",
        ),
        # The slowest group may be one that a pattern slows down, wherever it lies.
        (
            {"lr": 0.02, "layer_decay": 0.5, "lr_factors": {"box.head": 0.25}},
            "learning rate 0.02, down to 0.005 (layer_decay 0.5, lr_factors)",
        ),
    ],
)
def test_the_rate_is_said_with_what_it_is_made_of(settings: dict[str, Any], expected: str) -> None:
    groups = [{"lr_scale": 0.25}, {"lr_scale": 1.0}]
    assert learning_rate(TrainConfig(steps=1, **settings), groups) == expected


def test_a_scaled_rate_is_what_the_optimizer_gets_and_steps_stay(
    tiny_config: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "toolbox")
    result = train(tiny_config(steps=6, batch=2, lr=0.04, scale_lr_from=4, log_every=1), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert result["step"] == 6 and lines[0]["lr"] == pytest.approx(0.02)
    assert "steps are not scaled: as many images as 6 steps of 4 has train.steps=12" in caplog.text


def test_a_batch_at_its_reference_needs_no_remark(
    tiny_config: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "toolbox")
    train(tiny_config(steps=1, batch=4, scale_lr_from=4), tmp_path / "run")
    assert "steps are not scaled" not in caplog.text
