"""The cache changes nothing but the time: the same batches, each image loaded once, within its memory."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import pytest
import torch

from toolbox.data import cache as cache_module
from toolbox.data.cache import SampleCache, needed_bytes, plan_cache
from toolbox.data.interfaces import Sample
from toolbox.data.loader import training_loader
from toolbox.data.shapes import Shapes
from toolbox.data.transforms import HorizontalFlip
from toolbox.errors import DataError
from toolbox.structures import Batch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the cache is shared by a file descriptor")
CONTEXTS = [name for name in ("fork", "forkserver") if name in multiprocessing.get_all_start_methods()]


class Counted(Shapes):
    """Shapes that leave a byte in a file for each image that is painted."""

    def __init__(self, file: Path) -> None:
        super().__init__(length=8, height=48, width=40, keypoints=True)
        self.file = file
        file.touch()

    def load(self, index: int) -> Sample:
        with self.file.open("ab") as file:
            file.write(b".")
        return super().load(index)

    @property
    def loads(self) -> int:
        return self.file.stat().st_size


def batches(dataset: Shapes, *, cache: int = 0, workers: int = 0, context: str | None = None) -> list[Batch]:
    loader = training_loader(
        dataset, resize=None, transforms=[HorizontalFlip()], batch=4, seed=1, steps=8, workers=workers, cache=cache
    )
    if context is not None:
        loader._loader.multiprocessing_context = context
    return list(loader)


def assert_same(ours: list[Batch], others: list[Batch]) -> None:
    for one, other in zip(ours, others, strict=True):
        assert one.image_ids == other.image_ids
        assert all(torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True))
        for name in ("boxes", "labels", "valid", "crowd", "area", "keypoints"):
            assert torch.equal(getattr(one.targets, name), getattr(other.targets, name))
        for mine, theirs in zip(one.targets.masks.images, other.targets.masks.images, strict=True):
            assert [mask.to_rle(48, 40) for mask in mine] == [mask.to_rle(48, 40) for mask in theirs]


def test_batches_are_the_same_bits_and_each_image_is_loaded_once(tmp_path: Path) -> None:
    plain, kept = Counted(tmp_path / "plain"), Counted(tmp_path / "kept")
    assert_same(batches(kept, cache=10**6), batches(plain))
    assert (kept.loads, plain.loads) == (8, 32)


@pytest.mark.parametrize("context", CONTEXTS)
def test_workers_share_it(tmp_path: Path, context: str) -> None:
    plain, kept = Counted(tmp_path / "plain"), Counted(tmp_path / "kept")
    assert_same(batches(kept, cache=10**6, workers=2, context=context), batches(plain))
    assert kept.loads <= 16  # two workers may load an image at the same time; without sharing and keeping it is 32


def test_what_does_not_fit_is_loaded_each_time(tmp_path: Path) -> None:
    dataset = Counted(tmp_path / "loads")
    room = 48 * 40 * 3 * 3 + 4000  # for three images with their objects
    assert_same(batches(dataset, cache=room), batches(Shapes(length=8, height=48, width=40, keypoints=True)))
    assert 8 < dataset.loads < 32


def test_memory_is_bounded_and_what_is_read_is_a_copy() -> None:
    dataset = Shapes(length=8, height=48, width=40)
    kept = SampleCache(8, 20_000, 1)
    for index in range(8):
        kept.put(index, dataset.load(index))
    assert 1 <= kept.kept <= 3
    assert kept.get(7) is None
    first = kept.get(0)
    assert first is not None
    first.image[:] = 0
    assert (kept.get(0).image == dataset.load(0).image).all()


def test_it_is_refused_where_memory_is_short(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    dataset = Shapes(length=1000, height=100, width=100)
    assert needed_bytes(dataset) == 1000 * (100 * 100 * 3 + 2048)
    monkeypatch.setattr(cache_module, "free_memory", lambda: 20_000_000)
    with pytest.raises(DataError, match=r"hold 0\.0 GB of the 0\.0 GB .* set data\.cache_gb to at most 0\.0"):
        plan_cache(dataset, None)
    with caplog.at_level("INFO", logger="toolbox"):
        assert plan_cache(dataset, 0.01) == 10_000_000
    assert "about 31 % of the decoded images of data.train" in caplog.text
    monkeypatch.setattr(cache_module, "free_memory", lambda: 20_000_000_000)
    monkeypatch.setattr(cache_module, "needed_bytes", lambda _: 8_000_000_000)
    assert plan_cache(dataset, None, processes=2) == 8_000_000_000
    said = r"hold 8\.0 GB in each of 4 processes of the 8\.0 GB .* 20\.0 GB of memory are free; .* at most 4\.0,"
    with pytest.raises(DataError, match=said):
        plan_cache(dataset, None, processes=4)
