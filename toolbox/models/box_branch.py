"""The box branch: pooled regions to classes and boxes (Fast R-CNN, arXiv:1504.08083)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from toolbox.models.boxes import BoxCoder, Matcher, RandomSampler, batched_nms, clip_boxes, to_padded
from toolbox.models.interfaces import BoxHead, BoxPrediction, Loss, RoIExtractor, Sampler
from toolbox.models.losses import CrossEntropy, SmoothL1
from toolbox.structures import DetectionBatch, ImageBatch, Proposals, Regions, RoISamples, Targets


@dataclass(frozen=True)
class TestSettings:
    """Which detections come out.

    Args:
        score_threshold: least score.
        nms: overlap above which the worse of two detections of a class goes.
        detections: most per image.
        min_size: a detection with a side below this many network pixels goes; one of no length goes in any case.
    """

    __test__: ClassVar[bool] = False  # the name starts with Test, but pytest should not collect it

    score_threshold: float = 0.05
    nms: float = 0.5
    detections: int = 100
    min_size: float = 0.0

    def __post_init__(self) -> None:
        wrong = [
            f"{name} lies between 0 and 1, got {getattr(self, name)}"
            for name in ("score_threshold", "nms")
            if not 0 <= getattr(self, name) <= 1
        ]
        if self.detections < 1:
            wrong.append(f"detections is 1 or more, got {self.detections}")
        if self.min_size < 0:
            wrong.append(f"min_size is 0 pixels or more, got {self.min_size}")
        if wrong:
            raise ValueError("\n".join(wrong))


class BoxBranch(nn.Module):
    """Samples proposals to train on, and turns predictions into detections.

    Args:
        num_classes: K, without background.
        test: which detections come out.
        extractor: pools the regions.
        head: predicts classes and deltas.
        coder: how deltas describe boxes.
        matcher: which proposals are foreground.
        sampler: which proposals to train on; 512 per image, a quarter of them foreground if None.
        class_loss: averaged over the sample; cross-entropy if None.
        box_loss: over the foreground, averaged over the sample; smooth L1 with beta 1/9 if None.
        add_ground_truth: train on the objects' own boxes too.
    """

    wired: ClassVar[tuple[str, ...]] = ("num_classes", "test")

    def __init__(
        self,
        num_classes: int,
        test: TestSettings,
        *,
        extractor: RoIExtractor,
        head: BoxHead,
        coder: BoxCoder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0)),
        matcher: Matcher = Matcher(0.5, 0.5),
        sampler: Sampler | None = None,
        class_loss: Loss | None = None,
        box_loss: Loss | None = None,
        add_ground_truth: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.test = test
        self.extractor = extractor
        self.head = head
        self.coder = coder
        self.matcher = matcher
        self.sampler = sampler or RandomSampler(size=512, positive_fraction=0.25)
        self.class_loss = class_loss or CrossEntropy()
        self.box_loss = box_loss or SmoothL1(beta=1 / 9)
        self.add_ground_truth = add_ground_truth

    @torch.no_grad()
    def sample(self, proposals: Proposals, targets: Targets) -> RoISamples:
        """Match proposals to objects and draw the rows to train on."""
        boxes, valid = proposals.boxes, proposals.valid
        if self.add_ground_truth:
            boxes = torch.cat((boxes, targets.boxes.to(boxes.dtype)), dim=1)
            valid = torch.cat((valid, targets.valid & ~targets.crowd), dim=1)
        matches = self.matcher.match_batch(boxes, targets.boxes, targets.valid, targets.crowd)
        index, drawn, foreground = self.sampler.sample(matches.foreground & valid, matches.background & valid)
        matched = matches.matched.gather(1, index)
        background = torch.full_like(matched, self.num_classes)
        labels = targets.labels.gather(1, matched) if targets.labels.shape[1] else background
        return RoISamples(
            boxes=boxes.gather(1, index[..., None].expand(-1, -1, 4)),
            labels=torch.where(foreground, labels, background),
            matched=matched,
            valid=drawn,
            foreground=foreground,
            capacity=self.sampler.capacity,
        )

    def loss(self, prediction: BoxPrediction, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        """Class and box loss of R sampled regions."""
        count = regions.valid.sum().clamp(min=1)
        foreground = regions.valid & (regions.labels < self.num_classes)
        class_loss = self.class_loss(prediction.logits, regions.labels)
        if targets.boxes.shape[1] == 0:
            box_loss = prediction.deltas.float().sum() * 0
        else:
            # A class-agnostic head has one row of deltas for all classes.
            row = regions.labels.clamp(max=prediction.deltas.shape[1] - 1)
            deltas = prediction.deltas.gather(1, row[:, None, None].expand(-1, 1, 4)).squeeze(1)
            objects = targets.boxes[regions.rois[:, 0].long(), regions.matched]
            wanted = self.coder.encode(objects, regions.rois[:, 1:])
            wanted = torch.where(foreground[:, None], wanted, deltas.detach().to(wanted.dtype))
            box_loss = self.box_loss(deltas, wanted).sum() / count
        return {
            "box_class": torch.where(regions.valid, class_loss, 0.0).sum() / count,
            "box_delta": box_loss,
        }

    def predict(
        self, prediction: BoxPrediction, regions: Regions, proposals: Proposals, images: ImageBatch
    ) -> DetectionBatch:
        """Class scores and boxes of R regions → the best detections (N, D) of each image."""
        shape = proposals.valid.shape
        references = regions.rois[:, None, 1:]
        boxes = to_padded(self.coder.decode(prediction.deltas.to(references.dtype), references), regions, shape)
        scores = to_padded(prediction.logits.to(references.dtype).softmax(dim=-1)[:, :-1], regions, shape)
        boxes = clip_boxes(boxes, images.sizes).expand(-1, -1, self.num_classes, -1).flatten(1, 2)
        scores = scores.flatten(1)
        labels = torch.arange(self.num_classes, device=boxes.device).repeat(shape[1]).expand_as(scores)
        sides = boxes[..., 2:] - boxes[..., :2]
        large = ((sides > 0) & (sides >= self.test.min_size)).all(dim=-1)
        usable = (scores > self.test.score_threshold) & large
        index, valid = batched_nms(boxes, scores, labels, usable, iou=self.test.nms, keep=self.test.detections)
        return DetectionBatch(
            boxes=boxes.gather(1, index[..., None].expand(-1, -1, 4)) * valid[..., None],
            scores=scores.gather(1, index) * valid,
            labels=labels.gather(1, index) * valid,
            valid=valid,
        )
