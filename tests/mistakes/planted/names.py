"""Components that do not exist: misspelt in every family, and named as Detectron2, MMDetection or torch name them."""

from __future__ import annotations

from functools import partial

from planted.mistake import Mistake, in_config

KIND = "names"
edit = partial(in_config, KIND)

BACKBONE = "{type: ResNet, depth: 18, norm: gn}"


def component(name: str, old: str, wrong: str, family: str, right: str) -> Mistake:
    """`old` holds `type: X`, where X is replaced by a wrong name."""
    start, _, was = old.partition("type: ")
    kept = was[len(was.split(",")[0].split("}")[0]) :]
    new = f"{start}type: ^{wrong}{kept}"
    return edit(name, old, new, [family, f"'{wrong}'"], right if " " in right else f"did you mean '{right}'?")


FPN, RPN_HEAD, SAMPLER = "{type: FPN,", "{type: ConvRPNHead}", "{type: RandomSampler,"
EXTRACTOR, BOX_HEAD, MASK_HEAD = "{type: RoIAlign, output_size: 3}", "{type: TwoFCBoxHead,", "{type: FCNMaskHead,"
LOSS, DATASET, FLIP = "{type: BinaryCrossEntropy}", "train: {type: Shapes,", "{type: HorizontalFlip}"
SGD, SCHEDULE = "{type: SGD,", "{type: MultiStep,"

MISTAKES: tuple[Mistake, ...] = (
    component("misspelt backbone", BACKBONE, "RestNet", "backbone", "ResNet"),
    component("misspelt neck", FPN, "FNP", "neck", "FPN"),
    component("misspelt RPN head", RPN_HEAD, "ConvRPNhead", "rpn_head", "ConvRPNHead"),
    component("misspelt sampler", SAMPLER, "RandomSample", "sampler", "RandomSampler"),
    component("misspelt extractor", EXTRACTOR, "ROIalign", "roi_extractor", "RoIAlign"),
    component("misspelt RoIWarp", EXTRACTOR, "RoIWrap", "roi_extractor", "RoIWarp"),
    component("misspelt box head", BOX_HEAD, "TwoFcHead", "box_head", "TwoFCBoxHead"),
    component("misspelt instance head", MASK_HEAD, "FCNMaskHaed", "instance_head", "FCNMaskHead"),
    component("misspelt MLP head", MASK_HEAD, "MLPMaskhead", "instance_head", "MLPMaskHead"),
    component("misspelt loss", LOSS, "BinaryCrossEntrpy", "loss", "BinaryCrossEntropy"),
    component("misspelt data set", DATASET, "Shape", "dataset", "Shapes"),
    component("misspelt transform", FLIP, "HorizontalFilp", "transform", "HorizontalFlip"),
    component("misspelt optimizer", SGD, "SDG", "optimizer", "SGD"),
    component("misspelt schedule", SCHEDULE, "Multistep", "schedule", "MultiStep"),
    edit("misspelt detector", "model:\n", "model:\n  type: ^RCCN\n", ["detector", "'RCCN'"], "did you mean 'RCNN'?"),
    edit("misspelt C4 stage", "  instance:\n", "  roi_stage: {type: ^ResnetStage}\n  instance:\n",
         ["roi_stage", "'ResnetStage'"], "did you mean 'ResNetStage'?"),
    edit("neck where a backbone belongs", BACKBONE, "{type: ^FPN}", "no backbone named 'FPN'", "'FPN' is a neck"),
    edit("backbone with its depth in the name", BACKBONE, "{type: ^resnet50}", "no backbone named 'resnet50'",
         ["'ResNet'", "depth: 50"]),
    edit("ResNeXt by torchvision's name", BACKBONE, "{type: ^resnext101_32x8d}", "'resnext101_32x8d'",
         ["'ResNet'", "groups: 32", "width_per_group: 8"]),
    edit("timm network as a type", BACKBONE, "{type: ^convnext_tiny}", "no backbone named 'convnext_tiny'",
         ["TimmBackbone", "name: convnext_tiny"]),
    component("Detectron2's backbone", BACKBONE, "build_resnet_fpn_backbone", "backbone", "ResNet"),
    component("Detectron2's RPN head", RPN_HEAD, "StandardRPNHead", "rpn_head", "ConvRPNHead"),
    component("Detectron2's box head", BOX_HEAD, "FastRCNNConvFCHead", "box_head", "ConvFCBoxHead"),
    component("Detectron2's mask head", MASK_HEAD, "MaskRCNNConvUpsampleHead", "instance_head", "FCNMaskHead"),
    component("Detectron2's pooler", EXTRACTOR, "ROIAlignV2", "roi_extractor", "RoIAlign"),
    component("Detectron2's flip", FLIP, "RandomFlip", "transform", "HorizontalFlip"),
    component("Detectron2's schedule", SCHEDULE, "WarmupMultiStepLR", "schedule", "MultiStep"),
    edit("Detectron2's meta-architecture", "model:\n", "model:\n  type: ^GeneralizedRCNN\n", "'GeneralizedRCNN'",
         "did you mean 'RCNN'?"),
    component("MMDetection's box head", BOX_HEAD, "Shared2FCBBoxHead", "box_head", "TwoFCBoxHead"),
    component("MMDetection's extractor", EXTRACTOR, "SingleRoIExtractor", "roi_extractor", "RoIAlign"),
    component("MMDetection's RPN head", RPN_HEAD, "RPNHead", "rpn_head", "ConvRPNHead"),
    component("MMDetection's loss", LOSS, "CrossEntropyLoss", "loss", "CrossEntropy"),
    component("MMDetection's brightness and contrast", FLIP, "PhotoMetricDistortion", "transform",
              "PhotometricDistort"),
    edit("MMDetection's detector", "model:\n", "model:\n  type: ^MaskRCNN\n", "'MaskRCNN'", "did you mean 'RCNN'?"),
    component("torch's schedule", SCHEDULE, "CosineAnnealingLR", "schedule", "Cosine"),
    component("torchvision's data set", DATASET, "CocoDetection", "dataset", "CocoDataset"),
    edit("lower case", SGD, "{type: ^sgd,", "no optimizer named 'sgd'", "did you mean 'SGD'?"),
    edit("component without a type", "{type: TwoFCBoxHead, channels: 16}", "^{channels: 16}",
         "a box_head needs a 'type'", "TwoFCBoxHead"),
    edit("component as a bare name", "{type: RoIAlign, output_size: 3}", "^RoIAlign", "got 'RoIAlign'",
         "write {type: RoIAlign}"),
    edit("type is a number", "{type: TwoFCBoxHead, channels: 16}", "{type: ^2, channels: 16}", "got 2", "TwoFCBoxHead"),
)  # fmt: skip
