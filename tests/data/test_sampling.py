"""How often images come: repeat factors by hand and by the paper's formula, and shares of empty images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox.data.batching import global_batches
from toolbox.data.counts import labels_by_image
from toolbox.data.loader import training_loader
from toolbox.data.sampling import ImageSampling, RepeatFactors
from toolbox.data.shapes import Shapes
from toolbox.data.transforms import ScaleJitter
from toolbox.errors import DataError


def sampling(classes: Sequence[Sequence[int]], count: int = 3, **settings: Any) -> ImageSampling:
    return ImageSampling([np.array(labels, dtype=np.int64) for labels in classes], count, **settings)


def by_the_formula(images: Sequence[Sequence[int]], threshold: float) -> list[float]:
    """Section 4.2 of LVIS, category by category and image by image."""
    seen: Counter[int] = Counter()
    for image in images:
        seen.update(set(image))
    factors = []
    for image in images:
        factor = 1.0
        for category in image:
            factor = max(factor, math.sqrt(threshold / (seen[category] / len(images))))
        factors.append(factor)
    return factors


def test_an_image_has_the_factor_of_its_rarest_class() -> None:
    # Class 0 in all 16 images, 1 in four of them (f = 1/4), 2 in one (f = 1/16): sqrt(1 / f) is 1, 2 and 4.
    images = [[0, 1, 2], [0, 1, 1, 1], [0, 1], [0, 1]] + [[0]] * 12
    made = sampling(images, repeat=RepeatFactors(threshold=1.0))
    assert made.class_factors.tolist() == [1, 2, 4]
    assert made.factors.tolist() == [4, 2, 2, 2] + [1] * 12
    assert made.images_per_epoch == 22
    assert made.counts(0).tolist() == made.counts(7).tolist() == [4, 2, 2, 2] + [1] * 12


@given(
    images=st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=20),
    threshold=st.floats(0.001, 1.0),
)
def test_factors_are_those_of_the_papers_formula(images: list[list[int]], threshold: float) -> None:
    made = sampling(images, 5, repeat=RepeatFactors(threshold=threshold))
    assert made.factors.tolist() == pytest.approx(by_the_formula(images, threshold))


def test_parts_of_a_repeat_are_drawn_anew_each_epoch() -> None:
    images = [[0]] + [[1]] * 9  # class 0: f = 0.1, factor sqrt(0.5 / 0.1) = 2.236
    made = sampling(images, repeat=RepeatFactors(threshold=0.5), seed=3)
    drawn = [int(made.counts(epoch)[0]) for epoch in range(2000)]
    assert set(drawn) == {2, 3}
    assert np.mean(drawn) == pytest.approx(math.sqrt(5), abs=4 * math.sqrt(0.236 * 0.764 / 2000))
    assert all((made.counts(epoch)[1:] == 1).all() for epoch in range(5))


def test_what_is_drawn_depends_on_seed_and_epoch_alone() -> None:
    images = [[index % 7] for index in range(70)]
    settings = {"repeat": RepeatFactors(threshold=0.3), "negatives": None}
    first, again, other = (sampling(images, 7, seed=seed, **settings) for seed in (1, 1, 2))
    again.counts(0)
    assert first.counts(5).tolist() == again.counts(5).tolist()
    assert first.counts(5).tolist() != other.counts(5).tolist()
    assert first.counts(5).tolist() != first.counts(6).tolist()


@pytest.mark.parametrize(("share", "empty"), [(0.2, 5), (0.5, 20), (0.9, 180), (0.0, 0)])
def test_empty_images_are_the_share_that_was_asked_for(share: float, empty: int) -> None:
    images: list[list[int]] = [[0]] * 20 + [[]] * 8
    made = sampling(images, negatives=share)
    assert made.empty_share == pytest.approx(share)
    for epoch in range(4):
        counts = made.counts(epoch)
        assert counts[:20].tolist() == [1] * 20
        assert counts[20:].sum() == empty
        assert counts[20:].min() >= empty // 8


def test_empty_images_take_turns() -> None:
    made = sampling([[0]] * 9 + [[]] * 10, negatives=0.25)  # 3 of the 10 an epoch: 9 · 0.25 / 0.75
    shown = sum(made.counts(epoch)[9:] for epoch in range(10))
    assert shown.tolist() == [3] * 10
    first = [tuple(made.counts(epoch)[9:]) for epoch in range(3)]
    assert len(set(first)) == 3
    assert np.sum(first, axis=0).max() == 1


def test_repeats_of_rare_classes_count_in_the_share() -> None:
    images = [[0]] * 4 + [[1]] * 12 + [[]] * 16  # f of class 0 is 1/8, its factor sqrt(0.5 · 8) = 2
    made = sampling(images, 2, repeat=RepeatFactors(threshold=0.5), negatives=0.5)
    assert made.factors[:16].sum() == pytest.approx(4 * 2 + 12 * math.sqrt(0.5 / (12 / 32)))
    assert made.empty_share == pytest.approx(0.5, abs=0.02)


def test_by_default_empty_images_come_once_an_epoch() -> None:
    made = sampling([[0], [], [0], []], repeat=RepeatFactors(threshold=0.1))
    assert made.counts(0).tolist() == [1, 1, 1, 1]


def test_batches_show_each_image_as_often_as_an_epoch_says() -> None:
    images = [[0]] * 2 + [[1]] * 15 + [[]] * 6
    made = sampling(images, 2, repeat=RepeatFactors(threshold=0.9), negatives=0.3, seed=4)
    upright = np.arange(23) % 3 == 0
    batches = list(islice(global_batches(upright, 4, 4, made.counts), 60))
    keys = [key for batch in batches for key in batch]
    assert all(len(batch) == 4 for batch in batches)
    assert len(set(keys)) == len(keys)
    for epoch in range(4):
        shown = Counter(key.image for key in keys if key.epoch == epoch)
        counts = made.counts(epoch)
        assert [shown[index] for index in range(23)] == counts.tolist()
        assert {key.repeat for key in keys if key.epoch == epoch and key.image == 0} == set(range(counts[0]))
        whole = np.floor(made.factors).astype(int)
        assert (counts >= whole).all()


class Labelled(Shapes):
    """Painted images whose classes are known."""

    def labels(self, index: int) -> np.ndarray:
        return self.load(index).labels


def repeated(**settings: Any) -> Any:
    dataset = Labelled(length=6, height=40, width=40, objects=(0, 2), seed=1)
    settings = {"batch": 4, "steps": 8, "seed": 2, **settings}
    made = ImageSampling(labels_by_image(dataset), 3, repeat=RepeatFactors(threshold=1.0), negatives=0.2, seed=2)
    return training_loader(
        dataset, resize=None, transforms=[ScaleJitter(height=32, width=32)], sampling=made, **settings
    )


def test_restarts_and_ranks_see_the_same_repeats() -> None:
    whole = [batch.image_ids for batch in repeated()]
    assert [batch.image_ids for batch in repeated(start_step=5)] == whole[5:]
    left, right = ([batch.image_ids for batch in repeated(batch=4, rank=rank, world=2)] for rank in range(2))
    assert [a + b for a, b in zip(left, right, strict=True)] == whole


def test_repeats_of_an_image_are_augmented_apart() -> None:
    seen: dict[int, set[bytes]] = {}
    shown: Counter[int] = Counter()
    for batch in repeated(steps=3):
        for image_id, image in zip(batch.image_ids, batch.images, strict=True):
            seen.setdefault(image_id, set()).add(image.numpy().tobytes())
            shown[image_id] += 1
    assert max(shown.values()) > 1
    assert {image_id: len(pixels) for image_id, pixels in seen.items()} == dict(shown)


def test_a_data_set_without_an_index_says_what_it_lacks() -> None:
    with pytest.raises(DataError, match=r"Shapes does not say which classes .* method 'labels\(self, index\)'"):
        labels_by_image(Shapes(length=2))


def test_a_share_of_what_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.negatives is 0\.1, but no image of data\.train is without objects"):
        sampling([[0], [1]], negatives=0.1)
    with pytest.raises(DataError, match="data.train has none of these"):
        sampling([[], []], negatives=0.1)


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5])
def test_a_threshold_is_a_part(threshold: float) -> None:
    with pytest.raises(ValueError, match="^threshold is a part of the images"):
        RepeatFactors(threshold=threshold)
