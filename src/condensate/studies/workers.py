"""Independent parts of a study, one after another or several at once."""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import torch

from condensate.allocation import keep_freed_memory
from condensate.ending import end_with_parent
from condensate.errors import UserError


def each(work: Callable[[Any], None], items: Iterable[Any], jobs: int = 1) -> None:
    """Call ``work`` on every item, in up to ``jobs`` processes at once; the first failure ends it all.

    Args:
        work: Can be pickled; starts from files, so that it does the same in a process of its own.
        items: Likewise.
        jobs: Processes. With one, everything happens here.

    Raises:
        UserError: A process was killed; whatever ``work`` raised first is raised as it came.
    """
    items = list(items)
    if jobs == 1 or len(items) < 2:
        for item in items:
            work(item)
        return
    threads = torch.get_num_threads()
    count = min(jobs, len(items))
    with ProcessPoolExecutor(count, get_context("spawn"), initializer=_begin, initargs=(threads,)) as pool:
        for _ in range(count):  # an executor watches over a process once it has a result after its start
            pool.submit(_nothing)
        waiting = [pool.submit(work, item) for item in items]
        try:
            for done in as_completed(waiting):
                done.result()
        except BaseException as error:
            for process in list((pool._processes or {}).values()):  # what they were at goes on when the study does
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    f"one of {jobs} processes was killed before its work was done, for want of memory perhaps; what "
                    "was finished is kept: go on with --resume and fewer --jobs"
                ) from error
            raise


def _begin(threads: int) -> None:
    """Set a process up."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    end_with_parent()


def _nothing() -> None:
    """Have a process and a result."""
