"""The region proposal network around its head (Ren et al., *Faster R-CNN*, arXiv:1506.01497, section 3.1)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from toolbox.models.boxes import BoxCoder, Matcher, RandomSampler, batched_nms, clip_boxes
from toolbox.models.interfaces import Loss, RPNHead, Sampler
from toolbox.models.losses import BinaryCrossEntropy, SmoothL1
from toolbox.models.rpn.anchors import AnchorGenerator
from toolbox.models.rpn.cells import cells_of
from toolbox.structures import FeatureSpec, ImageBatch, Proposals, Targets


@dataclass(frozen=True)
class ProposalCounts:
    """How many proposals to keep.

    Args:
        before_nms: per level and image.
        after_nms: per image, over all levels.
    """

    before_nms: int = 2000
    after_nms: int = 1000

    def __post_init__(self) -> None:
        wrong = [f"{name} is 1 or more, got {count}" for name, count in vars(self).items() if count < 1]
        if wrong:
            raise ValueError("\n".join(wrong))


@dataclass
class AnchorPredictions:
    """What the head says of every anchor, per level.

    Attributes:
        anchors: (H · W · A, 4).
        logits: (N, H · W · A).
        deltas: (N, H · W · A, 4).
        maps: what the head read, where logits and deltas carry no gradient because it computes them again at the cells
            that the loss looks at; else None.
    """

    anchors: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    deltas: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] | None = None


class RPN(nn.Module):
    """Proposals from feature maps.

    Args:
        in_features: the maps that it runs on.
        head: predicts objectness and deltas.
        anchors: reference boxes, one set per map.
        coder: how deltas describe boxes.
        matcher: which anchors are foreground.
        sampler: which anchors to train on; 256 per image, half of them foreground if None.
        objectness_loss: over the sampled anchors, averaged; binary cross-entropy if None.
        box_loss: over the sampled foreground, averaged over all sampled; smooth L1 with beta 1/9 if None.
        train, test: numbers of proposals for the box branch to train on and to predict from.
        nms: overlap above which the worse proposal goes.
        min_size: proposals with a side below this many pixels go.
    """

    wired: ClassVar[tuple[str, ...]] = ("in_features",)

    def __init__(
        self,
        in_features: Mapping[str, FeatureSpec],
        *,
        head: RPNHead,
        anchors: AnchorGenerator,
        coder: BoxCoder = BoxCoder(),
        matcher: Matcher = Matcher(0.7, 0.3, low_quality=True),
        sampler: Sampler | None = None,
        objectness_loss: Loss | None = None,
        box_loss: Loss | None = None,
        train: ProposalCounts = ProposalCounts(2000, 2000),
        test: ProposalCounts = ProposalCounts(1000, 1000),
        nms: float = 0.7,
        min_size: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= nms <= 1:
            raise ValueError(f"nms lies between 0 and 1, got {nms}")
        if min_size < 0:
            raise ValueError(f"min_size is 0 pixels or more, got {min_size}")
        self.features = tuple(in_features)
        self.head = head
        self.anchors = anchors
        self.coder = coder
        self.matcher = matcher
        self.sampler = sampler or RandomSampler(size=256, positive_fraction=0.5)
        self.objectness_loss = objectness_loss or BinaryCrossEntropy()
        self.box_loss = box_loss or SmoothL1(beta=1 / 9)
        self.train_counts = train
        self.test_counts = test
        self.nms = nms
        self.min_size = min_size

    def forward(self, features: Mapping[str, Tensor], images: ImageBatch) -> AnchorPredictions:
        """Score every anchor. Maps (N, C, H, W) by name."""
        maps = [features[name] for name in self.features]
        # The gradient of the loss is zero but at a few hundred cells: taken through the whole maps it would cost twice
        # the head's forward pass, and keep every hidden map.
        few = torch.is_grad_enabled() and _looks_at_cells(self.head) and self._samples_few(maps)
        with torch.no_grad() if few else contextlib.nullcontext():
            logits, deltas = self.head(maps)
        return AnchorPredictions(
            anchors=self.anchors(maps, (images.tensor.shape[-2], images.tensor.shape[-1])),
            logits=[level.permute(0, 2, 3, 1).flatten(1) for level in logits],
            deltas=[level.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)) for level in deltas],
            maps=maps if few else None,
        )

    @torch.no_grad()
    def propose(self, predictions: AnchorPredictions, images: ImageBatch, counts: ProposalCounts) -> Proposals:
        """The best anchors of each level, decoded, clipped, and freed of near-doubles: (N, after_nms)."""
        boxes, logits, levels = [], [], []
        for level, anchors in enumerate(predictions.anchors):
            scores = predictions.logits[level].detach()
            best, index = scores.topk(min(counts.before_nms, len(anchors)), dim=1)
            deltas = predictions.deltas[level].detach().gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(self.coder.decode(deltas.to(anchors.dtype), anchors[index]))
            logits.append(best)
            levels.append(torch.full_like(index, level))
        candidates = clip_boxes(torch.cat(boxes, dim=1), images.sizes)
        scores = torch.cat(logits, dim=1).to(candidates.dtype).sigmoid()
        sides = candidates[..., 2:] - candidates[..., :2]
        # A side of no length has no area to pool from, whatever min_size says; NaN compares false and goes too.
        usable = ((sides > 0) & (sides >= self.min_size)).all(dim=-1) & scores.isfinite()
        index, valid = batched_nms(
            candidates, scores, torch.cat(levels, dim=1), usable, iou=self.nms, keep=counts.after_nms
        )
        return Proposals(
            boxes=candidates.gather(1, index[..., None].expand(-1, -1, 4)) * valid[..., None],
            scores=scores.gather(1, index) * valid,
            valid=valid,
        )

    def loss(self, predictions: AnchorPredictions, targets: Targets) -> dict[str, Tensor]:
        """Objectness and box loss over a sample of the anchors."""
        anchors = torch.cat(predictions.anchors)
        matches = self.matcher.match_batch(anchors, targets.boxes, targets.valid, targets.crowd)
        index, valid, foreground = self.sampler.sample(matches.foreground, matches.background)
        logits, deltas = self._predicted_at(predictions, index)
        count = valid.sum().clamp(min=1)
        objectness = self.objectness_loss(logits, foreground.to(logits.dtype))
        if targets.boxes.shape[1] == 0:
            box_loss = deltas.float().sum() * 0
        else:
            matched = matches.matched.gather(1, index)
            boxes = targets.boxes.gather(1, matched[..., None].expand(-1, -1, 4))
            wanted = self.coder.encode(boxes, anchors[index])
            wanted = torch.where(foreground[..., None], wanted, deltas.detach().to(wanted.dtype))
            box_loss = self.box_loss(deltas, wanted).sum() / count
        return {
            "rpn_objectness": torch.where(valid, objectness, 0.0).sum() / count,
            "rpn_box": box_loss,
        }

    def _samples_few(self, maps: list[Tensor]) -> bool:
        """Whether the loss looks at less than a quarter of the cells; a sampler of another kind may want them all."""
        cells = sum(level.shape[-2] * level.shape[-1] for level in maps)
        return isinstance(self.sampler, RandomSampler) and 4 * self.sampler.size <= cells

    def _predicted_at(self, predictions: AnchorPredictions, index: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, S) and deltas (N, S, 4) of the anchors that `index` (N, S) names."""
        if predictions.maps is None:
            logits = torch.cat(predictions.logits, dim=1).gather(1, index)
            return logits, torch.cat(predictions.deltas, dim=1).gather(1, index[..., None].expand(-1, -1, 4))
        sizes = [(level.shape[-2], level.shape[-1]) for level in predictions.maps]
        count = len(predictions.anchors[0]) // (sizes[0][0] * sizes[0][1])
        cells, anchor = cells_of(index, sizes, count)
        logits, deltas = self.head.at(predictions.maps, cells)  # type: ignore[attr-defined]
        rows = anchor[:, None]
        deltas = deltas.unflatten(1, (-1, 4)).gather(1, rows[..., None].expand(-1, 1, 4))
        return logits.gather(1, rows).reshape(index.shape), deltas.reshape(*index.shape, 4)


def _looks_at_cells(head: object) -> bool:
    """Whether a head can be asked for single cells; a subclass with another `forward` cannot by its parent's `at`."""
    owner = next((cls for cls in type(head).__mro__ if {"at", "forward"} & vars(cls).keys()), object)
    return "at" in vars(owner)
