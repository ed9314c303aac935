"""Going on with a run for more steps, or fewer, than it was started with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from toolbox.engine.checkpoint import load_checkpoint
from toolbox.engine.run_folder import RunFolder
from toolbox.errors import ConfigError

if TYPE_CHECKING:
    from toolbox.schema import Config


def check_length(config: Config, folder: RunFolder) -> bool:
    """Whether a run may be resumed with the config's number of steps.

    It may where the run is then the same as if it had been started with that number: where the schedule gives the same
    rates for all steps that are done (`Constant`, or milestones and a warm-up in steps, not in parts of the run).

    Raises:
        ConfigError: the rates would have been others, or more steps are done; and how to go on.
    """
    if not (folder.config.exists() and folder.checkpoint.exists()):
        return False
    before = yaml.safe_load(folder.config.read_text(encoding="utf-8")).get("train", {}).get("steps")
    now = config.train.steps
    if before is None or before == now:
        return False
    done = load_checkpoint(folder.checkpoint)["step"]
    schedule = config.train.schedule
    was, will = schedule.build(steps=before), schedule.build(steps=now)
    other = next((step for step in range(done) if was(step) != will(step)), None)
    if done <= now and other is None:
        return True
    if other is None:
        why = f"{done} steps are done already"
    else:
        why = f"the schedule of {now} steps has another learning rate from step {other + 1} on"
    message = (
        f"the run was started for {before} steps, and {why}, so it would be no run of {now}; train on from its weights "
        f"in a new run: rcnn train CONFIG train.init_from={folder.path} train.steps=… --run NEW (a schedule that does "
        "not depend on the length, as Constant or milestones and warmup_steps in steps, can be lengthened)"
    )
    raise ConfigError([config.plan["train"].problem(message, "steps")])
