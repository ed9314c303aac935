"""Which call of torchrun started this process, and whether it is a restart: torchrun alone does not say.

Its count of restarts is a machine's own, and goes up after a refusal as after a crash. So the first process of a run
writes down which torchrun it is of, once it owns the run folder, and one that finds that is started anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from toolbox.orphans import under_torchrun
from toolbox.weights import replacing


@dataclass(frozen=True)
class Launch:
    """A process and its torchrun.

    Attributes:
        run: torchrun's id of the run; "none" where it was given none.
        host: the machine's name.
        agent: process id of torchrun.
        process: of this one.
    """

    run: str
    host: str
    agent: int
    process: int

    @classmethod
    def own(cls) -> Launch | None:
        """This process's; None without torchrun."""
        if not under_torchrun():
            return None
        return cls(os.environ["TORCHELASTIC_RUN_ID"], socket.gethostname(), os.getppid(), os.getpid())

    def restarts(self, before: Launch) -> bool:
        """Whether this process takes the place of another one of the same call of torchrun."""
        if self.host == before.host:
            return self.agent == before.agent and self.process != before.process
        return self.run == before.run != "none"  # the first process may be on another machine then

    @classmethod
    def read(cls, file: Path) -> Launch | None:
        """What `write` left; None where it left nothing."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        return None

    def write(self, file: Path) -> None:
        """Write it down for the processes to come.

        Raises:
            StorageError: it cannot be written.
        """
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")


def restarted(file: Path) -> bool:
    """Whether this process was started in place of one that wrote `file` and failed."""
    own, before = Launch.own(), Launch.read(file)
    return own is not None and before is not None and own.restarts(before)
