"""The pipeline: read `RCNN.forward` and `RCNN.predict` top to bottom.

Shapes: images (N, 3, H, W); maps (N, C, H / stride, W / stride); proposals (N, R, 4); samples (N, S, 4); detections
(N, D, 4). Extractors and heads see one list of regions (R, …) over the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolbox.models.box_branch import BoxBranch
from toolbox.models.boxes import to_padded, to_regions
from toolbox.models.instance_branch import InstanceBranch
from toolbox.models.interfaces import Backbone, Neck, RoIStage
from toolbox.models.postprocess import to_original
from toolbox.models.preprocess import Preprocess
from toolbox.models.rpn import RPN
from toolbox.registry import DETECTORS
from toolbox.structures import Detections, Regions, Targets


@DETECTORS.register
class RCNN(nn.Module):
    """Faster R-CNN with any number of instance branches: *Mask R-CNN*, arXiv:1703.06870.

    Args:
        backbone: images to maps.
        rpn: maps to proposals.
        box: proposals to detections.
        neck: maps to maps; None to use the backbone's.
        instance: tasks on detected objects by name, e.g. `mask`; empty for Faster R-CNN. One that is None is left out,
            so that `model.instance.mask=null` is Faster R-CNN too.
        roi_stage: a backbone stage run on the box branch's pooled regions (C4 models), shared by the instance branches
            without an extractor.
        pad_to: height and width of a batch are padded to a multiple of this; the coarsest stride up to 32 if None.
            Detectron2 pads for pyramids only (1 for C4 and dilated C5).
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        rpn: RPN,
        box: BoxBranch,
        neck: Neck | None = None,
        instance: Mapping[str, InstanceBranch | None] | None = None,
        roi_stage: RoIStage | None = None,
        pad_to: int | None = None,
    ) -> None:
        super().__init__()
        if pad_to is not None and pad_to < 1:
            raise ValueError(f"pad_to is 1 pixel or more, got {pad_to}")
        self.backbone = backbone
        self.neck = neck
        self.rpn = rpn
        self.roi_stage = roi_stage
        self.box = box
        kept = {name: branch for name, branch in (instance or {}).items() if branch is not None}
        self.instance: Mapping[str, InstanceBranch] = nn.ModuleDict(kept)  # type: ignore[assignment]
        maps = backbone.out_features if neck is None else neck.out_features
        deepest = max(spec.stride for spec in (*backbone.out_features.values(), *maps.values()) if spec.stride <= 32)
        self.preprocess = Preprocess(backbone.pixels, pad_to or deepest)

    def forward(self, images: Sequence[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Losses of a batch, each a weighted scalar: the one training entry.

        Args:
            images: N tensors (3, h, w) uint8 at network size.
            targets: their objects, in the same pixels.
        """
        batch = self.preprocess(images)
        targets = targets.to(batch.tensor.device, non_blocking=True)
        features = self.extract(batch.tensor)

        anchors = self.rpn(features, batch)
        losses = self.rpn.loss(anchors, targets)
        proposals = self.rpn.propose(anchors, batch, self.rpn.train_counts)

        samples = self.box.sample(proposals, targets)
        regions = to_regions(samples.boxes, samples.valid, labels=samples.labels, matched=samples.matched)
        pooled = self.pool(features, regions)
        losses |= self.box.loss(self.box.head(pooled), regions, targets)

        block = samples.foreground_block()
        objects = to_regions(block.boxes, block.valid, labels=block.labels, matched=block.matched)
        for name, branch in self.instance.items():
            if branch.extractor is not None:
                own = branch.extractor(features, objects.rois)
            else:
                image, row = objects.rows // block.boxes.shape[1], objects.rows % block.boxes.shape[1]
                own = pooled[torch.searchsorted(regions.rows, image * samples.boxes.shape[1] + row)]
            with _noted(name, branch, "training"):
                named = branch.head.loss(branch.head(own), objects, targets)
            for key, loss in _checked(named, name, branch).items():
                losses[name if key == name else f"{name}_{key}"] = loss
        return losses

    @torch.no_grad()
    def predict(
        self,
        images: Sequence[Tensor],
        original_sizes: Sequence[tuple[int, int]] | None = None,
        image_ids: Sequence[int] = (),
    ) -> list[Detections]:
        """Detections of each image in the pixels of the original image. The model should be in `eval()` mode.

        Args:
            images: N tensors (3, h, w) uint8 at network size.
            original_sizes: height and width before resizing; those of `images` if None.
            image_ids: passed through.
        """
        batch = self.preprocess(images, original_sizes, image_ids)
        features = self.extract(batch.tensor)
        proposals = self.rpn.propose(self.rpn(features, batch), batch, self.rpn.test_counts)

        regions = to_regions(proposals.boxes, proposals.valid)
        prediction = self.box.head(self.pool(features, regions))
        detections = self.box.predict(prediction, regions, proposals, batch)

        objects = to_regions(detections.boxes, detections.valid, labels=detections.labels)
        for name, branch in self.instance.items():
            own = self.pool(features, objects) if branch.extractor is None else branch.extractor(features, objects.rois)
            with _noted(name, branch, "prediction"):
                values = branch.head.predict(branch.head(own), objects.labels)
            detections.instance[name] = to_padded(values, objects, detections.valid.shape)
        return to_original(detections, batch, {name: branch.head for name, branch in self.instance.items()})

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) → the maps that everything after reads."""
        maps = self.backbone(images)
        return maps if self.neck is None else self.neck(maps)

    def pool(self, features: Mapping[str, Tensor], regions: Regions) -> Tensor:
        """Regions → (R, C, P, P), through the RoI stage if there is one."""
        pooled = self.box.extractor(features, regions.rois)
        return pooled if self.roi_stage is None else self.roi_stage(pooled)


@contextmanager
def _noted(name: str, branch: InstanceBranch, doing: str) -> Iterator[None]:
    """An error inside a head says which one: many of a head's errors are torch's, of shapes alone."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in {doing}, model.instance.{name}: {type(branch.head).__name__}")
        raise


def _checked(losses: object, name: str, branch: InstanceBranch) -> Mapping[str, Tensor]:
    if not isinstance(losses, Mapping):
        head, got = type(branch.head).__name__, type(losses).__name__
        raise TypeError(
            f"model.instance.{name}: {head}.loss returns {got}, not a mapping of named losses; "
            f"return a dict of scalars, e.g. {{'{name}': loss}}"
        )
    return losses
