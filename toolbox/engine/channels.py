"""Whether everything that a config does with its images is possible with their number of channels."""

from __future__ import annotations

from toolbox.data.interfaces import Dataset, channels_of
from toolbox.errors import ConfigError, counted
from toolbox.models.builder import plans_in
from toolbox.schema import Config


def check_channels(config: Config, train_set: Dataset, val_set: Dataset | None = None) -> None:
    """See that training and validation images have as many channels, and that each transform takes them.

    Raises:
        ConfigError: a problem at `data.val`, and one at each transform that does not.
    """
    channels = channels_of(train_set)
    problems = []
    if val_set is not None and config.data.val is not None and channels_of(val_set) != channels:
        here = counted(channels_of(val_set), "channel")
        message = f"its images have {here}, those of data.train {channels}; give both the same"
        problems.append(config.data.val.problem(message))
    for plan in plans_in(config.data.transforms):
        allowed = getattr(plan.cls, "channels", None)
        if allowed is not None and channels not in allowed:
            fits = " or ".join(map(str, allowed))
            fits += " channel" if fits == "1" else " channels"
            message = f"{plan.cls.__name__} edits images of {fits}, those of data.train have {channels}"
            problems.append(plan.problem(f"{message}; remove it, or write a transform for them"))
        given = plan.given.get("fill")
        if given is not None and len(given) not in (3, channels):
            values = counted(len(given), "value")
            message = f"{values} for images of {counted(channels, 'channel')}; give one for each, or leave it out"
            problems.append(plan.problem(message, "fill"))
    if problems:
        raise ConfigError(problems)
