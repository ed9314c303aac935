"""What is switched on in a model before it trains: the compiler, and activations that are computed twice."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from toolbox.errors import ConfigError, told
from toolbox.schema import Config

logger = logging.getLogger("toolbox")


def apply_switches(config: Config, model: nn.Module) -> None:
    """Switch on what `train.compile` and `train.activation_checkpointing` ask for; names in the state dict stay.

    Raises:
        ConfigError: the model cannot, or there is no compiler.
    """
    settings = config.train
    for name, switch in (("activation_checkpointing", recompute_activations), ("compile", compile_maps)):
        if getattr(settings, name):
            try:
                switch(model)
            except ValueError as error:
                raise ConfigError([config.plan["train"].problem(str(error), name)]) from error


def recompute_activations(model: nn.Module) -> None:
    """Have the backbone keep its blocks' inputs only, and compute what is inside again for the gradient.

    Raises:
        ValueError: its backbone cannot.
    """
    backbone = getattr(model, "backbone", None)
    switch = getattr(backbone, "recompute_activations", None)
    if switch is None:
        what = f"{type(model).__name__} has no backbone" if backbone is None else f"{type(backbone).__name__} has none"
        raise ValueError(
            "activation_checkpointing needs a backbone with a method recompute_activations() "
            f"(toolbox/models/interfaces.py); {what}: leave it out, or add the method"
        )
    switch()


def compile_maps(model: nn.Module) -> None:
    """Compile backbone and neck, for images of any size: what follows has as many shapes as there are regions.

    Raises:
        ValueError: there is no backbone, or a trial of the compiler fails.
    """
    parts = [part for name in ("backbone", "neck") if isinstance(part := getattr(model, name, None), nn.Module)]
    if not parts:
        raise ValueError(f"compile needs a model with a backbone, {type(model).__name__} has none; leave it out")
    device = next(model.parameters()).device
    try_compiler(torch.device("cpu") if device.type == "meta" else device)
    for part in parts:
        part.compile(backend=for_any_size, dynamic=True)  # in place, so that names in the state dict stay
    logger.info("train.compile: the first steps compile backbone and neck, which takes a minute or two")


def for_any_size(graph: Any, inputs: list[Any]) -> Any:
    """torch's own backend, kept from compiling the gradient for one size of images each (seen in torch 2.14).

    Unless it lays maps out channels-last, which ours are, it fixes the strides of a convolution's gradient; and where
    it waits with the gradient until the first is asked for, it fixes those of what the forward pass left.
    """
    from torch._functorch import config as autograd
    from torch._inductor.compile_fx import compile_fx

    early = {"force_non_lazy_backward_lowering": True} if hasattr(autograd, "force_non_lazy_backward_lowering") else {}
    with autograd.patch(early):
        return compile_fx(graph, inputs, config_patches={"force_layout_optimization": True})


def try_compiler(device: torch.device) -> None:
    """Compile a line of arithmetic: on a CPU torch needs a C++ compiler, on a GPU Triton and a C compiler.

    Raises:
        ValueError: it fails; says what it takes.
    """

    def line(x: Tensor) -> Tensor:
        return x * 2 + 1

    try:
        torch.compile(line)(torch.ones(8, device=device))
    except Exception as error:  # a dozen kinds, by which part of the compiler is missing
        needs = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler (g++, or CXX names another)"
        raise ValueError(
            f"compile does not work here: {told(error)}; torch.compile needs {needs}. Install that, or write false"
        ) from error
