"""Stages that do not fit one another, or the data."""

from __future__ import annotations

from functools import partial

from planted.mistake import Mistake, in_config, on_command_line

edit = partial(in_config, "wiring")

MASK_EXTRACTOR = "{type: RoIAlign, output_size: 6}"

MISTAKES: tuple[Mistake, ...] = (
    edit("anchor sizes for too few levels", "{sizes: [12, 24, 48, 96, 192]}", "{sizes: ^[12, 24, 48, 96]}",
         ["4 levels", "there are 5: p2, p3, p4, p5, p6"], "one size"),
    edit("other numbers of anchors by level", "{sizes: [12, 24, 48, 96, 192]}",
         "{sizes: ^[[12, 16], [24], [48], [96], [192]]}", "[24", "each level as many"),
    edit("neck left out, maps of different width",
         "  neck: {type: FPN, out_channels: 8}\n  rpn:\n    head: {type: ConvRPNHead}\n"
         "    anchors: {sizes: [12, 24, 48, 96, 192]}", "  rpn:\n    head: ^{type: ConvRPNHead}\n"
         "    anchors: {sizes: [12, 24, 48, 96]}", ["c2: 64", "c5: 512"], "add a neck"),
    edit("FPN over maps whose strides do not double", "{type: ResNet, depth: 18, norm: gn}\n  neck: {type: FPN",
         "{type: ResNet, depth: 18, norm: gn, out: [c2, c4]}\n  neck: ^{type: FPN", ["c2", "stride", "16"], "double"),
    edit("dilated C5 under an FPN", "{type: ResNet, depth: 18, norm: gn}\n  neck: {type: FPN",
         "{type: ResNet, depth: 50, norm: gn, dilated_c5: true}\n  neck: ^{type: FPN", "c5", "double"),
    edit("extractor reads a map that is not there", MASK_EXTRACTOR, "{type: RoIAlign, output_size: 6, features: ^[p7]}",
         "no feature map named p7", "p2, p3, p4, p5, p6"),
    edit("C4 stage wants other channels", "  instance:\n    mask:\n      extractor: {type: RoIAlign, output_size: 6}\n",
         "  roi_stage: ^{type: ResNetStage, depth: 18, norm: gn}\n  instance:\n    mask:\n"
         "      extractor: {type: RoIAlign, output_size: 6}\n", ["have 8", "takes 256 channels"], "pool from c4"),
    edit("C4 head without its stage", "{type: TwoFCBoxHead, channels: 16}", "^{type: AveragePoolBoxHead}",
         "AveragePoolBoxHead has no layers", ["model.roi_stage", "ResNetStage", "TwoFCBoxHead"]),
    edit("softmax masks with the loss of sigmoid ones", "loss: {type: BinaryCrossEntropy}",
         "activation: softmax, loss: ^{type: BinaryCrossEntropy}", ["BinaryCrossEntropy", "'softmax'"],
         ["leave it out", "CrossEntropy"]),
    edit("adaptive sampling where there is none", "{type: RoIAlign, output_size: 3}",
         "{type: RoIWarp, sampling_ratio: ^0}", "got 0", "1 or more"),
    edit("frozen batch norm without pretrained weights", "{type: ResNet, depth: 18, norm: gn}",
         "^{type: ResNet, depth: 18}", "frozen", ["weights", "norm: gn"]),
    on_command_line("wiring", "frozen stages without pretrained weights",
                    "check run.yaml model.backbone.frozen_stages=2 --strict", "model.backbone.frozen_stages",
                    "2 stages keep random values", ["set weights", "frozen_stages: 0"]),
    edit("pretrained weights of a name that there is not", "depth: 18, norm: gn}",
         "depth: 18, weights: ^IMAGENET1K_V9}", "'IMAGENET1K_V9'", "IMAGENET1K_V1"),
    edit("pretrained file that is not there", "depth: 18, norm: gn}", "depth: 18, weights: ^resnet.pth}",
         "resnet.pth", "no such weight file"),
    edit("no proposals to train on", "head: {type: ConvRPNHead}\n    anchors",
         "head: {type: ConvRPNHead}\n    train: {before_nms: ^0}\n    anchors", "before_nms", "1 or more"),
    edit("matcher's thresholds the wrong way round", "    head: {type: ConvRPNHead}\n",
         "    matcher: ^{foreground: 0.3, background: 0.7}\n    head: {type: ConvRPNHead}\n", "0.7", "foreground"),
    edit("neck where a loss belongs", "loss: {type: BinaryCrossEntropy}", "loss: {type: ^FPN}",
         "no loss named 'FPN'", "'FPN' is a neck"),
    edit("negative milestone", "milestones: [1]", "milestones: ^[-5]", "-5", "milestones"),
    edit("negative warm-up", "milestones: [1]", "warmup_steps: ^-5", "got -5", "0 (no warm-up) or more"),
)  # fmt: skip
