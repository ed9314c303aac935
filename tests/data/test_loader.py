"""Loaders: the same batches for any number of workers, ranks and restarts."""

from __future__ import annotations

import multiprocessing
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from toolbox import plugins
from toolbox.data.interfaces import Sample
from toolbox.data.loader import evaluation_loader, training_loader
from toolbox.data.photometry import ColorJitter
from toolbox.data.resize import Resize
from toolbox.data.shapes import Shapes
from toolbox.data.source import collate
from toolbox.data.transforms import HorizontalFlip, RandomCrop, ScaleJitter
from toolbox.engine.distributed import ALONE
from toolbox.engine.job import Job
from toolbox.errors import DataError
from toolbox.registry import DATASETS, TRANSFORMS
from toolbox.sections import DataConfig
from toolbox.structures import Batch

RESIZE = Resize(short=[40, 48, 56], max=80)
AUGMENT = (ScaleJitter(height=48, width=48, min_scale=0.5, max_scale=1.5), HorizontalFlip(), ColorJitter())


def loader(dataset: Any = None, **settings: Any) -> Any:
    dataset = dataset or Shapes(length=10, height=40, width=48, keypoints=True)
    return training_loader(
        dataset, **{"resize": RESIZE, "transforms": AUGMENT, "batch": 4, "seed": 1, "steps": 6, **settings}
    )


def assert_equal(ours: Batch, other: Batch) -> None:
    assert ours.image_ids == other.image_ids
    assert ours.original_sizes == other.original_sizes
    assert all(torch.equal(a, b) for a, b in zip(ours.images, other.images, strict=True))
    for name in ("boxes", "labels", "valid", "crowd", "area", "keypoints"):
        assert torch.equal(getattr(ours.targets, name), getattr(other.targets, name))
    rois = torch.tensor([[i, 5.0, 5.0, 40.0, 40.0] for i in range(len(ours))])
    index = torch.zeros(len(ours), dtype=torch.int64)
    masks = [batch.targets.masks.rasterise(rois, index, (14, 14)) for batch in (ours, other)]
    assert torch.equal(*masks)


def test_workers_change_nothing() -> None:
    for alone, shared in zip(loader(), loader(workers=2), strict=True):
        assert_equal(alone, shared)


def test_a_restart_goes_on_where_the_run_was() -> None:
    whole = list(loader())
    rest = loader(start_step=4)
    assert len(whole) == 6
    assert len(rest) == 2
    for before, after in zip(whole[4:], rest, strict=True):
        assert_equal(before, after)


def test_ranks_are_slices_of_a_step() -> None:
    whole = list(loader(batch=4))
    halves = [list(loader(batch=4, rank=rank, world=2)) for rank in range(2)]
    for batch, left, right in zip(whole, *halves, strict=True):
        assert batch.image_ids == left.image_ids + right.image_ids
        assert all(torch.equal(a, b) for a, b in zip(batch.images, left.images + right.images, strict=True))


def test_ranks_take_the_same_micro_batches_in_turn() -> None:
    alone = list(loader(batch=8, micro_batch=2, steps=3, start_step=1))
    ranks = [list(loader(batch=8, micro_batch=2, steps=3, start_step=1, rank=rank, world=2)) for rank in range(2)]
    assert len(alone) == 8 and [len(rank) for rank in ranks] == [4, 4]
    for number, batch in enumerate(alone):
        assert_equal(batch, ranks[number % 2][number // 2])


def test_a_step_that_does_not_divide_among_the_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch \(8\) is not a multiple of micro_batch \(3\) times world \(2\)"):
        loader(batch=8, micro_batch=3, world=2)
    with pytest.raises(ValueError, match=r"batch \(1\) is not a multiple"):
        loader(batch=1, world=2)


def test_torchs_generator_is_not_touched() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for workers in (0, 1):
        list(islice(loader(workers=workers), 1))
        assert torch.equal(torch.get_rng_state(), state)


def test_epochs_augment_differently() -> None:
    dataset = Shapes(length=1, height=40, width=48)
    first, second = islice(loader(dataset, batch=1), 2)
    assert first.image_ids == second.image_ids
    assert not torch.equal(first.images[0], second.images[0])


def test_batches_hold_network_pixels_and_original_sizes() -> None:
    batch = next(iter(loader(transforms=(), resize=Resize(short=80, max=200))))
    assert [tuple(image.shape) for image in batch.images] == [(3, 80, 96)] * 4
    assert all(image.dtype == torch.uint8 for image in batch.images)
    assert batch.original_sizes == [(40, 48)] * 4
    truth = Shapes(length=10, height=40, width=48).load(batch.image_ids[0] - 1)
    assert torch.equal(batch.targets.boxes[0, : len(truth)], torch.from_numpy(truth.boxes) * 2)
    assert batch.targets.valid[0].sum() == len(truth)
    assert torch.allclose(batch.targets.area[0, : len(truth)], torch.from_numpy(truth.area) * 4)


def test_augmented_boxes_hold_their_masks_and_joints() -> None:
    """Augmented together: what is left of a mask lies in its box, and visible joints lie on or beside the mask."""
    for batch in loader(Shapes(length=8, height=64, width=64, keypoints=True, objects=(1, 3))):
        for row in range(len(batch)):
            height, width = batch.images[row].shape[1:]
            for column in range(int(batch.targets.valid[row].sum())):
                x1, y1, x2, y2 = batch.targets.boxes[row, column].tolist()
                bitmap = batch.targets.masks.images[row][column].bitmap(height, width)
                ys, xs = np.nonzero(bitmap)
                if len(xs):
                    assert x1 - 1 <= xs.min() and xs.max() + 1 <= x2 + 1
                    assert y1 - 1 <= ys.min() and ys.max() + 1 <= y2 + 1
                for x, y, visibility in batch.targets.keypoints[row, column].tolist():
                    if visibility == 2:
                        near = bitmap[max(0, int(y) - 4) : int(y) + 5, max(0, int(x) - 4) : int(x) + 5]
                        assert near.any()


def test_evaluation_sees_each_image_once_in_order_over_ranks_and_workers() -> None:
    dataset = Shapes(length=7, height=40, width=48)
    resize = Resize(short=40, max=80)
    whole = list(evaluation_loader(dataset, resize=resize, batch=3, workers=2))
    assert [batch.image_ids for batch in whole] == [[1, 2, 3], [4, 5, 6], [7]]
    assert torch.equal(whole[2].images[0], torch.from_numpy(dataset.load(6).image).permute(2, 0, 1))
    ranks = [evaluation_loader(dataset, resize=resize, batch=2, rank=rank, world=2) for rank in range(2)]
    assert [[batch.image_ids for batch in rank] for rank in ranks] == [[[1, 3], [5, 7]], [[2, 4], [6]]]
    assert [len(rank) for rank in ranks] == [2, 2]


def empty_sample(**changes: Any) -> Sample:
    settings: dict[str, Any] = {
        "image": np.zeros((8, 10, 3), np.uint8),
        "boxes": np.zeros((0, 4), np.float32),
        "labels": np.zeros(0, np.int64),
        "crowd": np.zeros(0, bool),
        "area": np.zeros(0, np.float32),
        "masks": [],
        "keypoints": np.zeros((0, 5, 3), np.float32),
    }
    return Sample(**{**settings, **changes})


def test_images_without_objects_make_a_batch_without_objects() -> None:
    batch = collate([empty_sample(), empty_sample(image_id=4)])
    assert batch.image_ids == [0, 4]
    assert batch.original_sizes == [(8, 10)] * 2
    assert batch.targets.boxes.shape == (2, 0, 4)
    assert batch.targets.keypoints.shape == (2, 0, 5, 3)
    assert len(batch.targets.masks) == 2
    targets = batch.targets.masks.rasterise(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), (7, 7))
    assert targets.shape == (0, 7, 7)


def test_a_data_set_of_boxes_has_targets_of_boxes() -> None:
    batch = collate([empty_sample(masks=None, keypoints=None)])
    assert batch.targets.masks is None
    assert batch.targets.keypoints is None


def test_images_of_different_counts_are_padded() -> None:
    one = empty_sample(
        boxes=np.ones((1, 4), np.float32),
        labels=np.array([3]),
        crowd=np.array([True]),
        area=np.ones(1, np.float32),
        masks=None,
        keypoints=None,
    )
    targets = collate([empty_sample(masks=None, keypoints=None), one]).targets
    assert targets.valid.tolist() == [[False], [True]]
    assert targets.labels.tolist() == [[0], [3]]
    assert targets.crowd.tolist() == [[False], [True]]


class _Broken(Shapes):
    def load(self, index: int) -> Sample:
        raise DataError("image.png: cut short")


@pytest.mark.parametrize("workers", [0, 1])
def test_wrong_input_in_a_worker_is_one_line_and_no_traceback(workers: int) -> None:
    with pytest.raises(DataError) as raised:
        list(loader(_Broken(length=4), workers=workers))
    assert str(raised.value) == "image.png: cut short"


def test_an_endless_loader_has_no_length() -> None:
    with pytest.raises(TypeError, match="endless"):
        len(loader(steps=None))


PLUGIN = """
import numpy as np
from toolbox.data import Sample
from toolbox.registry import DATASETS, TRANSFORMS

@DATASETS.register
class FromAFile:
    classes, category_ids, skeleton = ("dot",), (1,), None
    def __len__(self):
        return 2
    def size(self, index):
        return 8, 8
    def load(self, index):
        image = np.full((8, 8, 3), index, np.uint8)
        return Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0))
    def ground_truth(self):
        return {}

@TRANSFORMS.register
class AlsoFromIt:
    def __call__(self, view, rng):
        return view
"""


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="this system has no forkserver")
def test_components_of_a_plugin_file_reach_workers_that_start_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "loaded_plugins", {})
    for registry in (DATASETS, TRANSFORMS):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    (tmp_path / "gone.py").write_text("")
    plugins.load_plugin("gone.py", tmp_path)  # and no longer needed
    (tmp_path / "gone.py").unlink()
    (tmp_path / "dots.py").write_text(PLUGIN)
    plugins.load_plugin("dots.py", tmp_path)
    dataset, transform = DATASETS.get("FromAFile")(), TRANSFORMS.get("AlsoFromIt")()
    loader = training_loader(dataset, resize=None, transforms=(transform,), batch=2, seed=0, steps=1, workers=1)
    loader._loader.multiprocessing_context = "forkserver"
    (batch,) = loader
    assert sorted(int(image.max()) for image in batch.images) == [0, 1]


def test_a_runs_min_visible_reaches_its_batches() -> None:
    def objects(min_visible: float) -> int:
        data = DataConfig(resize=None, min_visible=min_visible, workers=0)
        data.transforms.append(SimpleNamespace(build=lambda: RandomCrop(height=24, width=24)))
        settings = SimpleNamespace(batch=1, seed=0, steps=4)
        job = SimpleNamespace(
            config=SimpleNamespace(data=data, train=settings),
            train_set=Shapes(length=4, height=48, width=48, objects=(4, 6)),
            micro_batch=1,
            ranks=ALONE,
            device=torch.device("cpu"),
        )
        return sum(int(batch.targets.valid.sum()) for batch in Job.batches(job, 0))

    assert objects(1.0) < objects(0.0)
