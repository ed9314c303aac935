"""What other projects call things that the toolbox has under another name.

Only for messages: where someone writes the left name, the right one is suggested, if it fits there. A text behind the
name (`ResNet with depth: 50`) is said with it.
"""

from __future__ import annotations

import re

_COMPONENTS = {
    # Detectron2
    "GeneralizedRCNN": "RCNN",
    "build_resnet_backbone": "ResNet",
    "build_resnet_fpn_backbone": "ResNet with neck: {type: FPN}",
    "StandardRPNHead": "ConvRPNHead",
    "ROIPooler": "RoIAlign",
    "ROIAlignV2": "RoIAlign",
    "FastRCNNConvFCHead": "ConvFCBoxHead",
    "FastRCNNOutputLayers": "TwoFCBoxHead",
    "MaskRCNNConvUpsampleHead": "FCNMaskHead",
    "KRCNNConvDeconvUpsampleHead": "KeypointHead",
    "RandomFlip": "HorizontalFlip",
    "WarmupMultiStepLR": "MultiStep",
    "WarmupCosineLR": "Cosine",
    # MMDetection
    "FasterRCNN": "RCNN",
    "MaskRCNN": "RCNN",
    "TwoStageDetector": "RCNN",
    "RPNHead": "ConvRPNHead",
    "SingleRoIExtractor": "RoIAlign",
    "Shared2FCBBoxHead": "TwoFCBoxHead",
    "Shared4Conv1FCBBoxHead": "ConvFCBoxHead",
    "PhotoMetricDistortion": "PhotometricDistort",
    "CrossEntropyLoss": "CrossEntropy",
    "SmoothL1Loss": "SmoothL1",
    "ResNeXt": "ResNet with groups: 32 and width_per_group: 4",
    # torch, torchvision, timm
    "BCEWithLogitsLoss": "BinaryCrossEntropy",
    "MultiStepLR": "MultiStep",
    "StepLR": "MultiStep",
    "CosineAnnealingLR": "Cosine",
    "CocoDetection": "CocoDataset",
    "MultiScaleRoIAlign": "RoIAlign",
    "RandomHorizontalFlip": "HorizontalFlip",
    "RandomVerticalFlip": "VerticalFlip",
    "RandomPhotometricDistort": "PhotometricDistort",
    "TwoMLPHead": "TwoFCBoxHead",
}
_ARGUMENTS = {
    "max_iter": "steps",
    "max_iters": "steps",
    "iterations": "steps",
    "epochs": "steps epochs × images / batch",
    "max_epochs": "steps epochs × images / batch",
    "num_epochs": "steps epochs × images / batch",
    "ims_per_batch": "batch",
    "min_size": "short",
    "max_size": "max",
    "min_size_train": "short",
    "max_size_train": "max",
    "batch_size": "batch",
    "samples_per_gpu": "micro_batch",
    "learning_rate": "lr",
    "base_lr": "lr",
    "torch_compile": "compile",
    "use_checkpoint": "activation_checkpointing",
    "with_cp": "activation_checkpointing",
    "use_amp": "precision",
    "auto_scale_lr": "scale_lr_from",
    "scale_lr": "scale_lr_from",
    "reference_world_size": "scale_lr_from",
    "accumulate_grad_batches": "micro_batch",
    "accumulative_counts": "micro_batch",
    "allow_tf32": "tf32",
    "clip_grad": "clip_norm",
    "grad_clip": "clip_norm",
    "checkpoint_period": "checkpoint_every",
    "eval_period": "eval_every",
    "num_workers": "workers",
    "workers_per_gpu": "workers",
    "ann_file": "annotations",
    "json_file": "annotations",
    "annFile": "annotations",
    "image_root": "images",
    "img_prefix": "images",
    "img_dir": "images",
    "freeze_at": "frozen_stages",
    "pretrained": "weights",
    "init_cfg": "weights",
    "num_convs": "convolutions",
    "conv_out_channels": "channels",
    "fc_out_channels": "channels",
    "feat_channels": "channels",
    "num_outs": "extra_levels",
    "score_thr": "score_threshold",
    "score_thresh_test": "score_threshold",
    "max_per_img": "detections",
    "detections_per_image": "detections",
    "nms_thresh_test": "nms",
    "flip_ratio": "prob",
    "p": "prob",
    "val_interval": "eval_every",
    "rpn_head": "rpn",
    "roi_head": "box",
    "roi_heads": "box",
    "anchor_generator": "anchors",
    "style": "stride_in_1x1",
    "load_from": "init_from",
    "training": "train",
    "validation": "val",
    "valid": "val",
}
REMARKS = {
    "_base_": "a config is complete and inherits nothing; write its settings out, or override some by key=value",
    "_delete_": "a config inherits nothing, so there is nothing to delete; remove it",
    "custom_imports": "a plugin's file or module is listed under 'plugins:'",
    "amp": "it is 'precision' now; write precision: auto for true (which is the default), precision: float32 for false",
    "num_classes": "the classes come from the data set; remove it",
    "in_channels": "each stage is told the channels of the one before; remove it",
}
REMARKS["_BASE_"] = REMARKS["_base_"]
_TABLE = "docs/configs.md has their names beside ours"
_SECTIONS = {
    "Detectron2": {
        "MODEL": "model",
        "SOLVER": "train",
        "DATASETS": "data",
        "DATALOADER": "data",
        "INPUT": "data.resize and data.transforms",
        "TEST": "test",
    },
    "MMDetection": {
        "train_cfg": "train, in a model those of model.rpn and model.box",
        "test_cfg": "test, in a model those of model.rpn",
        "train_dataloader": "data.train",
        "val_dataloader": "data.val",
        "train_pipeline": "data.transforms",
        "optim_wrapper": "train.optimizer, with train.lr",
        "param_scheduler": "train.schedule",
        "default_hooks": "train.log_every, train.checkpoint_every",
        "data_preprocessor": "model.backbone.pixels",
    },
}
REMARKS |= {
    name: f"this is a section of {project}: here its settings are in {own} ({_TABLE})"
    for project, sections in _SECTIONS.items()
    for name, own in sections.items()
}
REMARKS |= {name: "the run folder is named by --run" for name in ("OUTPUT_DIR", "work_dir", "output_dir")}
_OWN = _COMPONENTS | _ARGUMENTS
_RESNET = re.compile(r"(?:wide_)?resne[xt]*t?_?(18|34|50|101|152)(?:_(\d+)x(\d+)d)?", re.IGNORECASE)
_TIMM = re.compile(
    r"(convnext|swin|vit|efficientnet|tf_efficientnet|regnet|mobilenet|densenet|hrnet|resnest|maxvit|deit|eva)[a-z]*\d*_?.*"
)


def own_name(name: str) -> tuple[str, str]:
    """What the toolbox calls a thing that others call `name`, and what belongs to it; empty where nothing is known."""
    found = _RESNET.fullmatch(name)
    if found:
        depth, groups, width = found.groups()
        grouped = f", groups: {groups}, width_per_group: {width}" if groups else ""
        return "ResNet", f"with depth: {depth}{grouped}"
    if _TIMM.fullmatch(name):
        return "TimmBackbone", f"with name: {name}"
    own, _, more = (_OWN.get(name) or _OWN.get(name.lower(), "")).partition(" ")  # Detectron2 writes IMS_PER_BATCH
    return own, more
