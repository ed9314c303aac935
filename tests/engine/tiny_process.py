"""What torchrun starts in test_distributed.py: the tiny detector's run, with what is asked for in JSON.

Arguments: `run`, `settings` of section `train`, `resume`, and `end`: what process `rank` does once after `step`, `die`
(kill -9 of itself), `orphan` (kill -9 of torchrun) or `stop` (SIGTERM to itself).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import TinyImages, tiny_config

from toolbox.engine import Progress, train


class Seven(TinyImages):
    """An odd number, so that processes have unequal shares of it."""

    def __init__(self) -> None:
        super().__init__(length=7)


def main() -> None:
    asked = json.loads(sys.argv[1])
    config = tiny_config.__wrapped__()(model={"dropout": 0.5}, val=Seven, **asked["settings"])
    end = asked.get("end")

    def act(progress: Progress) -> None:
        mine = end is not None and int(os.environ.get("RANK", "0")) == end["rank"] and progress.phase == "train"
        if not mine or progress.done != end["step"] or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
            return
        if end["what"] == "orphan":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)  # the system kills this process too
        os.kill(os.getpid(), signal.SIGKILL if end["what"] == "die" else signal.SIGTERM)
        time.sleep(0.05)  # for its handler

    result = train(config, asked["run"], resume=asked.get("resume", False), on_progress=act)
    Path(asked["run"]).with_suffix(f".result-{os.environ.get('RANK', '0')}").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
