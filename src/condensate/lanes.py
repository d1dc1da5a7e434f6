"""Streams of a GPU beside one another, for small work that keeps it idle alone."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

LANES = 8  # of a GPU


class Lanes:
    """Streams of a GPU, for work that does not wait for one another; elsewhere one, which is the usual one.

        with lanes as lane:  # the work before is done first
            for place, own in enumerate(several):
                with lane(place):
                    ...
        # from here on what all lanes made can be used

    What a lane gives must be held until all are left, for its memory is taken again by what comes next on that lane.

    Args:
        count: How many, on a GPU.
        device: Of the work.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        several = device.type == "cuda" and torch.cuda.is_available()
        self._device = device
        self._streams = [torch.cuda.Stream(device) for _ in range(count)] if several else []

    def __len__(self) -> int:
        """How many there are."""
        return max(1, len(self._streams))

    def __enter__(self) -> Callable[[int], AbstractContextManager[object]]:
        """Begin on all lanes."""
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(self._device))
        return self._lane

    def __exit__(self, *_: object) -> None:
        """Go on when all lanes are done."""
        for stream in self._streams:
            torch.cuda.current_stream(self._device).wait_stream(stream)

    def _lane(self, place: int) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._streams[place % len(self)]) if self._streams else nullcontext()


@cache
def lanes(device: torch.device) -> Lanes:
    """The lanes of a device."""
    return Lanes(LANES, device)
