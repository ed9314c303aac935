"""Renaming a state dict: every tensor gets our name, is left out for a reason, or is refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from toolbox.errors import CheckpointError

logger = logging.getLogger("toolbox")

Rules = Sequence[tuple[str, str]]  # pattern of a whole name → replacement, or reason

_SHOWN = 3  # names listed per reason


def rename(
    state: Mapping[str, Tensor], names: Rules, left_out: Rules, refused: Rules, origin: str
) -> dict[str, Tensor]:
    """Rename the tensors of another project.

    Args:
        state: under the project's names.
        names: pattern → our name, with its groups as `re.Match.expand` writes them.
        left_out: pattern → why it is not needed; said in the log.
        refused: pattern → what the model has that ours lacks.
        origin: the project, for messages.

    Returns:
        Our name → tensor.

    Raises:
        CheckpointError: a tensor has no counterpart here, with every kind of such tensors; or two have the same.
    """
    renamed: dict[str, Tensor] = {}
    reasons: dict[str, list[str]] = {}
    unknown: dict[str, list[str]] = {}
    for name, tensor in state.items():
        own = _by_rule(name, names)
        if own is not None:
            if own in renamed:
                raise CheckpointError(f"'{name}' of {origin} is a second '{own}'; give a file that holds one model")
            renamed[own] = tensor
            continue
        reason = _by_rule(name, left_out)
        if reason is not None:
            reasons.setdefault(reason, []).append(name)
        else:
            unknown.setdefault(_by_rule(name, refused) or "no part of ours is named so", []).append(name)
    if unknown:
        found = "\n".join(f"  {_listed(names)}: {reason}" for reason, names in unknown.items())
        raise CheckpointError(
            f"{sum(map(len, unknown.values()))} of {len(state)} tensors of {origin} have no counterpart here\n{found}"
        )
    for reason, left in reasons.items():
        logger.info("%s: left out %s: %s", origin, _listed(left), reason)
    return renamed


def _by_rule(name: str, rules: Rules) -> str | None:
    for pattern, replacement in rules:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(replacement)
    return None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
