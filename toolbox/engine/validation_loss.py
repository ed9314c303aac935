"""The losses on images that are not trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import zip_longest

import torch
from torch import nn

from toolbox.data.interfaces import Dataset
from toolbox.data.loader import evaluation_loader
from toolbox.data.resize import Resize
from toolbox.engine.checkpoint import seed_step
from toolbox.engine.distributed import ALONE, Ranks
from toolbox.engine.progress import OnProgress, Progress
from toolbox.errors import ToolboxError


def validation_losses(
    detector: nn.Module,
    dataset: Dataset,
    *,
    resize: Resize | None,
    device: torch.device,
    seed: int,
    workers: int = 0,
    ranks: Ranks = ALONE,
    on_progress: OnProgress | None = None,
) -> dict[str, float]:
    """Mean of each loss over the images of a data set, as evaluation sees them.

    Images are not augmented, and each is a batch of its own, so that the mean weighs images and not objects. Norms and
    dropout are as in prediction and stay as they are. Regions are sampled as in training, from a seed of the image's
    own, so that one evaluation differs from the next by the weights alone. Several processes take turns by image, and
    all of them get the same bits that one alone would.

    Args:
        detector: `forward(images, targets)` gives its losses; it is left in the mode it was in.
        dataset: images and objects.
        resize: how images are brought to network size; None keeps their own.
        device: where to run.
        seed: of sampling.
        workers: loader processes.
        ranks: this process among those that share the images.
        on_progress: called after every image.

    Raises:
        ToolboxError: the data set is empty, or the detector gives no losses in evaluation mode.
    """
    loader = evaluation_loader(
        dataset,
        resize=resize,
        workers=workers,
        rank=ranks.rank,
        world=ranks.size,
        pin_memory=device.type == "cuda",
    )
    rows: list[dict[str, float]] = []  # by image
    training = detector.training
    detector.to(device).eval()
    try:
        with torch.no_grad():
            for turn, batch in enumerate(loader):
                index = turn * ranks.size + ranks.rank
                seed_step(seed, index)
                losses = detector(batch.images, batch.targets)
                if not isinstance(losses, Mapping):
                    raise ToolboxError(
                        f"{type(detector).__name__} gives no losses in evaluation mode; set train.validation_loss=false"
                    )
                # One copy for all of them: each would wait for the device.
                values = torch.stack([loss.float() for loss in losses.values()]).tolist()
                rows.append(dict(zip(losses, values, strict=True)))
                if on_progress is not None:
                    on_progress(Progress("eval", min(index + 1, len(dataset)), len(dataset)))
    finally:
        detector.train(training)
    if not len(dataset):
        raise ToolboxError("data.val has no images to compute losses on")
    sums: Counter[str] = Counter()
    for by_turn in zip_longest(*ranks.gather(rows), fillvalue=None):
        for row in filter(None, by_turn):
            sums.update(row)
    return ranks.from_first({name: value / len(dataset) for name, value in sums.items()})
