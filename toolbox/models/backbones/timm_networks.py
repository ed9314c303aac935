"""What timm's networks are, asked of timm itself: each is built and tried out on the meta device, without memory.

So nothing here guesses: strides and channels come from `feature_info`, the layout from `output_fmt`, depths and stages
from `group_matcher`, and whether a network takes images of any size from letting it try.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from toolbox.errors import ToolboxError, did_you_mean
from toolbox.structures import is_power_of_two

# Of each kind one that is known to fit, to be named where another does not.
FITTING = (
    "resnet50",
    "efficientnet_b0",
    "mobilenetv3_large_100",
    "convnext_tiny",
    "regnety_016",
    "hrnet_w18",
    "swin_tiny_patch4_window7_224",
    "vit_base_patch16_224",
    "vit_base_patch14_dinov2",
    "eva02_base_patch14_224",
    "pvt_v2_b2",
    "davit_tiny",
    "mvitv2_tiny",
    "xcit_small_12_p8_224",
    "inception_next_tiny",
    "efficientvit_b1",
    "xception41",
)


@dataclass(frozen=True)
class TimmNetwork:
    """One of timm's networks, as it shall be built.

    Attributes:
        name: timm's.
        options: of `timm.create_model`.
        maps: stride → index among timm's feature maps, and channels; those that lie where their stride says.
        whole: the classification network on the meta device: its names, shapes and groups.
        unused: names of parameters that no map depends on.
    """

    name: str
    options: Mapping[str, Any]
    maps: Mapping[int, tuple[int, int]]
    whole: nn.Module
    unused: tuple[str, ...]


def import_timm() -> ModuleType:
    """timm, or how to install it."""
    try:
        import timm
        import timm.layers
    except ImportError as error:
        raise ToolboxError("TimmBackbone needs timm: pip install 'rcnn-toolbox[timm]'") from error
    return timm


def look_up(name: str, *, in_channels: int, drop_path: float, strides: Sequence[int] | None) -> TimmNetwork:
    """Find out what a network is, and whether it can be a backbone.

    Args:
        name: timm's, with or without the tag of its weights.
        in_channels: of the images.
        drop_path: rate of stochastic depth.
        strides: of the maps wanted, or None for those of 4, 8, 16 and 32 that there are.

    Raises:
        ValueError: it cannot be one; the text begins with the setting that is to be changed.
    """
    return _looked_up(name, in_channels, drop_path, None if strides is None else tuple(strides))


# A model is built twice, first without memory, and trying a network out takes longer than building it.
@lru_cache(maxsize=8)
def _looked_up(name: str, in_channels: int, drop_path: float, strides: tuple[int, ...] | None) -> TimmNetwork:
    timm = import_timm()
    _check_name(timm, name)
    with torch.device("meta"):
        whole = timm.create_model(name, pretrained=False, in_chans=in_channels)
    accepted = _arguments(type(whole))
    options: dict[str, Any] = {"in_chans": in_channels}
    if "drop_path_rate" in accepted:
        options["drop_path_rate"] = drop_path
    elif drop_path:
        raise ValueError(f"drop_path must be 0 for '{name}': the network has no stochastic depth, got {drop_path}")
    # Each is timm's word for "images of any size"; which one a network knows differs from kind to kind.
    options |= {key: True for key in ("dynamic_img_size", "dynamic_img_pad") if key in accepted}
    if "strict_img_size" in accepted and "dynamic_img_size" not in accepted:
        options["strict_img_size"] = False

    network = _features(timm, name, options)
    reductions = network.feature_info.reduction()
    if not any(is_power_of_two(stride) for stride in reductions) and "dynamic_img_pad" in accepted:
        # A plain vision transformer with patches of 14 pixels (DINOv2, EVA): timm resamples the weights to 16.
        options["patch_size"] = 2 ** round(math.log2(reductions[-1]))
        with torch.device("meta"):
            whole = timm.create_model(name, pretrained=False, **options)
        network = _features(timm, name, options)
    wanted = _wanted(network.feature_info, name, strides)
    if strides is not None:
        # As it will be built: stages behind the last map are cut off, and what they ask of images does not matter.
        found = _found(network.feature_info)
        indices = [found[stride][0] for stride in wanted]
        network = _features(timm, name, {**options, "out_indices": indices})
    maps, unused = _try_out(network, name, in_channels, wanted, chosen=strides is not None)
    return TimmNetwork(name, options, maps, whole, unused)


def _check_name(timm: ModuleType, name: str) -> None:
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise ValueError(f"name: timm has no network '{base}'{did_you_mean(base, timm.list_models())}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise ValueError(
            f"name: timm has no weights '{tag}' of {base}{did_you_mean(tag, tags)} "
            f"(there are {', '.join(tags) or 'none'})"
        )


def _arguments(cls: type) -> set[str]:
    """Names of what a constructor takes, those it hands up to its bases included."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names |= {p.name for p in parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def _features(timm: ModuleType, name: str, options: Mapping[str, Any]) -> Any:
    try:
        with torch.device("meta"):
            return timm.create_model(name, features_only=True, pretrained=False, **options)
    except Exception as error:  # timm refuses by assertions, AttributeErrors and RuntimeErrors
        raise _unfit(name, f"timm cannot take feature maps from it ({_brief(error)})") from error


def _found(info: Any) -> dict[int, tuple[int, int, int]]:
    """Stride → index among timm's maps, channels, and place among the network's outputs."""
    return {  # of several maps of a stride the last one is the deepest
        stride: (index % len(info.info), channels, position)
        for position, (stride, index, channels) in enumerate(
            zip(info.reduction(), info.out_indices, info.channels(), strict=True)
        )
        if is_power_of_two(stride)
    }


def _wanted(info: Any, name: str, strides: Sequence[int] | None) -> list[int]:
    """The strides asked for, or those of 4 to 32 that there are, ascending."""
    found = _found(info)
    if not found:
        raise _unfit(
            name, f"its maps have strides of {sorted(set(info.reduction()))}, and a backbone's are powers of two"
        )
    wanted = sorted(set(strides)) if strides is not None else sorted(s for s in found if 4 <= s <= 32)
    absent = [stride for stride in wanted if stride not in found]
    if absent or not wanted:
        raise ValueError(
            f"strides of '{name}' are {sorted(found)}, got {absent or wanted}; leave strides out for all of 4 to 32"
        )
    return wanted


def _try_out(
    network: Any, name: str, in_channels: int, wanted: Sequence[int], *, chosen: bool
) -> tuple[dict[int, tuple[int, int]], tuple[str, ...]]:
    """Run it on images of two sizes that no network was made for, and compare its maps with what it says of them.

    Args:
        network: on the meta device.
        name: timm's.
        in_channels: of the images.
        wanted: strides, ascending.
        chosen: whether the user named them, so that all of them must be there.
    """
    found = _found(network.feature_info)
    # The detector pads images to a multiple of the coarsest stride up to 32.
    unit = min(max(wanted), 32)
    network.eval()
    kept, outputs = set(wanted), []
    for height, width in ((5 * unit, 7 * unit), (8 * unit, 3 * unit)):
        try:
            outputs = [as_nchw(network, x) for x in network(torch.empty(1, in_channels, height, width, device="meta"))]
        except Exception as error:  # whatever its layers raise about shapes
            told = (
                "its forward pass cannot be tried out"
                if "meta tensor" in str(error)
                else "it takes images of certain sizes only"
            )
            raise _unfit(name, f"{told} ({_brief(error)})") from error
        for stride in wanted:
            _, channels, position = found[stride]
            if outputs[position].shape != (1, channels, height // stride, width // stride):
                kept.discard(stride)
    lost = sorted({*wanted} - kept)
    if lost and kept and chosen:
        raise ValueError(
            f"strides {lost} of '{name}' give maps of another size than the image's by that; leave them out"
        )
    if not kept:
        raise _unfit(name, f"its maps of stride {lost} do not have the image's size divided by that")
    maps = {stride: found[stride] for stride in sorted(kept)}
    torch.stack([outputs[position].sum() for _, _, position in maps.values()]).sum().backward()
    unused = tuple(key for key, parameter in network.named_parameters() if parameter.grad is None)
    return {stride: (index, channels) for stride, (index, channels, _) in maps.items()}, unused


def as_nchw(network: Any, x: Tensor) -> Tensor:
    """A map in the layout that the network says it has → (N, C, H, W)."""
    return x.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else x


def groups_of(whole: Any, *, coarse: bool) -> dict[str, int]:
    """timm's grouping of a classification network's parameters, by name: 0 is the stem; empty where it has none.

    Args:
        coarse: by stages; else by blocks, as for layer decay.
    """
    try:
        matcher = whole.group_matcher(coarse=coarse)
    except (AttributeError, AssertionError):  # no grouping at all, or none by stages (RDNet)
        return {}
    groups: dict[str, int] = import_timm().models.group_parameters(whole, matcher, reverse=True)
    return groups


def names_in_whole(features: nn.Module, whole: nn.Module) -> dict[str, str]:
    """Names of the feature network's tensors → the classification network's.

    timm's wrappers put the network under `model.` or `body.`, or flatten `stages.0` to `stages_0`.
    """
    known: dict[str, str] = {}
    for name in whole.state_dict():
        known |= dict.fromkeys((f"model.{name}", f"body.{name}", name.replace(".", "_", 1)), name)
    known |= {name: name for name in whole.state_dict()}
    return {name: known[name] for name in features.state_dict() if name in known}


def _unfit(name: str, reason: str) -> ValueError:
    near = difflib.get_close_matches(name, FITTING, n=1, cutoff=0)[0]
    return ValueError(f"name '{name}' cannot be a backbone: {reason}; one that can is '{near}'")


def _brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
