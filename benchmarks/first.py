"""What a program does before its first episode: python -m benchmarks.first published|command FOLDER DEVICE."""

import gc
import os
import sys
from importlib import import_module
from pathlib import Path


def published(folder: str, device: str) -> object:
    """All training images read item by item, then divided by class."""
    import torch

    from benchmarks.published import read_images

    real = [images.to(device) for images in read_images(Path(folder), (0.49, 0.48, 0.45), (0.2, 0.2, 0.2))]
    return real, torch.randn(10, 3, 32, 32, device=device, requires_grad=True)


def ours(folder: str, device: str) -> object:
    """The recipe, the decoded images from the cache, the set and its objective."""
    import torch

    from condensate.assemble import image_data, objective, start
    from condensate.settling import compute, settle_compute
    from condensate.sheets import resolve
    from condensate.streams import Streams

    where = torch.device(device)
    apart = {"compile": "never"}  # compilation is: torch.compile alone takes a second to be imported
    recipe = resolve("cifar10-dm-ipc1", {"data": {"path": folder}, "compute": apart})
    data = image_data(recipe, where)
    recipe = settle_compute(recipe, data.shape, 10, 10, where)
    return start(recipe, data, Streams(0, where)), objective(
        recipe, data, compute(recipe, data.shape, where), Streams(0, where)
    )


def command(folder: str, device: str) -> object:
    """All that the command line imports, what it sets for its process, and then ours."""
    program = import_module("condensate.__main__")
    gc.freeze()
    program.keep_freed_memory()
    return ours(folder, device)


if __name__ == "__main__":
    {"published": published, "command": command}[sys.argv[1]](*sys.argv[2:])
    os._exit(0)  # the first episode would begin here: what a process does to end is no part of it
