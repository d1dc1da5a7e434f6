"""A program up to where its first episode begins: python -m benchmarks.first published|ours FOLDER DEVICE."""

import sys
from pathlib import Path

way, folder, device = sys.argv[1:]
if way == "published":
    import torch

    from benchmarks.published import read_images

    real = [images.to(device) for images in read_images(Path(folder), (0.49, 0.48, 0.45), (0.2, 0.2, 0.2))]
    pixels = torch.randn(10, 3, 32, 32, device=device, requires_grad=True)
else:
    import torch

    from condensate.assemble import compute, image_data, objective, settle_compute, start
    from condensate.sheets import resolve
    from condensate.streams import Streams

    where = torch.device(device)
    recipe = resolve("cifar10-dm-ipc1", {"data": {"path": folder}})
    data = image_data(recipe, where)
    recipe = settle_compute(recipe, data.shape, 10, 10, where)
    synthetic = start(recipe, data, Streams(0, where))
    matching = objective(recipe, data, compute(recipe, where), Streams(0, where))
