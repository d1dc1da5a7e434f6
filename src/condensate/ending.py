"""How a process ends: when it is asked to, and with the one that started it."""

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.connection import wait
from threading import Thread, current_thread, main_thread


class Terminated(KeyboardInterrupt):
    """The process was asked to end, by SIGTERM, and does so as it would by Ctrl-C: with its helpers."""


@contextmanager
def raised_when_terminated() -> Iterator[None]:
    """Have SIGTERM raise ``Terminated`` in the block, the first time; nothing changes outside the main thread."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _terminate:
            signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # who ends a group of processes sends it twice
    raise Terminated


def end_with_parent() -> None:
    """Let this process, if another started it, end with that one, however that ends, and soon: what it imported is
    not looked through for garbage any more, which takes most of a second at the end.
    """
    parent = parent_process()
    if parent is not None:
        gc.freeze()
        Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
