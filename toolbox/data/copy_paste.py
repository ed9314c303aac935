"""Copy-paste: objects of another image of the data set put over this one."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from toolbox.data.geometry import shown_on
from toolbox.data.interfaces import Layer, View
from toolbox.data.paste import taken
from toolbox.data.transforms import check_probability
from toolbox.errors import DataError
from toolbox.registry import TRANSFORMS


@TRANSFORMS.register
class CopyPaste:
    """Simple copy-paste (Ghiasi et al., arXiv:2012.07177): objects of another image, pasted over this one.

    The other image is drawn from the data set and goes through the transforms that stand before this one in the list,
    with draws of its own; so after ScaleJitter both are jittered independently. What stands after it sees the result.
    A number of the other's objects, from none to all, is drawn, then which: no crowds. They keep their place on the
    canvas and cover what is below: masks, boxes and areas shrink to what still shows, covered joints become hidden
    (visibility 1), and objects of which nothing shows are removed. It needs masks.

    Args:
        prob: of pasting anything.
        max_objects: most objects that are pasted.
        sigma: standard deviation, in pixels of the network's image, of the Gaussian that softens the pasted edges; 0
            for hard edges, which the paper found as good.
        min_left: an object below is removed once less than this part of its mask shows; 0 removes only what is hidden
            wholly, as the paper does.
    """

    needs: ClassVar[tuple[str, ...]] = ("masks",)

    def __init__(self, *, prob: float = 1.0, max_objects: int = 100, sigma: float = 0.0, min_left: float = 0.0) -> None:
        wrong = []
        if max_objects < 1:
            wrong.append(f"max_objects is 1 or more, got {max_objects}")
        if not 0 <= sigma <= 100:
            wrong.append(f"sigma is 0 (hard edges) to 100 pixels, got {sigma}")
        if not 0 <= min_left <= 1:
            wrong.append(f"min_left is a part of a mask, 0 to 1, got {min_left}")
        if wrong:
            raise ValueError("\n".join(wrong))
        self.prob = check_probability(prob)
        self.max_objects = max_objects
        self.sigma = sigma
        self.min_left = min_left

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        if rng.random() >= self.prob or view.another is None:
            return view
        other = view.another(rng).moved(np.eye(2, 3), view.height, view.width)
        sample = other.sample
        if sample is None or sample.masks is None:
            raise DataError(
                "CopyPaste needs masks, and the training images have boxes only; annotate their objects with "
                "'segmentation', or remove it from data.transforms"
            )
        objects = [int(index) for index in shown_on(other) if not sample.crowd[index]]
        count = int(rng.integers(min(len(objects), self.max_objects), endpoint=True))
        if count == 0:
            return view
        chosen = sorted(rng.choice(objects, count, replace=False).tolist())
        other = replace(other, sample=taken(sample, chosen), another=None)
        return view.pasted(Layer(other, sigma=self.sigma, min_left=self.min_left))
