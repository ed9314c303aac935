"""The compiled mask geometry (`csrc/masks.pyx`), or None where it was not built."""

from __future__ import annotations

import functools
import warnings
from types import ModuleType


@functools.cache
def kernels() -> ModuleType | None:
    """The compiled module; without it None, with one warning."""
    try:
        import toolbox.masks._masks as compiled
    except ImportError as error:
        warnings.warn(
            f"toolbox was installed without its compiled mask geometry ({error}); masks take the slower way through "
            "numpy and pycocotools. To compile it, reinstall with a C++ compiler and without TOOLBOX_NATIVE=0.",
            stacklevel=2,
        )
        return None
    return compiled
