"""How often each training image comes in an epoch: repeat factors for rare classes, and a share of empty images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from toolbox.errors import DataError

_ROUNDING, _EMPTY = range(2)  # streams of random numbers of an epoch, apart from those of its order and its images


@dataclass(frozen=True)
class RepeatFactors:
    """Show images of rare classes more often (Gupta et al., LVIS, arXiv:1908.03195, section 4.2).

    A class that stands in a part f of the images has the factor max(1, sqrt(threshold / f)), and an image that of its
    rarest class.

    Attributes:
        threshold: the part of the images below which a class is rare: 0.001 for the 1203 classes of LVIS; sets of few
            images want more, as 0.1.
    """

    _: KW_ONLY
    threshold: float

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is a part of the images, more than 0 and at most 1, got {self.threshold}")

    def of_classes(self, frequency: np.ndarray) -> np.ndarray:
        """Factors (K,) of classes that stand in a part (K,) of the images; 1 for one that stands in none."""
        seen = frequency > 0
        return np.maximum(1.0, np.sqrt(np.divide(self.threshold, frequency, out=np.ones(len(seen)), where=seen)))


class ImageSampling:
    """How often each image comes in each epoch, on average and in one of them.

    An image with an object comes floor(factor) times, and once more with the probability of the rest. Empty images are
    dealt from a shuffled deck that goes on from epoch to epoch, so each has its turn.

    Args:
        classes: per image, the labels of its objects; an image with none is empty.
        count: K, classes of the data set.
        repeat: factors for rare classes; None for 1.
        negatives: the part of an epoch's images that are empty; None leaves each once an epoch.
        seed: of what is drawn.

    Raises:
        DataError: empty images are asked for and there are none, or all images are empty.
    """

    def __init__(
        self,
        classes: Sequence[np.ndarray],
        count: int,
        *,
        repeat: RepeatFactors | None = None,
        negatives: float | None = None,
        seed: int = 0,
    ) -> None:
        self._seed = seed
        present = [np.unique(labels) for labels in classes]
        self._empty = np.flatnonzero([len(labels) == 0 for labels in present])
        frequency = np.bincount(np.concatenate([np.zeros(0, np.int64), *present]), minlength=count) / len(present)
        of_classes = np.ones(count) if repeat is None else repeat.of_classes(frequency)
        self.class_factors: np.ndarray = of_classes
        self.factors: np.ndarray = np.array([of_classes[labels].max(initial=1.0) for labels in present])
        self._deal: int | None = None
        if negatives is not None:
            self._deal = self._empty_per_epoch(negatives)
            self.factors[self._empty] = self._deal / max(1, len(self._empty))

    def _empty_per_epoch(self, share: float) -> int:
        """So many that they are `share` of an epoch of average length."""
        filled = np.delete(self.factors, self._empty).sum()
        if share > 0 and not len(self._empty):
            raise DataError(
                f"data.negatives is {share:g}, but no image of data.train is without objects; set data.negatives: null"
                ", or 'skip_empty: false' where the data set leaves such images out"
            )
        if not filled:
            raise DataError("data.negatives is a share beside images with objects, and data.train has none of these")
        return round(filled * share / (1 - share))

    @property
    def images_per_epoch(self) -> float:
        """Images of an epoch on average, repeats counted."""
        return float(self.factors.sum())

    @property
    def empty_share(self) -> float:
        """The part of them that have no object."""
        return float(self.factors[self._empty].sum()) / self.images_per_epoch

    def counts(self, epoch: int) -> np.ndarray:
        """How often each image comes in an epoch: (I,) int64; a function of (seed, epoch)."""
        whole = np.floor(self.factors)
        drawn = self._generator(epoch, _ROUNDING).random(len(whole)) < self.factors - whole
        counts = (whole + drawn).astype(np.int64)
        if self._deal is not None and len(self._empty):
            times, rest = divmod(self._deal, len(self._empty))
            counts[self._empty] = times
            np.add.at(counts, self._dealt(epoch, rest), 1)
        return counts

    def _dealt(self, epoch: int, hand: int) -> np.ndarray:
        """The next empty images (hand,) from the deck; where it runs out, a new one is shuffled and dealt from.

        An image may so come twice, and none is more than a deal ahead of another.
        """
        size, start = len(self._empty), epoch * hand
        first, last = start // size, (start + hand - 1) // size
        cards = [self._deck(number) for number in range(first, last + 1)]
        return np.concatenate([np.zeros(0, np.int64), *cards])[start - first * size :][:hand]

    def _deck(self, number: int) -> np.ndarray:
        return self._generator(number, _EMPTY).permutation(self._empty)

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self._seed, epoch], spawn_key=(stream,)))
