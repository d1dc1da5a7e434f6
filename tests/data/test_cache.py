import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from condensate import data
from condensate.data import cache, load


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> str:
    rows = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("ä", "b"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(3):
                image = Image.fromarray(rows.integers(256, size=(6, 6, 3), dtype=np.uint8))
                image.save(tmp_path / "photos" / split / name / f"{i}.png")
    return str(tmp_path / "photos")


def fail(*_: object) -> None:
    raise AssertionError("decoded again")


def the_file(kept: Path) -> Path:
    (file,) = kept.iterdir()
    return file


def test_second_load__decodes_nothing(kept: Path, photos: str, monkeypatch: pytest.MonkeyPatch):
    first = load(path=photos)
    monkeypatch.setattr(data, "decode", fail)
    second = load(path=photos)
    assert torch.equal(first.train.raw, second.train.raw)
    assert torch.equal(first.test.labels, second.test.labels)
    assert (first.classes, first.mean, first.fingerprint) == (second.classes, second.mean, second.fingerprint)
    assert second.classes == ("b", "ä")


def test_second_load__of_digits__needs_no_scikit_learn(kept: Path):
    load()
    code = "import sys, condensate.data as d; d.load(); print([m for m in ('sklearn', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_copy_of_the_files__is_the_same_data(kept: Path, photos: str, monkeypatch: pytest.MonkeyPatch):
    load(path=photos)
    shutil.copytree(photos, photos + " copy")
    monkeypatch.setattr(data, "decode", fail)
    load(path=photos + " copy")


def test_options__that_change_pixels__are_kept_apart(kept: Path, photos: str):
    shapes = [load(path=photos, **options).shape for options in ({}, {"size": 4}, {"channels": 1}, {"size": 4})]
    assert shapes == [(3, 6, 6), (3, 4, 4), (1, 6, 6), (3, 4, 4)]
    assert len(list(kept.iterdir())) == 3


def test_options__that_do_not__share_one_file(kept: Path, photos: str):
    load("a", path=photos, mean=[0, 0, 0], validation=0.4)
    load("b", path=photos)
    assert len(list(kept.iterdir())) == 1


def test_whitening__second_load__is_not_fitted_again(kept: Path, photos: str, monkeypatch: pytest.MonkeyPatch):
    first, held_out = load(path=photos, zca=True), load(path=photos, zca=True, validation=0.4)
    monkeypatch.setattr(cache, "fit", fail)
    second = load(path=photos, zca=True)
    assert second.whitening.digest == first.whitening.digest != held_out.whitening.digest
    assert torch.equal(second.test.images(), first.test.images())
    assert len(list(kept.glob("zca-*"))) == 2


def test_whitening__damaged_in_the_cache__is_fitted_again(kept: Path, photos: str):
    first = load(path=photos, zca=True)
    (file,) = kept.glob("zca-*")
    whole = file.read_bytes()
    file.write_bytes(whole[:-3] + b"abc")
    assert load(path=photos, zca=True).whitening.digest == first.whitening.digest
    assert file.read_bytes() == whole


def test_whitening__other_number_of_threads__keeps_its_own(kept: Path, photos: str, monkeypatch: pytest.MonkeyPatch):
    load(path=photos, zca=True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 17)
    load(path=photos, zca=True)
    assert len(list(kept.glob("zca-*"))) == 2


@pytest.mark.parametrize("change", ["pixels", "class name", "class of a file"])
def test_changed_files__are_read_anew(kept: Path, photos: str, change: str):
    before = load(path=photos).fingerprint
    folder = Path(photos) / "train" / "b"
    if change == "pixels":
        Image.new("RGB", (6, 6)).save(folder / "0.png")
    elif change == "class of a file":
        (folder / "0.png").rename(folder.parent / "ä" / "9.png")
    else:
        for split in ("train", "test"):
            (Path(photos) / split / "b").rename(Path(photos) / split / "c")
    assert load(path=photos).fingerprint != before


@pytest.mark.parametrize("damage", ["empty", "cut", "one bit", "header", "other file"])
def test_damaged_file__is_made_anew(kept: Path, photos: str, damage: str):
    first = load(path=photos)
    file = the_file(kept)
    whole = file.read_bytes()
    if damage == "other file":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(3)}, file)
    else:
        changed = {
            "empty": b"",
            "cut": whole[:-1],
            "one bit": whole[:-1] + bytes([whole[-1] ^ 1]),
            "header": b"\xff" * 16 + whole[16:],
        }
        file.write_bytes(changed[damage])
    assert torch.equal(load(path=photos).train.raw, first.train.raw)
    assert the_file(kept).read_bytes() == whole


def test_failed_write__leaves_nothing_and_is_said(kept: Path, photos: str, monkeypatch: pytest.MonkeyPatch):
    def full(tensors: object, path: Path, about: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.warns(UserWarning, match=r"cannot be kept in .*cache \(No space left on device\) .*\$CONDENSATE_CACHE"):
        assert len(load(path=photos).train) == 6
    assert not list(kept.iterdir())


def test_folder_that_cannot_be_made__is_said(tmp_path: Path, photos: str, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert len(load(path=photos).train) == 6


def test_several_writers__leave_one_whole_file(kept: Path, photos: str):
    with ThreadPoolExecutor(8) as pool:
        fingerprints = set(pool.map(lambda _: load(path=photos).fingerprint, range(8)))
    assert len(fingerprints) == 1
    assert cache._read(the_file(kept)) is not None


def test_loaded_images__can_be_changed_without_changing_the_file(kept: Path, photos: str):
    load(path=photos)
    before = the_file(kept).read_bytes()
    load(path=photos).train.raw.zero_()
    assert the_file(kept).read_bytes() == before


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [("/a", "/b", "/a"), (None, "/b", "/b/condensate"), (None, None, "/home/me/.cache/condensate"), ("", "", None)],
)
def test_folder__follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, own: str | None, shared: str | None, expected: str | None
):
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in (("CONDENSATE_CACHE", own), ("XDG_CACHE_HOME", shared)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert cache.folder() == Path(expected or "/home/me/.cache/condensate")


def test_import__loads_no_reader():
    code = (
        "import sys, condensate.data;print([m for m in ('sklearn', 'PIL', 'pyarrow', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "[]"
