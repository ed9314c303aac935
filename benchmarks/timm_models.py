"""Which of timm's networks are backbones: one small network of every family, in a Mask R-CNN that predicts and learns.

    python benchmarks/timm_models.py [--limit N] [--out FILE]

A family is a module of timm; of a dozen variants, those first whose names promise a small one, that with fewest
parameters is taken (larger than 150 million: left out). Each is built with random weights in a process of its own,
predicts on one image of 128 × 160 pixels, and makes one training step's forward and backward pass on two; the losses
must be finite and every trainable parameter must get a gradient. What does not fit is printed with the reason that a
user would read.
"""

from __future__ import annotations

import argparse
import logging
import re
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import timm
import torch

import toolbox
from toolbox.errors import ToolboxError
from toolbox.masks import InstanceMasks, PolygonMask
from toolbox.models.backbones.timm_networks import look_up
from toolbox.models.builder import build_detector
from toolbox.schema import config_from_text
from toolbox.structures import Targets

VARIANTS = 12  # of a family are counted
MOST = 150e6
SMALL = re.compile(
    r"^test_|atto|femto|pico|nano|tiny|_ti|xx?s|small|_s\d?(_|$)|slim|_b0|_00\d|_m0|_0[2-5]0|\D1[0489]\D*$"
)
LARGE = re.compile("base|large|huge|giant|so150|so400")
RUN = """\
model:
  backbone: {{type: TimmBackbone, name: {name}}}
  neck: {{type: {neck}, out_channels: 32}}
  rpn:
    head: {{type: ConvRPNHead}}
    anchors: {{sizes: {sizes}}}
  box:
    extractor: {{type: RoIAlign}}
    head: {{type: TwoFCBoxHead, channels: 32}}
  instance:
    mask: {{extractor: {{type: RoIAlign, output_size: 14}}, head: {{type: FCNMaskHead, channels: 16, convolutions: 1}}}}
data:
  train: {{type: Shapes}}
train: {{steps: 1, lr: 0.1}}
"""


def smallest(family: str) -> tuple[str, float]:
    """A small network of a family, and its parameters, classifier included."""
    names = timm.list_models(module=family)
    names = sorted(names, key=lambda name: (not SMALL.search(name), bool(LARGE.search(name))))[:VARIANTS]
    counts = {}
    for name in names:
        with torch.device("meta"):
            counts[name] = sum(p.numel() for p in timm.create_model(name, pretrained=False).parameters())
    name = min(counts, key=lambda name: counts[name])
    return name, counts[name]


def run_text(name: str) -> tuple[str, str]:
    """A config with this backbone, and its maps in words."""
    maps = look_up(name, in_channels=3, drop_path=0.0, strides=None).maps
    one = len(maps) == 1
    strides = [4, 8, 16, 32, 64] if one else [*maps, 2 * max(maps)]
    neck = "SimpleFeaturePyramid" if one else "FPN"
    words = " ".join(f"{stride}:{channels}" for stride, (_, channels) in maps.items())
    return RUN.format(name=name, neck=neck, sizes=[8 * stride for stride in strides]), words


def learn(text: str) -> str:
    """Build, predict, and make one training step's passes; what is wrong, or nothing."""
    detector = build_detector(config_from_text(text, "benchmark"), classes=("a", "b"))
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 255, (3, 128, 160), dtype=torch.uint8, generator=generator)
    detector.eval()
    with torch.no_grad():
        detector.predict([image])
    box = torch.tensor([[[20.0, 30.0, 90.0, 100.0]]]).expand(2, 1, 4)
    mask = PolygonMask([box[0, 0][[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2).numpy()])
    yes = torch.ones(2, 1, dtype=torch.bool)
    targets = Targets(
        box, torch.zeros(2, 1, dtype=torch.int64), yes, ~yes, box[..., 0], masks=InstanceMasks([[mask], [mask]])
    )
    losses = detector.train()([image, image], targets)  # two: some norms see one value per channel and image
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    idle = [name for name, value in detector.named_parameters() if value.requires_grad and value.grad is None]
    if not total.isfinite():
        return "the loss is not finite"
    return f"{len(idle)} parameters get no gradient, first {idle[0]}" if idle else ""


def try_family(family: str) -> tuple[str, str, str]:
    """A family's network, its maps, and what is wrong with it."""
    name, count = smallest(family)
    shown = f"{name} ({count / 1e6:.1f} M)"
    if count > MOST:
        return shown, "", "left out: larger than 150 million parameters"
    try:
        text, maps = run_text(name)
    except ValueError as error:
        return shown, "", str(error)
    try:
        return shown, maps, learn(text)
    except ToolboxError as error:
        return shown, maps, str(error)
    except Exception as error:  # a crash is what this benchmark looks for
        return shown, maps, f"CRASH {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def guarded(family: str) -> tuple[str, str, str]:
    """The same in a process of its own: a crash in native code ends that, not this."""
    with ProcessPoolExecutor(1) as pool:
        try:
            return pool.submit(try_family, family).result()
        except BrokenProcessPool:
            return smallest(family)[0], "", "CRASH: the process died in native code"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="only the first N families")
    parser.add_argument("--out", type=Path, help="write the table there too")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    lines = [
        f"timm {timm.__version__}, torch {torch.__version__}, toolbox {toolbox.__version__}",
        "",
        "| family | network | stride:channels | s | outcome |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    families, ran = timm.list_modules()[: arguments.limit], 0
    for family in families:
        torch.manual_seed(0)
        start = time.perf_counter()
        shown, maps, wrong = guarded(family)
        ran += not wrong
        lines.append(f"| {family} | {shown} | {maps} | {time.perf_counter() - start:.0f} | {wrong or 'runs'} |")
        print(lines[-1], flush=True)
    lines += ["", f"built and ran: {ran} of {len(families)}"]
    print("\n".join(lines[-2:]))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
