"""A model that cannot learn four images by heart has a bug that no other test sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import toolbox
from toolbox.engine import train

QUICKSTART = Path(__file__).resolve().parents[1] / "configs/quickstart.yaml"


@pytest.mark.slow
def test_a_few_images_are_learned_by_heart(tmp_path: Path) -> None:
    images = "{type: Shapes, length: 2, height: 96, width: 96, objects: [2, 4], difficulty: easy, seed: 5}"
    overrides = [
        f"data.train={images}",
        f"data.val={images}",
        "data.resize={short: 96, max: 96}",
        "data.transforms=[]",
        "data.workers=0",
        "train.steps=300",
        "train.batch=2",
        "train.lr=0.002",
        "train.clip_norm=5",
        "train.schedule={type: Cosine, warmup_steps: 10}",
    ]
    train(toolbox.load_config(QUICKSTART, overrides), tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert scores["bbox"]["AP"] > 0.9
    assert scores["segm"]["AP"] > 0.85  # edges: 0.88 to 0.91 over changes of the last bit
