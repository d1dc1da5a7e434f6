"""Figures are readable files, whole or absent."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from condensate import UserError
from condensate.figures import save_distances, save_roc

DIAGONAL = np.linspace(0, 1, 1001)
CURVES = {"lira": (DIAGONAL, DIAGONAL**0.5), "threshold": (DIAGONAL, DIAGONAL)}
PAIRS = {"digits-dm": (np.arange(10.0), np.arange(1.0, 11)), "random": (np.zeros(10), np.arange(1.0, 11))}


def inked(path: Path) -> float:
    """Share of the picture that is not white."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return float((np.asarray(image.convert("L")) < 250).mean())


def height(path: Path) -> int:
    with Image.open(path) as image:
        return image.height


def test_roc__is_a_picture_in_a_folder_that_is_made(tmp_path: Path):
    save_roc(CURVES, tmp_path / "new" / "roc.png", "digits-dm, 32 shadows")
    assert 0.005 < inked(tmp_path / "new" / "roc.png") < 0.2
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["roc.png"]


@pytest.mark.parametrize("fpr", [[0, 0, 1], [0, 1e-5, 1], [0, 1, 1]])
@pytest.mark.parametrize("tpr", [[0, 1, 1], [0, 0, 1]])
def test_roc__of_perfect_and_of_useless_scores_can_be_drawn(fpr: list[float], tpr: list[float], tmp_path: Path):
    save_roc({"lira": (fpr, tpr)}, tmp_path / "roc.png", "one curve")
    assert inked(tmp_path / "roc.png") > 0.005


def test_distances__have_a_row_for_each_set(tmp_path: Path):
    for number in (1, 2):
        save_distances(dict(list(PAIRS.items())[:number]), tmp_path / f"{number}.png")
    assert 0.005 < inked(tmp_path / "2.png") < 0.2
    assert height(tmp_path / "2.png") > 1.4 * height(tmp_path / "1.png")


def test_figures__are_repeated_byte_by_byte(tmp_path: Path):
    for name in ("first.png", "second.png"):
        save_distances(PAIRS, tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_figures__of_nothing_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="at least one ROC curve"):
        save_roc({}, tmp_path / "roc.png", "none")
    with pytest.raises(UserError, match="at least one set"):
        save_distances({}, tmp_path / "distances.png")
    assert not list(tmp_path.iterdir())


def test_figures__leave_pyplot_alone_and_matplotlib_unloaded_until_drawn(tmp_path: Path):
    program = f"""
import sys, condensate.figures, condensate.privacy
assert not {{"matplotlib", "sklearn"}} & set(sys.modules)
condensate.figures.save_roc({{"a": ([0, 0.5, 1], [0, 0.5, 1])}}, {str(tmp_path / "roc.png")!r}, "a")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
