"""What a run has been through: steps that were skipped, and returns to an earlier state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass
class Setbacks:
    """Counts that decide how a run goes on; part of its checkpoints, so that a resumed run decides alike.

    Attributes:
        skipped: steps that were skipped.
        in_a_row: steps that were skipped or rolled back since the last one that went well.
        rolled_back: returns to the state that was returned to last.
        rolled_to: steps done in that state; -1 before the first return.
        capsules: written, or given up for want of space.
        unwritten: steps without a capsule, because there were enough.
    """

    skipped: int = 0
    in_a_row: int = 0
    rolled_back: int = 0
    rolled_to: int = -1
    capsules: int = 0
    unwritten: int = 0

    def state_dict(self) -> dict[str, int]:
        """Plain values."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take over what `state_dict` gave."""
        vars(self).update(state)

    def __str__(self) -> str:
        """`2 steps skipped, capsules of the first 3 kept`; empty where all went well."""
        said = []
        if self.skipped:
            said.append(f"{self.skipped} step{'s' * (self.skipped > 1)} skipped")
        if self.rolled_to >= 0:
            said.append(f"last rolled back to the state after step {self.rolled_to}")
        if self.unwritten:
            said.append(f"{self.unwritten} of them without a capsule")
        return ", ".join(said)
