"""Processes that decode images of Arrow files."""

import json
import math
import mmap
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Condition, Event, Thread, current_thread
from typing import IO, NamedTuple
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

from condensate.data import imagefile
from condensate.data.imagefile import FINE, REPLY, REQUEST, ImageError

AT_ONCE = 64  # images decoded for one request...
AT_ONCE_BYTES = 1 << 20  # ...or fewer, if they are large
PIPE = 1 << 20  # bytes that fit between two processes, where the system lets one choose


class Job:
    """Images being decoded.

    Args:
        pixels: (k, C, H, W), uint8, filled as they come.
        parts: Requests they are divided into.
    """

    def __init__(self, pixels: Tensor, parts: int) -> None:
        self.pixels, self._left, self._done = pixels, parts, Event()
        self._error: Exception | None = None
        if not parts:
            self._done.set()

    def result(self) -> Tensor:
        """The images, waited for.

        Raises:
            ImageError: One cannot be decoded; its row is the second argument.
            RuntimeError: A process ended that should have gone on.
        """
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self.pixels

    def advance(self, error: Exception | None = None) -> None:
        """A part is done, or has failed; parts of one job are told one at a time."""
        self._left -= 1
        self._error = self._error or error
        if error is not None or not self._left:
            self._done.set()


class _Request(NamedTuple):
    """A part of a job."""

    file: int
    rows: np.ndarray
    target: memoryview
    job: Job


class _Queue:
    """Requests no process has taken yet; shared by the threads that talk to the processes."""

    def __init__(self) -> None:
        self.waiting: deque[_Request] = deque()
        self.changed, self.open = Condition(), True
        self.broken: Exception | None = None

    def put(self, requests: Sequence[_Request], first: bool) -> None:
        """Add requests, before all others if they are ``first``."""
        with self.changed:
            if self.broken is not None:
                raise self.broken
            self.waiting.extendleft(reversed(requests)) if first else self.waiting.extend(requests)
            self.changed.notify_all()

    def take(self) -> _Request | None:
        """The next request, waited for; None where there will be none."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or not self.open)
            return self.waiting.popleft() if self.open else None

    def told(self, request: _Request, error: Exception | None = None) -> None:
        """A request is done or failed."""
        with self.changed:
            request.job.advance(error)

    def forget(self, jobs: set[Job]) -> None:
        """Drop what waits of these jobs."""
        with self.changed:
            self.waiting = deque(request for request in self.waiting if request.job not in jobs)

    def close(self, error: Exception | None = None) -> None:
        """No more requests; those that wait fail if there is an error."""
        with self.changed:
            self.open, self.broken = False, self.broken or error
            for request in self.waiting:
                request.job.advance(error)
            self.waiting.clear()
            self.changed.notify_all()


class Pool:
    """Processes that decode, started when first needed, ended with this object or this process, however it ends.

    They are not forked and do not import the main module, so it does not matter what this process has started or
    how its script is written. A process that dies is an error of what it was at, and of all that comes after.

    Args:
        files: Arrow files.
        shape: Of a decoded image, (C, H, W).
        size: As for ``imagefile.pixels``.
        channels: Likewise.
        workers: How many processes; with none, images are decoded when they are asked for, here.
    """

    def __init__(
        self, files: Sequence[Path], shape: tuple[int, int, int], size: int | None, channels: int | None, workers: int
    ) -> None:
        self.shape, self.size, self.channels, self.workers = shape, size, channels, workers
        self.rows = [imagefile.mapped(str(file)) for file in files]
        self.processes: list[subprocess.Popen[bytes]] = []
        self._queue, self._owner = _Queue(), os.getpid()
        told = {"files": list(map(str, files)), "shape": shape, "size": size, "channels": channels}
        self._command = [sys.executable, "-P", imagefile.__file__, json.dumps(told)]

    def decode(self, file: int, rows: np.ndarray, *, first: bool = False, pin: bool = False) -> Job:
        """Begin to decode the images of ``rows`` (k,), int64, of a file.

        Args:
            file: Its number.
            rows: Of the images.
            first: Before all else that waits.
            pin: Whether the memory is pinned, to be copied to a GPU.
        """
        size = min(AT_ONCE, max(AT_ONCE_BYTES // math.prod(self.shape), 1))
        parts = np.split(rows, range(size, len(rows), size)) if len(rows) else []
        job = Job(_room((len(rows), *self.shape), pin), len(parts))
        target, start, requests = job.pixels.numpy(), 0, []
        for part in parts:
            requests.append(_Request(file, part, memoryview(target[start : start + len(part)].data).cast("B"), job))
            start += len(part)
        if self.workers:
            self._start()
            self._queue.put(requests, first)
        elif parts:
            self._decode_here(file, rows, job)
        return job

    def forget(self, jobs: set[Job]) -> None:
        """Decode no more of these than is under way."""
        self._queue.forget(jobs)

    def _decode_here(self, file: int, rows: np.ndarray, job: Job) -> None:
        try:
            self.rows[file].fill(job.pixels.numpy(), rows.tolist(), self.size, self.channels)
        finally:
            job._done.set()

    def _start(self) -> None:
        if self.processes and self._owner == os.getpid():
            return
        if self._owner != os.getpid():  # forked: the processes are those of the parent
            self._queue, self._owner = _Queue(), os.getpid()
        self.processes, threads = [], []
        for _ in range(self.workers):
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            _widen(process.stdout)
            threads.append(Thread(target=_serve, args=(process, self._queue), daemon=True))
            threads[-1].start()
            self.processes.append(process)
        finalize(self, _end, self.processes, threads, self._queue, os.getpid())


def _room(shape: tuple[int, ...], pin: bool) -> Tensor:
    """Room for pixels, uint8, straight from the system: what goes through here would leave the heap full of holes."""
    if pin or not math.prod(shape) or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
    room = mmap.mmap(-1, math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(room, dtype=torch.uint8).view(shape)


def _serve(process: "subprocess.Popen[bytes]", queue: _Queue) -> None:
    """Hand requests to a process, one after another, and its pixels to those who asked."""
    asked, answers = process.stdin, process.stdout
    assert asked is not None
    assert answers is not None
    while (request := queue.take()) is not None:
        try:
            asked.write(REQUEST.pack(request.file, len(request.rows)) + request.rows.astype(np.int64).tobytes())
            asked.flush()
            row, size = REPLY.unpack(_exactly(answers, REPLY.size))
            if row != FINE:
                queue.told(request, ImageError(_exactly(answers, size).decode(), row))
            elif answers.readinto(request.target) == size == len(request.target):  # type: ignore[attr-defined]
                queue.told(request)
            else:
                raise EOFError
        except (OSError, EOFError, ValueError) as error:
            if queue.open:
                process.kill()  # if it only says no more
                ended = RuntimeError(f"a process that decodes images ended, status {process.wait()}; is memory short?")
                ended.__cause__ = error
                queue.close(ended)
            queue.told(request, queue.broken or error)
            return


def _widen(pipe: IO[bytes] | None) -> None:
    """Let a request's pixels through at once, where the system allows it."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        assert pipe is not None
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    found = stream.read(count)
    if len(found) < count:
        raise EOFError
    return found


def _end(processes: "list[subprocess.Popen[bytes]]", threads: list[Thread], queue: _Queue, owner: int) -> None:
    """End processes, which hold nothing that would be lost."""
    if os.getpid() != owner:
        return
    queue.close()
    for process in processes:
        process.kill()
    for process, thread in zip(processes, threads, strict=True):
        process.wait()
        if thread is not current_thread():
            thread.join()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):  # of what it had not been told yet
                    stream.close()
