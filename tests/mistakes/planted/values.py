"""Arguments: misspelt, misplaced, of the wrong type, missing, out of range."""

from __future__ import annotations

from functools import partial

from planted.mistake import RUN, Mistake, in_config

edit = partial(in_config, "arguments")
kind = partial(in_config, "types")
absent = partial(in_config, "missing")
bounds = partial(in_config, "ranges")

RPN = RUN[RUN.index("  rpn:") : RUN.index("  box:")]
TRAIN = RUN[RUN.index("train:\n  steps") :]

MISTAKES: tuple[Mistake, ...] = (
    edit("misspelt argument", "{type: TwoFCBoxHead, channels", "{type: TwoFCBoxHead, ^chanels",
         "TwoFCBoxHead has no argument 'chanels'", "did you mean 'channels'?"),
    edit("misspelt section", "data:\n", "^date:\n", "no section 'date'", "did you mean 'data'?"),
    edit("misspelt setting of a section", "  steps: 2\n", "  steps: 2\n  chekpoint_every: 5\n".replace("chek", "^chek"),
         "'chekpoint_every'", "did you mean 'checkpoint_every'?"),
    edit("argument of a component inside", "  neck: {type: FPN, out_channels: 8}",
         "  neck: {type: FPN, out_channels: 8}\n  ^depth: 18", "RCNN has no argument 'depth'",
         "did you mean 'backbone.depth'?"),
    edit("argument one level too high", "data:\n", "^lr: 0.01\ndata:\n", "no section 'lr'", "'train.lr'"),
    edit("argument one level too low", "{type: SGD, momentum: 0.9}", "{type: SGD, momentum: 0.9, ^batch: 2}",
         "SGD has no argument 'batch'", "'train.batch'"),
    edit("num_classes is typed", "{type: TwoFCBoxHead, channels: 16}",
         "{type: TwoFCBoxHead, channels: 16, ^num_classes: 3}", "'num_classes' is filled in", "remove it"),
    edit("wired channels are typed", "{type: ConvRPNHead}", "{type: ConvRPNHead, ^in_channels: 256}",
         "'in_channels' is filled in", "remove it"),
    edit("type where there is no choice", "{sizes: [12, 24, 48, 96, 192]}",
         "{^type: AnchorGenerator, sizes: [12, 24, 48, 96, 192]}", "no setting 'type'", "remove it"),
    edit("Detectron2's iterations", "  steps: 2", "  ^max_iter: 2", "no setting 'max_iter'", "did you mean 'steps'?"),
    edit("epochs for steps", "  steps: 2", "  steps: 2\n  ^epochs: 12", "no setting 'epochs'", ["'steps'"]),
    edit("Detectron2's batch size", "  batch: 1", "  ^ims_per_batch: 1", "'ims_per_batch'", "did you mean 'batch'?"),
    edit("MMDetection's annotation file", "{type: Shapes, length: 4}", "{type: CocoDataset, images: a, ^ann_file: b}",
         "no argument 'ann_file'", "did you mean 'annotations'?"),
    edit("learning_rate", "  lr: 0.001", "  ^learning_rate: 0.001", "'learning_rate'", "did you mean 'lr'?"),
    edit("the former amp", "  batch: 1", "  batch: 1\n  ^amp: false", "no setting 'amp'",
         "precision: float32 for false"),
    edit("Detectron2's frozen stages", "{type: ResNet, depth: 18, norm: gn}",
         "{type: ResNet, depth: 18, norm: gn, ^freeze_at: 2}", "'freeze_at'", "did you mean 'frozen_stages'?"),
    edit("_base_ of MMDetection", "model:\n", "^_base_: [base.yaml]\nmodel:\n", "'_base_'", "complete"),
    kind("text for a number", "batch: 1", "batch: ^four", ["train.batch", "got 'four'"], "int"),
    kind("fraction for a whole number", "batch: 1", "batch: ^1.5", ["train.batch", "got 1.5"], "int"),
    kind("number for text", "{type: Shapes, length: 4}", "{type: CocoDataset, images: ^7, annotations: x}",
         ["data.train.images", "got 7"], "quote it: '7'"),
    kind("yes for true", "workers: 0", "workers: 0\n  group_by_aspect: ^yes", "got 'yes'", "true or false"),
    kind("off for false", "lr: 0.001", "lr: 0.001\n  tf32: ^off", "got 'off'", "true or false"),
    kind("quoted number", "depth: 18", "depth: ^'18'", "got '18'", ["18", "without quotes"]),
    kind("number with a unit", "{short: 64, max: 64}", "{short: 64, max: ^64px}", "got '64px'", "int"),
    kind("comma for a decimal point", "lr: 0.001", "lr: ^0,001", "got '0,001'", ["float", "0.001"]),
    kind("list for a number", "lr: 0.001", "lr: ^[0.1, 0.01]", ["train.lr", "a list"], "float"),
    kind("number for a list", "[12, 24, 48, 96, 192]", "^32", ["model.rpn.anchors.sizes", "got 32"], "list of float"),
    kind("number for a mapping", "resize: {short: 64, max: 64}", "resize: ^64", ["data.resize", "got 64"],
         "short"),
    kind("mapping for a list", "    - {type: HorizontalFlip}", "    ^HorizontalFlip: {}",
         ["data.transforms", "a mapping"], "list of transform"),
    kind("null for a number", "lr: 0.001", "lr: ^null", ["train.lr", "got null"], "float"),
    kind("null for a section", TRAIN, "train: ^null\n", "train: is empty", "steps (int)"),
    kind("choice that is none", "norm: gn", "norm: ^batch", "got 'batch'", ["'frozen_bn'", "'bn'", "'gn'"]),
    kind("misspelt choice", "norm: gn", "norm: ^frozen_bm", "'frozen_bm'", "did you mean 'frozen_bn'?"),
    kind("depth that does not exist", "depth: 18", "depth: ^51", "got 51", "50"),
    kind("three numbers where two belong", "output_size: 3", "output_size: ^[3, 3, 3]", "got 3 entries", "2"),
    kind("wrong entry of a list", "[12, 24, 48, 96, 192]", "[12, 24, ^medium, 96, 192]", "'medium'", "float"),
    absent("required argument", "train:\n  steps: 2\n  batch", "train:\n  ^batch", "'steps' (int) must be given",
           "(int)"),
    absent("annotations of a data set", "{type: Shapes, length: 4}", "^{type: CocoDataset, images: x}",
           ["data.train", "needs the argument 'annotations'"], "(str)"),
    absent("section of the model", RPN, "", "'rpn:' is missing", "head (rpn_head)", at="2:3"),
    absent("section train", TRAIN, "", "'train:' is missing", ["steps (int)", "lr (float)"], at="1:1"),
    absent("section model", "model:\n", "models:\n", "'model:' is missing", "did you mean 'model'?", at="1:1"),
    absent("head of a branch", "    head: {type: ConvRPNHead}\n    anchors", "    ^anchors",
           "'head' (rpn_head) must be given", "rpn_head"),
    bounds("negative learning rate", "lr: 0.001", "lr: ^-0.1", "got -0.1", "more than 0"),
    bounds("no steps", "steps: 2", "steps: ^0", "got 0", "1 or more"),
    bounds("batch that does not divide", "batch: 1", "batch: ^10\n  micro_batch: 4", "batch (10)",
           ["multiple of micro_batch (4)"]),
    bounds("probability of two", "{type: HorizontalFlip}", "{type: HorizontalFlip, prob: ^2}", "got 2",
           "between 0 and 1"),
    bounds("pooled size 0", "output_size: 6", "output_size: ^0", ["output_size", "got 0"], "at least 1"),
    bounds("no channels", "out_channels: 8", "out_channels: ^0", "got 0", "1 or more"),
    bounds("images of no size", "{short: 64, max: 64}", "{short: ^0, max: 64}", "not 0", "size in pixels"),
    bounds("score above 1", "data:\n", "test: {score_threshold: ^50}\ndata:\n", "got 50", "between 0 and 1"),
    bounds("negative momentum", "momentum: 0.9", "momentum: ^-1", ["momentum", "-1"], "0"),
    bounds("negative anchor", "[12, 24, 48, 96, 192]", "^[-12, 24, 48, 96, 192]", "-12", "more than 0"),
    bounds("negative workers", "workers: 0", "workers: ^-1", "got -1", "0 (load in the training process) or more"),
    bounds("average of 1", "lr: 0.001", "lr: 0.001\n  ema: ^1.0", "got 1.0", "e.g. 0.999"),
    bounds("more positives than regions", "{type: RandomSampler, size: 64}",
           "{type: RandomSampler, size: 64, positive_fraction: ^25}", "got 25", "between 0 and 1"),
    bounds("infinite learning rate", "lr: 0.001", "lr: ^.inf", "got inf", "more than 0"),
)  # fmt: skip
