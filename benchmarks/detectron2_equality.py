"""Detections of our models and of Detectron2's own, from the same random weights and images.

Detectron2 must be installed beside the toolbox (it builds from source; no checkpoint is needed):

    python benchmarks/detectron2_equality.py [fpn c4 dc5 dc5-3x3 keypoint] [--dtype float64]

Each line is one image: detections found by both, the largest differences of boxes (pixels), scores, joints (pixels) and
maps of the backbone, and how many mask pixels differ. Detectron2 keeps boxes in float32 whatever the type of the model.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn

import toolbox
from toolbox.models.backbones.weights import without_pretrained
from toolbox.structures import Detections, Skeleton
from toolbox.weights import load_weights
from toolbox.weights.detectron2 import from_detectron2

CONFIGS = Path(__file__).resolve().parents[1] / "configs/detectron2"
MODELS = {  # our config, Detectron2's
    "fpn": ("mask_rcnn_r50_fpn", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"),
    "c4": ("mask_rcnn_r50_c4", "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"),
    "dc5": ("mask_rcnn_r50_dc5", "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml"),
    "dc5-3x3": ("mask_rcnn_r50_dc5", "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml"),
    "keypoint": ("keypoint_rcnn_r50_fpn", "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"),
}
# The stride in the 3x3 convolution, which Detectron2 dilates in every block of c5.
FURTHER = {
    "dc5-3x3": (
        ["model.backbone.stride_in_1x1=false", "model.backbone.dilated_c5=all_blocks"],
        ["MODEL.RESNETS.STRIDE_IN_1X1", False],
    )
}
SIZES = [(187, 283), (120, 168)]  # of the original images; the second is scaled
FOUND, PROPOSALS = 50, 100  # C4 runs a stage of the network on every proposal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], help="all by default")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    if dtype == torch.float64:
        run_in_float64()
    for name in arguments.models or MODELS:
        compare(name, dtype)


def compare(name: str, dtype: torch.dtype) -> None:
    """Print a line for each image."""
    classes = 1 if name == "keypoint" else 5
    own_settings, their_settings = FURTHER.get(name, ([], []))
    theirs = detectron2_model(MODELS[name][1], classes, their_settings).to(dtype)
    ours = our_model(MODELS[name][0], classes, from_detectron2(theirs.state_dict()), own_settings).to(dtype)
    images = smooth_images()
    inputs = [
        {"image": image.flip(0).to(dtype), "height": height, "width": width}
        for image, (height, width) in zip(images, SIZES, strict=True)
    ]
    with torch.no_grad():
        expected = [result["instances"] for result in theirs(inputs)]
        maps = theirs.backbone(theirs.preprocess_image(inputs).tensor)
        own_maps = ours.extract(ours.preprocess(images).tensor)
    gap = max(float((a - b).abs().max()) for a, b in zip(maps.values(), own_maps.values(), strict=True))
    for own, peers in zip(ours.predict(images, SIZES), expected, strict=True):
        print(f"{name} {dtype}: {difference(own, peers)}, maps {gap:.1e}", flush=True)


def difference(own: Detections, peers: Any) -> str:
    """What differs between the detections of one image."""
    if len(own) != len(peers) or own.labels.tolist() != peers.pred_classes.tolist():
        return f"DIFFERENT detections: {len(own)} here, {len(peers)} there"
    boxes, scores = peers.pred_boxes.tensor, peers.scores
    told = [
        f"{len(own)} detections",
        f"boxes {float((own.boxes - boxes).abs().max()):.1e}",
        f"scores {float((own.scores - scores).abs().max()):.1e}",
    ]
    if own.masks is not None:
        decoded = np.array([coco_mask.decode(mask) for mask in own.masks], dtype=bool)
        bitmaps = peers.pred_masks.numpy()
        told.append(f"mask pixels {(decoded != bitmaps).sum()} of {bitmaps.sum()}")
    if own.keypoints is not None:  # the score is a logit here and a probability there
        told.append(f"joints {float((own.keypoints - peers.pred_keypoints)[..., :2].abs().max()):.1e}")
    return ", ".join(told)


def detectron2_model(config: str, classes: int, further: list[Any]) -> nn.Module:
    """Random weights, damped so that proposals do not collapse, with scores that differ from region to region."""
    from detectron2 import model_zoo
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from detectron2.modeling.backbone.resnet import BottleneckBlock

    settings = get_cfg()
    settings.merge_from_file(model_zoo.get_config_file(config))
    settings.merge_from_list(further)
    settings.MODEL.DEVICE = "cpu"
    settings.MODEL.ROI_HEADS.NUM_CLASSES = classes
    settings.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.1
    settings.MODEL.RPN.POST_NMS_TOPK_TEST = PROPOSALS
    settings.TEST.DETECTIONS_PER_IMAGE = FOUND
    torch.manual_seed(0)
    model = build_model(settings).eval()
    for module in model.modules():
        if isinstance(module, BottleneckBlock):
            module.conv3.norm.weight.fill_(0.2)
    body = getattr(model.backbone, "bottom_up", model.backbone)
    body.stem.conv1.norm.weight.fill_(1 / 58)  # its images are not divided by their deviation
    heads = model.roi_heads
    nn.init.normal_(heads.box_predictor.cls_score.weight, std=0.02 if hasattr(heads, "res5") else 0.05)
    nn.init.normal_(heads.box_predictor.bbox_pred.weight, std=0.02)
    if len(model.proposal_generator.rpn_head.objectness_logits.weight) > 3:
        nn.init.normal_(model.proposal_generator.rpn_head.objectness_logits.weight, std=0.05)
    if hasattr(heads, "mask_head"):
        nn.init.normal_(heads.mask_head.predictor.weight, std=0.1)
    return model


def our_model(config: str, classes: int, state: dict[str, Tensor], further: list[str]) -> Any:
    overrides = ["test.score_threshold=0.1", f"test.detections={FOUND}", f"model.rpn.test.after_nms={PROPOSALS}"]
    loaded = toolbox.load_config(CONFIGS / f"{config}.yaml", [*overrides, *further])
    skeleton = Skeleton(names=tuple(f"joint {index}" for index in range(17))) if "keypoint" in config else None
    with without_pretrained():
        model = toolbox.build_detector(loaded, classes=[str(index) for index in range(classes)], skeleton=skeleton)
    model = model.to(next(tensor.dtype for tensor in state.values()))
    load_weights(model, state, config)
    return model.eval()


def smooth_images() -> list[Tensor]:
    """Two images (3, h, w) uint8 of different size."""
    coarse = torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    smooth = nn.functional.interpolate(coarse, size=(187, 283), mode="bicubic").clamp(0, 1)
    return [(smooth[0] * 255).byte(), (smooth[1, :, :157, :223] * 255).byte()]


def run_in_float64() -> None:
    """Detectron2 suppresses with scores of the model's type but boxes of float32, and decodes in float32."""
    nms = importlib.import_module("detectron2.layers.nms")
    original = nms.box_ops.batched_nms
    nms.box_ops = SimpleNamespace(batched_nms=lambda boxes, scores, *more: original(boxes, scores.float(), *more))
    regression = importlib.import_module("detectron2.modeling.box_regression")
    source = textwrap.dedent(inspect.getsource(regression.Box2BoxTransform.apply_deltas))
    names = dict(vars(regression))
    exec(source.replace("deltas.float()", "deltas"), names)
    regression.Box2BoxTransform.apply_deltas = names["apply_deltas"]


if __name__ == "__main__":
    main()
