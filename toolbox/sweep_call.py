"""What a sweep was asked for beside its file, kept in its folder: its table is then that of its runs, unasked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from toolbox.errors import CheckpointError

NAME = "call.json"


@dataclass(frozen=True)
class SweepCall:
    """What stood on the command line.

    Attributes:
        overrides: `key=value`, of all variants.
        seeds: instead of the file's, or None.
        small: whether the small form was asked for.
    """

    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    small: bool = False

    def to_json(self) -> str:
        """As text; `read` is the inverse."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> SweepCall | None:
        """What was kept in a sweep's folder; None where nothing has been trained.

        Raises:
            CheckpointError: it is not what a sweep writes.
        """
        file = folder / NAME
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            overrides, seeds, small = kept["overrides"], kept["seeds"], kept.get("small", False)
            return cls(tuple(map(str, overrides)), None if seeds is None else tuple(map(int, seeds)), bool(small))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError, LookupError) as error:
            why = f"{type(error).__name__}: {error}"
            raise CheckpointError(
                f"{file}: not what a sweep writes ({why}); remove it, and repeat the overrides"
            ) from error
