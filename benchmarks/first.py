"""What a program does before its first episode: python -m benchmarks.first published|command FOLDER DEVICE."""

import gc
import json
import os
import sys
import time
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import NoReturn


def published(folder: str, device: str) -> object:
    """All training images read item by item, then divided by class; noise to learn and what updates it."""
    import torch

    from benchmarks.published import read_images

    real = [images.to(device) for images in read_images(Path(folder), (0.49, 0.48, 0.45), (0.2, 0.2, 0.2))]
    made = torch.randn(10, 3, 32, 32, device=device, requires_grad=True)
    return real, made, torch.optim.SGD([made], lr=1.0, momentum=0.5)


TOOK = "took: "
PARTS = "import torch", "import condensate", "recipe, data and run folder"


class Begun(BaseException):
    """The first episode would begin here."""


def ours(folder: str, device: str) -> None:
    """The whole command up to its first episode, the decoded images in its cache."""
    from condensate import cli
    from condensate.objectives import DistributionMatching

    def episode(*_: object) -> NoReturn:
        raise Begun

    unchanged = DistributionMatching.episode
    DistributionMatching.episode = episode  # type: ignore[method-assign, assignment]
    apart = ["--compute.compile", "never"]  # compilation is: torch.compile alone takes a second to be imported
    out = mkdtemp()  # left there: to take it away is no part of it
    try:
        cli.main(["run", "cifar10-dm-ipc1", "--data.path", folder, "--device", device, "--out", out, *apart])
    except Begun:
        return
    finally:
        DistributionMatching.episode = unchanged  # type: ignore[method-assign]
    raise RuntimeError("the command ended before its first episode; what it said is above")


def command(folder: str, device: str) -> None:
    """All that the program imports, what it sets for its process, and then ours; says what took how long."""
    moments = [time.perf_counter()]
    gc.disable()  # as our modules have it while they are imported, PyTorch by the first of them
    import_module("torch")
    moments.append(time.perf_counter())
    program = import_module("condensate.__main__")
    gc.enable()
    gc.freeze()
    program.keep_freed_memory()
    moments.append(time.perf_counter())
    ours(folder, device)
    moments.append(time.perf_counter())
    seconds = [end - start for start, end in pairwise(moments)]
    print(TOOK + json.dumps(dict(zip(PARTS, seconds, strict=True))), flush=True)


if __name__ == "__main__":
    {"published": published, "command": command}[sys.argv[1]](*sys.argv[2:])
    os._exit(0)  # the first episode would begin here: what a process does to end is no part of it
