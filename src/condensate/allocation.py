"""Where a program's memory comes from."""

import ctypes
import os
import platform
from collections.abc import Mapping

# Of the GNU C library's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BELOW = 2**28  # bytes; larger blocks, between which gaps would cost the most, go back to the system
NOTHING_TRIMMED = 2**31 - 1
OWN_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_")
OWN_TUNABLES = ("glibc.malloc.mmap_threshold", "glibc.malloc.trim_threshold", "glibc.malloc.mmap_max")


def keep_freed_memory(surroundings: Mapping[str, str] = os.environ) -> bool:
    """Have the GNU C library keep memory that this process frees for what it allocates next; whether it does now.

    By itself it gives every block of more than 32 MiB back to the system, which clears it anew for the next one, and
    networks that are not compiled have many of these: it took up to half of their time. It is a setting of the whole
    process, so a program makes it, never the import. What the user has set for malloc stays as it is, and other
    libraries have no such setting. What was held at the most stays held, but for larger blocks, and until
    ``give_back_free_memory``.
    """
    tunables = surroundings.get("GLIBC_TUNABLES", "")
    own = any(name in surroundings for name in OWN_SETTINGS) or any(name in tunables for name in OWN_TUNABLES)
    if own or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = ((M_MMAP_THRESHOLD, KEPT_BELOW), (M_TRIM_THRESHOLD, NOTHING_TRIMMED))
    return all(library.mallopt(*setting) == 1 for setting in settings)


def give_back_free_memory() -> None:
    """Give the system the memory that is kept for what comes next, where that needs blocks of other sizes.

    Else the peaks of two kinds of work would add up. It takes milliseconds, and with another C library does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
