"""Pictures of synthetic sets."""

import os

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from condensate.atomic import replacing
from condensate.synthetic import SyntheticDataset

SMALLEST_SIDE, LARGEST_SIDE = 48, 480  # pixels of an image that is enlarged
LONGEST_NAME = 60
MOST_ROWS, MOST_COLUMNS = 20, 10
GAP, HEAD = 4, 18
DEVIATIONS = 2.5


def save_grid(synthetic: SyntheticDataset, path: str | os.PathLike[str]) -> None:
    """Write a PNG with a row of up to ten images for each of up to twenty classes, named on the left.

    Twice: on the left in the colours of the original data, normalisation undone and what leaves 0..1 clipped; on the
    right each image stretched over its own range, since synthetic images often leave 0..1; of that what lies beyond
    ``DEVIATIONS`` standard deviations from its mean is clipped, for products of noise have few values far outside
    (MTT shows its images likewise). Small images are enlarged without smoothing.
    """
    labels = synthetic.labels.argmax(1) if synthetic.labels.ndim == 2 else synthetic.labels
    shown = [label for label in range(len(synthetic.classes)) if bool((labels == label).any())][:MOST_ROWS]
    rows = [(labels == label).nonzero().flatten()[:MOST_COLUMNS] for label in shown]
    names = [" ".join(synthetic.classes[label].split())[:LONGEST_NAME] for label in shown]
    _, height, width = synthetic.parameterization.shape
    scale = max(1, min(-(-SMALLEST_SIDE // min(height, width)), LARGEST_SIDE // max(height, width)))
    cell = (width * scale, height * scale)
    margin = 12 + max(round(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(name)) for name in names)
    panel = max(max(map(len, rows)) * (cell[0] + GAP), 150) + 3 * GAP
    canvas = Image.new("RGB", (margin + 2 * panel, HEAD + GAP + len(rows) * (cell[1] + GAP)), "white")
    write = ImageDraw.Draw(canvas)
    for side, title in enumerate(("true colours, clipped", "each over its own range")):
        write.text((margin + side * panel, 4), title, fill="black")
    for row, (name, index) in enumerate(zip(names, rows, strict=True)):
        top = HEAD + GAP + row * (cell[1] + GAP)
        write.text((6, top + cell[1] // 2 - 6), name, fill="black")
        images = synthetic.images(index).detach()
        images = (images if synthetic.whitening is None else synthetic.whitening.colour(images)).cpu()
        for side, pictures in enumerate((synthetic.pictures(index).cpu(), _stretched(images))):
            for column, picture in enumerate(_rgb(pictures)):
                image = Image.fromarray(picture.numpy()).resize(cell, Image.Resampling.NEAREST)
                canvas.paste(image, (margin + side * panel + column * (cell[0] + GAP), top))
    with replacing(path) as part:
        canvas.save(part, format="PNG")


def _stretched(images: Tensor) -> Tensor:
    """From 0 to 1: from its smallest to its largest value, no further than so many deviations from its mean."""
    deviation, mean = torch.std_mean(images, (1, 2, 3), correction=0, keepdim=True)
    low = torch.maximum(images.amin((1, 2, 3), keepdim=True), mean - DEVIATIONS * deviation)
    high = torch.minimum(images.amax((1, 2, 3), keepdim=True), mean + DEVIATIONS * deviation)
    return ((images - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)


def _rgb(pictures: Tensor) -> Tensor:
    """Pictures (k, C, H, W) of 0..1 as bytes (k, H, W, 3): the first three channels, or the first one thrice."""
    channels = pictures[:, :3] if pictures.shape[1] >= 3 else pictures[:, :1].expand(-1, 3, -1, -1)
    return (channels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
