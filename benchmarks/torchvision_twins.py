"""torchvision's detectors and ours with the same weights, run on the same images, proposals and samples.

Weights are random: no published file is needed, and every tensor differs from every other, so that one that is put
into the wrong place shows. Residual branches are damped, or the proposals of a random network would collapse. Both get
images at network size; what resizing adds is no matter of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

import toolbox
from toolbox.structures import Proposals, Targets
from toolbox.weights.exchange.classes import ClassTable, rows_of
from toolbox.weights.exchange.importing import import_torchvision
from toolbox.weights.torchvision import from_torchvision

CONFIGS = Path(__file__).resolve().parents[1] / "configs/torchvision"
MODELS = {
    "fasterrcnn_resnet50_fpn": "faster_rcnn_r50_fpn",
    "maskrcnn_resnet50_fpn": "mask_rcnn_r50_fpn",
    "keypointrcnn_resnet50_fpn": "keypoint_rcnn_r50_fpn",
    "fasterrcnn_resnet50_fpn_v2": "faster_rcnn_r50_fpn_v2",
    "maskrcnn_resnet50_fpn_v2": "mask_rcnn_r50_fpn_v2",
}
LOSSES = {  # ours → torchvision's
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "box_class": "loss_classifier",
    "box_delta": "loss_box_reg",
    "mask": "loss_mask",
    "keypoint": "loss_keypoint",
}


@dataclass
class Twins:
    """The two models.

    Attributes:
        name: torchvision's.
        peer: torchvision's model.
        model: ours, which got its weights by the importer.
        rows: torchvision's label of each of our classes.
        dtype: of both.
    """

    name: str
    peer: Any
    model: Any
    rows: Tensor
    dtype: torch.dtype


@dataclass
class Objects:
    """Ground truth of one image at network size.

    Attributes:
        boxes: (G, 4).
        labels: (G,), ours.
        masks: (G, h, w) of 0 and 1, or None.
        keypoints: (G, J, 3), or None.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None
    keypoints: Tensor | None = None


@dataclass
class Found:
    """What a model gives for one image, in network pixels: proposals (P, 4), and D detections."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None  # (D, 28, 28) probabilities
    keypoints: Tensor | None = None  # (D, J, 2)
    proposals: Tensor = field(default_factory=lambda: torch.zeros(0, 4))


def make_twins(
    name: str,
    classes: ClassTable,
    images: Sequence[Tensor],
    *,
    dtype: torch.dtype = torch.float64,
    peer_classes: int | None = None,
    epsilon: float = 0.0,
    proposals: int = 1000,
    detections: int = 100,
    samples: int = 512,
) -> Twins:
    """Random weights for torchvision's model, and the same in ours.

    Args:
        name: torchvision's, a key of `MODELS`.
        classes: K.
        images: (3, h, w) uint8, whose scores are spread out, and of which about 1000 candidates pass the threshold.
        dtype: of both.
        peer_classes: rows of torchvision's model without the background; K if None.
        epsilon: of a frozen batch norm; 0 is how torchvision runs its published files.
        proposals, detections: most per image.
        samples: regions that the box branch trains on, per image.
    """
    count = peer_classes or len(classes)
    peer = random_peer(name, count, 0 if classes.skeleton is None else len(classes.skeleton.names), epsilon)
    rows = torch.tensor(rows_of(classes, count)) + 1
    unused = torch.ones(count + 1, dtype=torch.bool).index_fill(0, rows, False)
    unused[0] = False
    # As in trained weights: what is no class is never found, else dropping its row would change the others' scores.
    peer.roi_heads.box_predictor.cls_score.bias.data[unused] = -40.0
    threshold = _spread_scores(peer, images)
    peer.rpn._pre_nms_top_n = peer.rpn._post_nms_top_n = {"training": proposals, "testing": proposals}
    peer.roi_heads.detections_per_img = detections
    peer.roi_heads.fg_bg_sampler.batch_size_per_image = samples
    overrides = [
        *(f"model.rpn.{mode}={{before_nms: {proposals}, after_nms: {proposals}}}" for mode in ("train", "test")),
        f"test.detections={detections}",
        f"test.score_threshold={threshold}",
        *([] if name.endswith("_v2") else [f"model.backbone.norm_eps={epsilon}"]),
    ]
    config = toolbox.load_config(CONFIGS / f"{MODELS[name]}.yaml", overrides)
    model: Any = import_torchvision(peer.state_dict(), config, classes=classes).model.to(dtype)
    # The buffers were made in float32; doubled, they would be as exact as that.
    std = torch.tensor(model.backbone.pixels.std, dtype=dtype)
    model.preprocess.factor = (model.backbone.pixels.scale / std)[:, None, None]
    model.preprocess.offset = (torch.tensor(model.backbone.pixels.mean, dtype=dtype) / std)[:, None, None]
    return Twins(name, peer.to(dtype), model, rows, dtype)


def random_peer(name: str, classes: int, joints: int, epsilon: float) -> nn.Module:
    """torchvision's model as it is made where weights are given: v1 with frozen batch norm, v2 with live."""
    torch.manual_seed(0)
    kind = name.partition("_")[0]
    if name.endswith("_v2"):
        peer = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=classes + 1)
    else:
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
        cls = {"fasterrcnn": detection.FasterRCNN, "maskrcnn": detection.MaskRCNN}.get(kind, detection.KeypointRCNN)
        more = {"num_keypoints": joints} if kind == "keypointrcnn" else {}
        peer = cls(backbone, num_classes=classes + 1, **more)
        overwrite_eps(peer, epsilon)
    for module in peer.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            module.running_var.uniform_(0.7, 1.3)
            module.weight.data.uniform_(0.8, 1.2)
            module.bias.data.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
    for module in peer.modules():
        if isinstance(module, Bottleneck):
            module.bn3.weight.data.mul_(0.2)
    nn.init.normal_(peer.roi_heads.box_predictor.cls_score.weight, std=0.05)
    peer.transform.resize = lambda image, target: (image, target)
    peer.transform.postprocess = lambda result, *_: result  # masks stay 28 × 28, boxes in network pixels
    return peer.eval()


@torch.no_grad()
def detect(twins: Twins, images: Sequence[Tensor]) -> list[tuple[Found, Found]]:
    """Ours and torchvision's of each image (3, h, w) uint8."""
    proposals: list[Any] = []
    hook = twins.peer.rpn.register_forward_hook(lambda *call: proposals.extend(call[2][0]))
    label_of = {int(row): label for label, row in enumerate(twins.rows)}
    theirs = []
    for boxes, result in zip(proposals, twins.peer.eval()(_unit(images, twins.dtype)), strict=False):
        labels = torch.tensor([label_of[int(row)] for row in result["labels"]], dtype=torch.int64)
        masks, joints = result.get("masks"), result.get("keypoints")
        found = Found(result["boxes"], result["scores"], labels, proposals=boxes)
        found.masks = None if masks is None else masks[:, 0]
        found.keypoints = None if joints is None else joints[..., :2]
        theirs.append(found)
    hook.remove()
    ours = []
    with _watched(twins.model) as seen:
        detections = twins.model.eval().predict(images)
    for image, result in enumerate(detections):
        kept = seen["proposals"]
        found = Found(result.boxes, result.scores, result.labels, proposals=kept.boxes[image][kept.valid[image]])
        found.masks = result.extras.get("probabilities")
        found.keypoints = None if result.keypoints is None else result.keypoints[..., :2]
        ours.append(found)
    return list(zip(ours, theirs, strict=True))


def losses(
    twins: Twins, images: Sequence[Tensor], objects: Sequence[Objects], *, live: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses of both, from torchvision's proposals, samples and mask targets, with their graphs.

    Args:
        live: leave the batch norms of a `_v2` in training mode.

    Returns:
        Ours and torchvision's, under our names.
    """
    peer, model = twins.peer, twins.model
    modules = (peer, model)
    for module in modules:
        module.train()
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d) and not live:
                norm.eval()
    anchors, regions = _Recorded(peer.rpn.fg_bg_sampler), _Recorded(peer.roi_heads.fg_bg_sampler)
    peer.rpn.fg_bg_sampler, peer.roi_heads.fg_bg_sampler = anchors, regions
    proposals: list[Any] = []
    hook = peer.rpn.register_forward_hook(lambda *call: proposals.extend(call[2][0]))
    expected = peer(_unit(images, twins.dtype), [_as_torchvision(one, twins) for one in objects])
    hook.remove()
    peer.rpn.fg_bg_sampler, peer.roi_heads.fg_bg_sampler = anchors.sampler, regions.sampler

    padded = _padded(proposals)
    kept = model.rpn.sampler, model.box.sampler
    model.rpn.sampler = _Replayed(anchors.drawn, [0] * len(images), 0)
    model.box.sampler = _Replayed(regions.drawn, [len(boxes) for boxes in proposals], padded.boxes.shape[1])
    model.rpn.propose = lambda *_: padded
    found = model(images, _as_ours(objects, twins))
    del model.rpn.propose
    model.rpn.sampler, model.box.sampler = kept
    return found, {own: expected[name] for own, name in LOSSES.items() if name in expected}


def gradients(twins: Twins) -> dict[str, tuple[Tensor, Tensor]]:
    """Of every parameter that trains, ours and torchvision's, by our name."""
    theirs = from_torchvision({n: p.grad for n, p in twins.peer.named_parameters() if p.grad is not None})
    ours = {n: p.grad for n, p in twins.model.named_parameters() if p.grad is not None}
    if theirs.keys() != ours.keys():
        raise AssertionError(f"gradients of other parameters: {sorted(theirs.keys() ^ ours.keys())}")
    gradient = {}
    for name, own in ours.items():
        full = theirs[name]
        if len(full) != len(own):  # rows by category id
            each = len(own) // len(twins.rows) if "logits" not in name else 1
            rows = torch.cat((twins.rows - 1, torch.tensor([len(full) - 1]))) if "logits" in name else twins.rows - 1
            full = full.unflatten(0, (-1, each))[rows].flatten(0, 1)
        gradient[name] = (own, full)
    return gradient


class _Recorded:
    """torchvision's sampler, and what it drew."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.drawn: list[tuple[Tensor, Tensor]] = []

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        foreground, background = self.sampler(labels)
        self.drawn = list(zip(foreground, background, strict=True))
        return foreground, background


class _Replayed:
    """A sampler of ours that draws what torchvision's drew, and sees that our matching allows it.

    Args:
        drawn: per image, what torchvision drew as foreground and as background, (R,) bool each.
        proposals: per image, how many of the rows are proposals; objects follow.
        padded: where the objects begin here.
    """

    def __init__(self, drawn: list[tuple[Tensor, Tensor]], proposals: list[int], padded: int) -> None:
        self.index = []
        for (foreground, background), count in zip(drawn, proposals, strict=True):
            rows = torch.cat([part.nonzero().squeeze(1) for part in (foreground, background)])
            self.index.append(torch.where(rows < count, rows, rows - count + padded))
        self.capacity = max(int(foreground.sum()) for foreground, _ in drawn)
        self.foreground = [int(foreground.sum()) for foreground, _ in drawn]
        # Image by image, foreground first; the block of the foreground is as long as the longest.
        self.size = self.capacity + max(len(i) - f for i, f in zip(self.index, self.foreground, strict=True))

    def sample(self, foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = torch.zeros(len(self.index), self.size, dtype=torch.int64)
        valid, positive = torch.zeros_like(index, dtype=torch.bool), torch.zeros_like(index, dtype=torch.bool)
        for image, (rows, count) in enumerate(zip(self.index, self.foreground, strict=True)):
            index[image, : len(rows)], valid[image, : len(rows)], positive[image, :count] = rows, True, True
            other = int((~foreground[image, rows[:count]]).sum() + (~background[image, rows[count:]]).sum())
            if other:
                raise AssertionError(f"{other} of {len(rows)} samples of image {image} are matched otherwise")
        return index, valid, positive


class SoftMasks:
    """torchvision's mask targets: RoIAlign of the bitmaps, so fractions at the edge, where ours are 0 or 1."""

    def __init__(self, masks: Sequence[Tensor]) -> None:
        self.masks = masks

    def rasterise(self, rois: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
        targets = rois.new_zeros(len(rois), *size)
        for image, masks in enumerate(self.masks):
            rows = rois[:, 0] == image
            boxes = torch.cat((index[rows, None].to(rois), rois[rows, 1:]), dim=1)
            targets[rows] = torchvision.ops.roi_align(masks[:, None].to(rois), boxes, size, 1.0)[:, 0]
        return targets.float()


@torch.no_grad()
def _spread_scores(peer: Any, images: Sequence[Tensor], candidates: int = 1000) -> float:
    """Let the regions of a random network differ in their classes, and say which score so many an image have."""
    hidden: list[Tensor] = []
    predictor = peer.roi_heads.box_predictor
    hook = predictor.register_forward_hook(lambda *call: hidden.append(call[1][0]))
    peer.roi_heads.score_thresh = 1.0
    peer(_unit(images, torch.float32))
    hook.remove()
    weight, bias = predictor.cls_score.weight, predictor.cls_score.bias
    mean = hidden[0].mean(dim=0)
    weight *= 2.0 / ((hidden[0] - mean) @ weight.T).std()
    bias -= weight @ mean
    scores = predictor(hidden[0])[0].softmax(-1)[:, 1:].flatten()
    peer.roi_heads.score_thresh = float(scores.topk(min(candidates * len(images), len(scores))).values[-1])
    return peer.roi_heads.score_thresh


def _unit(images: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [image.to(dtype) / 255 for image in images]


@contextmanager
def _watched(model: Any) -> Iterator[dict[str, Any]]:
    """Keep the proposals, and let masks stay probabilities, while inside."""
    seen: dict[str, Any] = {}
    propose = model.rpn.propose

    def noted(*arguments: Any) -> Any:
        seen["proposals"] = propose(*arguments)
        return seen["proposals"]

    model.rpn.propose = noted
    head = model.instance["mask"].head if "mask" in model.instance else None
    if head is not None:
        head.to_image = lambda values, *_: {"probabilities": values}
    try:
        yield seen
    finally:
        del model.rpn.propose
        if head is not None:
            del head.to_image


def _padded(proposals: Sequence[Tensor]) -> Proposals:
    boxes = nn.utils.rnn.pad_sequence(list(proposals), batch_first=True)
    valid = nn.utils.rnn.pad_sequence([torch.ones(len(one), dtype=torch.bool) for one in proposals], batch_first=True)
    return Proposals(boxes, valid.to(boxes), valid)


def _as_torchvision(objects: Objects, twins: Twins) -> dict[str, Tensor]:
    target = {"boxes": objects.boxes.to(twins.dtype), "labels": twins.rows[objects.labels]}
    if objects.masks is not None:
        target["masks"] = objects.masks
    if objects.keypoints is not None:
        target["keypoints"] = objects.keypoints.float()
    return target


def _as_ours(objects: Sequence[Objects], twins: Twins) -> Targets:
    def pad(values: list[Tensor]) -> Tensor:
        return nn.utils.rnn.pad_sequence(values, batch_first=True)

    valid = pad([torch.ones(len(one.boxes), dtype=torch.bool) for one in objects])
    boxes = pad([one.boxes.to(twins.dtype) for one in objects])
    sides = boxes[..., 2:] - boxes[..., :2]
    joints = [one.keypoints.float() for one in objects if one.keypoints is not None]
    masks = [one.masks for one in objects if one.masks is not None]
    return Targets(
        boxes=boxes,
        labels=pad([one.labels for one in objects]),
        valid=valid,
        crowd=torch.zeros_like(valid),
        area=sides.prod(dim=-1),
        keypoints=pad(joints) if joints else None,
        masks=SoftMasks(masks) if masks else None,
    )
