"""Putting tensors into a model, with everything that does not fit in one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from toolbox.errors import CheckpointError

_SHOWN = 5  # findings listed per kind
_OPTIONAL = ".num_batches_tracked"  # a counter of batch norm that no forward with a fixed momentum reads


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Copy `state_dict` into `model`; names and shapes must be the model's.

    Args:
        model: takes the values; its dtypes and devices stay.
        state_dict: name → tensor.
        source: where the tensors come from, for messages.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape; the model is left unchanged.
    """
    check_fits(model, state_dict, source)
    known = model.state_dict()
    model.load_state_dict({name: tensor for name, tensor in state_dict.items() if name in known}, strict=False)


def check_fits(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """See that `load_weights` would succeed; a model on the meta device is enough.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state_dict and not name.endswith(_OPTIONAL)]
    unexpected = [name for name in state_dict if name not in own and not name.endswith(_OPTIONAL)]
    shared = [name for name in own if name in state_dict]
    misshapen = [
        f"{name} {tuple(state_dict[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in shared
        if state_dict[name].shape != own[name].shape
    ]
    if missing or unexpected or misshapen:
        findings = [
            f"{source}: the weights do not fit the model: {len(shared) - len(misshapen)} of its {len(own)} tensors fit",
            *_listed("missing from the file", missing),
            *_listed("in the file but not in the model", unexpected),
            *_listed("of another shape", misshapen),
            "use the config the weights were trained with, or weights of this model"
            " (another number of classes changes the last layers of the heads)",
        ]
        raise CheckpointError("\n".join(findings))


def _listed(kind: str, findings: Sequence[str]) -> list[str]:
    if not findings:
        return []
    more = f", and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else ""
    return [f"  {len(findings)} {kind}: {', '.join(findings[:_SHOWN])}{more}"]
