"""Pictures of sets whose images or class names are not as usual."""

import pytest
import torch
from PIL import Image

from condensate import Pixels, Streams, SyntheticDataset, class_major
from condensate.pictures import save_grid


@pytest.mark.parametrize("shape", [(1, 512, 1), (3, 1, 512), (1, 1, 1), (3, 200, 4)])
def test_save_grid__thin_images__a_picture_of_bounded_size(shape, tmp_path):
    stored = Pixels(6, shape)
    stored.reset_(Streams(0)("x"))
    save_grid(SyntheticDataset(stored, class_major(3, 2)), tmp_path / "images.png")
    with Image.open(tmp_path / "images.png") as picture:
        assert max(picture.size) < 3000


def test_save_grid__names_of_several_lines_or_without_end__on_one_line(tmp_path):
    stored = Pixels(2, (1, 8, 8))
    stored.reset_(Streams(0)("x"))
    for names in (["a\nb\tc", "x" * 5000], ["a b c", "x" * 60]):
        data = SyntheticDataset(stored, torch.tensor([0, 1]), classes=names)
        save_grid(data, tmp_path / f"{len(names[1])}.png")
    assert (tmp_path / "5000.png").read_bytes() == (tmp_path / "60.png").read_bytes()
