"""Independent parts of a study, one after another or several at once."""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch


def each(work: Callable[[Any], None], items: Iterable[Any], jobs: int = 1) -> None:
    """Call ``work`` on every item, in up to ``jobs`` processes at once; the first failure ends it all.

    Args:
        work: Can be pickled; starts from files, so that it does the same in a process of its own.
        items: Likewise.
        jobs: Processes. With one, everything happens here.
    """
    items = list(items)
    if jobs == 1 or len(items) < 2:
        for item in items:
            work(item)
        return
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(
        min(jobs, len(items)), get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        waiting = [pool.submit(work, item) for item in items]
        try:
            for done in as_completed(waiting):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
