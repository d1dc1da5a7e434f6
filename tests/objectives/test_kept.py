"""Means kept by episode: whole or absent, and only ever of what they are asked for."""

import pytest
import torch

from condensate.objectives.kept import CHECKED, KeptMeans

MEANS = torch.arange(6.0).view(2, 3)


def test_kept__given_back_by_episode_to_another_reader(tmp_path):
    kept = KeptMeans(tmp_path / "in" / "a.means", (2, 3))
    kept.put(4, MEANS)
    kept.put(2, -MEANS)
    other = KeptMeans(kept.file, (2, 3))
    assert torch.equal(other.get(4), MEANS)
    assert torch.equal(other.get(2), -MEANS)
    assert other.get(3) is None
    assert other.get(0) is None
    assert other.get(5) is None


def test_kept__zero_means_are_told_from_a_hole(tmp_path):
    kept = KeptMeans(tmp_path / "a.means", (2, 3))
    kept.put(1, torch.zeros(2, 3))
    assert kept.get(0) is None
    assert torch.equal(kept.get(1), torch.zeros(2, 3))


@pytest.mark.parametrize("left", range(4 * 6 + CHECKED))
def test_kept__a_row_written_in_part__none(tmp_path, left):
    kept = KeptMeans(tmp_path / "a.means", (2, 3))
    kept.put(0, MEANS)
    kept.file.write_bytes(kept.file.read_bytes()[:left])
    assert kept.get(0) is None


def test_kept__damaged_or_of_another_episode__none(tmp_path):
    kept = KeptMeans(tmp_path / "a.means", (2, 3))
    kept.put(0, MEANS)
    row = kept.file.read_bytes()
    kept.file.write_bytes(row + row)
    assert kept.get(0) is not None
    assert kept.get(1) is None
    kept.file.write_bytes(bytes([row[0] ^ 1]) + row[1:])
    assert kept.get(0) is None


def test_kept__no_room__a_warning_not_an_end(tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    kept = KeptMeans(tmp_path / "taken" / "a.means", (2, 3))
    with pytest.warns(UserWarning, match=r"cannot be kept in .*taken .* \$CONDENSATE_CACHE"):
        kept.put(0, MEANS)
    assert kept.get(0) is None
