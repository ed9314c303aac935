"""The sweeps of configs/paper: every variant, in full and small, is a config whose stages fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toolbox.cli.trial import forward_problems
from toolbox.data.skeletons import COCO_SIGMAS
from toolbox.engine.optim import build_optimizer
from toolbox.engine.sweep import config_of, load_sweep
from toolbox.models.builder import check_wiring
from toolbox.structures import Skeleton
from toolbox.sweep_file import SweepText

FOLDER = Path(__file__).resolve().parents[1] / "configs/paper"
TABLES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PERSON = Skeleton(names=tuple(COCO_SIGMAS), sigmas=tuple(COCO_SIGMAS.values()))


def sweep(table: str, *, small: bool = False) -> SweepText:
    return load_sweep(FOLDER / f"{table}.yaml", small=small).text


def configs(table: str, *, small: bool) -> dict[str, Any]:
    """Variant → its config."""
    read = sweep(table, small=small)
    return {variant.name: config_of(variant, read.seeds[0]) for variant in read.trained}


def test_each_table_of_the_paper_that_compares_configurations_is_there() -> None:
    assert [f"table_{name}" for name in ("1", "2a", "2b", "2c", "2d", "2e", "3", "4", "5", "6", "8")] == TABLES


@pytest.mark.parametrize("small", [False, True], ids=["full", "small"])
@pytest.mark.parametrize("table", TABLES)
def test_every_variant_fits_together(table: str, small: bool) -> None:
    for name, config in configs(table, small=small).items():
        model = check_wiring(config, classes=[f"class {number}" for number in range(80)], skeleton=PERSON)
        build_optimizer(config, model)
        assert config.train.schedule.build(steps=config.train.steps)(0) >= 0
        height, width = config.data.resize.size(480, 640)
        assert forward_problems(config.model, model, height, width) == [], name


@pytest.mark.parametrize("table", TABLES)
def test_the_full_form_is_the_paper_s_recipe(table: str) -> None:
    steps, drops = {"table_8": (180000, (120000, 160000))}.get(table, (160000, (120000,)))
    if table in ("table_4", "table_5", "table_6"):  # section 5
        steps, drops = 90000, (60000, 80000)
    for name, config in configs(table, small=False).items():
        settings, schedule = config.train, config.train.schedule.build(steps=config.train.steps)
        if name == "+ train-time augmentation":  # appendix A
            steps, drops = 260000, (200000, 240000)
        assert (settings.steps, settings.batch, settings.lr) == (steps, 16, 0.02), name
        assert schedule.drops() == drops and schedule.gamma == 0.1
        assert (settings.optimizer["momentum"], settings.optimizer["weight_decay"]) == (0.9, 1e-4)
        assert config.data.resize.size(480, 640) == (800, 1067)
        on_regions = config.model["roi_stage"] is not None  # C4
        model = check_wiring(config, classes=["object"], skeleton=PERSON)
        assert model.box.sampler.size == (64 if on_regions else 512)
        assert model.rpn.test_counts.after_nms == (300 if on_regions else 1000)
        assert model.box.sampler.capacity == model.box.sampler.size // 4 and config.test.detections == 100


@pytest.mark.parametrize("table", TABLES)
def test_the_variants_of_a_small_form_differ_in_the_model_alone_and_so_see_the_same_batches(table: str) -> None:
    found = {name: config.to_dict() for name, config in configs(table, small=True).items()}
    found.pop("+ train-time augmentation", None)  # which is about the data
    data = [config["data"] for config in found.values()]
    train = [config["train"] for config in found.values()]
    assert all(each == data[0] for each in data) and all(each == train[0] for each in train)
    assert data[0]["train"]["type"] == "Shapes" and data[0]["train"]["seed"] != data[0]["val"]["seed"]
    assert len(sweep(table, small=True).seeds) >= 3


# What the paper says of its tables in words (sections 4.2, 4.3 and 5): a metric, two variants, by how many points the
# second is better.
GAINS = [
    ("table_2b", "AP", "softmax", "sigmoid", 5.5),
    ("table_2d", "mask AP", "RoIPool", "RoIAlign", 7.3),
    ("table_2d", "box AP", "RoIPool", "RoIAlign", 5.8),
    ("table_2e", "AP", "MLP", "FCN", 2.1),
    ("table_3", "AP", "Faster R-CNN with RoIAlign, R101-FPN", "Mask R-CNN, R101-FPN", 0.9),
    ("table_6", "AP", "RoIPool", "RoIAlign", 4.4),
    ("table_8", "mask AP", "+ updated baseline", "+ end-to-end training", 0.6),
    ("table_8", "box AP", "+ updated baseline", "+ end-to-end training", 1.2),
]


@pytest.mark.parametrize(("table", "metric", "lower", "higher", "gain"), GAINS)
def test_the_published_values_differ_by_what_the_paper_s_text_says(
    table: str, metric: str, lower: str, higher: str, gain: float
) -> None:
    values = {variant.name: variant.paper[metric] for variant in sweep(table).variants if metric in variant.paper}
    assert values[higher] - values[lower] == pytest.approx(gain)


def test_the_order_of_table_2c_is_that_alignment_matters_and_max_or_average_does_not() -> None:
    values = {variant.name: variant.paper["AP"] for variant in sweep("table_2c").variants}
    align = [value for name, value in values.items() if name.startswith("RoIAlign")]
    others = [value for name, value in values.items() if not name.startswith("RoIAlign")]
    assert min(align) - max(others) == pytest.approx(3.0) and max(align) - min(align) == pytest.approx(0.1)
