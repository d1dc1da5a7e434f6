"""Pictures of sets whose images or class names are not as usual."""

import pytest
import torch
from PIL import Image

from condensate import Pixels, Streams, SyntheticDataset, class_major
from condensate.pictures import _stretched, save_grid


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


def test_stretched__one_value_far_outside__the_others_are_told_apart():
    images = torch.randn(2, 3, 32, 32, generator=Streams(0)("x"))
    images[0, 0, 0, 0] = 100.0
    shown = _stretched(images)
    assert shown.amin() == 0
    assert shown.amax() == 1
    assert shown[0, 0, 0, 0] == 1
    assert shown[0, 1:].std() > 0.1  # from the smallest to the largest value it would be 0.01
    assert (_stretched(torch.full((1, 1, 1, 1), 7.0)) == 0).all()


def test_stretched__within_two_deviations__from_smallest_to_largest_value():
    images = torch.tensor([0.0, 3.0, 1.0, 2.0]).view(1, 1, 2, 2)
    torch.testing.assert_close(_stretched(images), images / 3)
