"""Have glibc keep the memory that it was given: a training step asks for the same gigabytes again and again.

By default glibc gets each large tensor from the system and gives it back, and the system clears every page anew at the
first touch, which on a CPU takes a tenth to a fifth of a step. What the launcher sets here it can still change in a
running process (mallopt), so that nothing is started twice, and processes forked from this one have it too.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

from toolbox.errors import ToolboxError

VARIABLE = "RCNN_MALLOC"
# glibc's own variable → mallopt's number (malloc.h) and value: no blocks of their own from the system, nothing given
# back, and 256 MB at a time.
_SETTINGS = {
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),
    "MALLOC_TOP_PAD_": (-2, 256 * 2**20),
}


def keep_memory(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Set the allocator of this process, unless `RCNN_MALLOC=system`; what a user has set stays.

    Args:
        environment: with `RCNN_MALLOC` and glibc's own variables.

    Returns:
        The names, as glibc's variables, of what was set; none where the C library is not glibc.

    Raises:
        ToolboxError: `RCNN_MALLOC` is neither of its two words.
    """
    wanted = environment.get(VARIABLE, "keep")
    if wanted not in ("keep", "system"):
        raise ToolboxError(f"{VARIABLE} is keep (the default) or system, got '{wanted}'")
    if wanted == "system" or not _is_glibc():
        return []
    tunables = environment.get("GLIBC_TUNABLES", "")
    mallopt = ctypes.CDLL(None).mallopt
    done = []
    for name, (number, value) in _SETTINGS.items():
        # glibc's two names for a setting: MALLOC_TOP_PAD_ and glibc.malloc.top_pad.
        if name not in environment and f"glibc.{name.lower().replace('_', '.', 1).rstrip('_')}" not in tunables:
            mallopt(ctypes.c_int(number), ctypes.c_int(value))
            done.append(name)
    return done


def _is_glibc() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except ValueError:  # musl does not know the name
        return False
