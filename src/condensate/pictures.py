"""Pictures of synthetic sets."""

import os

import torch
from PIL import Image, ImageDraw

from condensate.atomic import replacing
from condensate.synthetic import SyntheticDataset

SMALLEST_SIDE = 48
MOST_ROWS, MOST_COLUMNS = 20, 10


def save_grid(synthetic: SyntheticDataset, path: str | os.PathLike[str]) -> None:
    """Write a PNG with a row of up to ten images for each of up to twenty classes, named on the left.

    Colours are those of the original data: normalisation is undone and what leaves 0..1 is clipped. Small images are
    enlarged without smoothing.
    """
    labels = synthetic.labels.argmax(1) if synthetic.labels.ndim == 2 else synthetic.labels
    shown = [label for label in range(len(synthetic.classes)) if bool((labels == label).any())][:MOST_ROWS]
    rows = [(labels == label).nonzero().flatten()[:MOST_COLUMNS] for label in shown]
    channels, height, width = synthetic.parameterization.shape
    scale = max(1, -(-SMALLEST_SIDE // min(height, width)))
    cell_height, cell_width, gap = height * scale, width * scale, 4
    margin = 12 + max(round(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(synthetic.classes[c])) for c in shown)
    columns = max(map(len, rows))
    size = (margin + columns * (cell_width + gap), gap + len(rows) * (cell_height + gap))
    canvas = Image.new("RGB", size, "white")
    write = ImageDraw.Draw(canvas)
    for number, (label, index) in enumerate(zip(shown, rows, strict=True)):
        top = gap + number * (cell_height + gap)
        write.text((6, top + cell_height // 2 - 6), synthetic.classes[label], fill="black")
        bytes_ = (synthetic.pictures(index) * 255).round().to(torch.uint8).cpu()
        for column, picture in enumerate(bytes_.expand(-1, 3, -1, -1) if channels == 1 else bytes_[:, :3]):
            image = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize(
                (cell_width, cell_height), Image.Resampling.NEAREST
            )
            canvas.paste(image, (margin + column * (cell_width + gap), top))
    with replacing(path) as part:
        canvas.save(part, format="PNG")
