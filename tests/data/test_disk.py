"""Images held on disk are those held in memory, whatever is done with them; nothing half-written is taken for whole."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from condensate import UserError
from condensate.continual import ContinualOptions, split_stream
from condensate.data import ImageData, Split, archive, imagefile, load

HEIGHT, WIDTH = 6, 8


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(image: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def draw(count: int, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, height, width, 3), dtype=np.uint8)


def class_folders(root: Path, count: int = 5) -> str:
    """Three classes of PNG and JPEG files, two of them in folders of their own."""
    for seed, split in enumerate(("train", "test")):
        for label, name in enumerate("abc"):
            (root / split / name / "deep").mkdir(parents=True)
            (root / split / name / ".hidden").write_text("no image")
            for i, image in enumerate(draw(count, seed=10 * seed + label)):
                place = root / split / name / ("deep" if i % 3 == 2 else "")
                (place / f"{i}.{'jpg' if i % 2 else 'png'}").write_bytes(encoded(image, "JPEG" if i % 2 else "PNG"))
    return str(root)


def parquet(root: Path, count: int = 450) -> str:
    """Two shards to train on, three classes; more rows than are read or written at once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir()
    for number, name in enumerate(("train-0", "train-1", "test")):
        images = [encoded(image) for image in draw(count, seed=number)]
        labels = [i % 3 for i in range(count)]
        pq.write_table(pa.table({"image": images, "label": labels}), root / f"{name}.parquet", row_group_size=170)
    return str(root)


@pytest.fixture(params=[class_folders, parquet])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.param(tmp_path / "source"))


@pytest.fixture
def photos(tmp_path: Path) -> str:
    return class_folders(tmp_path / "photos")


def same(disk: Split, memory: Split) -> None:
    assert not isinstance(disk.pixels, type(memory.pixels))
    assert (disk.classes, disk.mean, disk.std, disk.shape) == (memory.classes, memory.mean, memory.std, memory.shape)
    assert torch.equal(disk.labels, memory.labels)
    assert torch.equal(disk.pixels.read(), memory.raw)
    index = torch.arange(len(memory)).flip(0)[::2]
    assert torch.equal(disk.images(index), memory.images(index))
    assert disk.images(index[:0]).shape == (0, *memory.shape)
    drawn = [split.sample(split.labels[-1], 1, torch.Generator().manual_seed(0)) for split in (disk, memory)]
    assert torch.equal(*drawn)


def splits(data: ImageData) -> list[Split]:
    return [split for split in (data.train, data.test, data.validation) if split is not None]


# The same as in memory


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"size": 4}, {"channels": 1, "size": 12}, {"validation": 0.2}])
def test_load__same_as_in_memory(source: str, options: dict[str, int], workers: int):
    disk, memory = load(path=source, hold="disk", workers=workers, **options), load(path=source, **options)
    for pair in zip(splits(disk), splits(memory), strict=True):
        same(*pair)
    assert (disk.shape, disk.classes, disk.mean, disk.std) == (memory.shape, memory.classes, memory.mean, memory.std)


def test_load__digits__same_as_in_memory():
    for pair in zip(splits(load(hold="disk", workers=0)), splits(load()), strict=True):
        same(*pair)


def test_load__of_the_hub__same_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    place, original = parquet(tmp_path / "hub"), datasets.load_dataset
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: original(place, cache_dir=str(tmp_path / "datasets")))
    for pair in zip(splits(load("me/mine", hold="disk", workers=0)), splits(load("me/mine")), strict=True):
        same(*pair)


CHANGES: dict[str, Callable[[ImageData], ImageData]] = {
    "only": lambda data: data.only([2, 0]),
    "normalised": lambda data: data.normalised([0.1, 0.2, 0.3], [1, 2, 3]),
    "moved": lambda data: data.to("cpu"),
    "two": lambda data: data.only([2, 0]).normalised([0.1, 0.2, 0.3], [1, 2, 3]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_data__same_as_in_memory(source: str, name: str):
    disk, memory = (load(path=source, validation=0.2, **o) for o in ({"hold": "disk", "workers": 0}, {}))
    disk, memory = CHANGES[name](disk), CHANGES[name](memory)
    assert disk.classes == memory.classes
    for ours, theirs in zip(splits(disk), splits(memory), strict=True):
        same(ours, theirs)


def test_subset__is_rows_and_no_copy(source: str):
    disk, memory = load(path=source, hold="disk", workers=0).train, load(path=source).train
    index = torch.tensor([7, 3, 3, 0])
    same(disk.subset(index).subset(torch.tensor([3, 1, 1, 0])), memory.subset(index).subset(torch.tensor([3, 1, 1, 0])))
    assert disk.subset(index).pixels.rows.tolist() == index.tolist()
    assert disk.to("cpu") is disk


def test_zca__same_as_in_memory(source: str):
    disk, memory = load(path=source, zca=True, hold="disk", workers=0), load(path=source, zca=True)
    assert disk.whitening.digest == memory.whitening.digest
    assert torch.equal(disk.train.images(), memory.train.images())
    seen = [data.train.seen_through(None).images() for data in (disk, memory)]
    assert torch.equal(*seen)


def test_stream_of_classes__same_as_in_memory(source: str):
    options = ContinualOptions(steps=3)
    disk, memory = (split_stream([load(path=source, **o)], options, 0) for o in ({"hold": "disk", "workers": 1}, {}))
    for ours, theirs in zip(disk.experiences, memory.experiences, strict=True):
        same(ours.data.train, theirs.data.train)


def test_raw__on_disk__is_refused(photos: str):
    with pytest.raises(UserError, match=r"needs all images in memory, .* on disk: --data.hold memory"):
        load(path=photos, hold="disk", workers=0).train.raw.sum()


@pytest.mark.cuda
def test_to__cuda__same_as_in_memory(source: str):
    disk, memory = load(path=source, hold="disk", workers=2).to("cuda").train, load(path=source).to("cuda").train
    index = torch.tensor([4, 2, 2], device="cuda")
    assert disk.device == memory.device == disk.images(index).device
    disk.expect([index, index[:2]])
    assert disk.expects(index)
    assert torch.equal(disk.images(index), memory.images(index))
    assert torch.equal(disk.images(index[:2]), memory.images(index[:2]))
    assert torch.equal(disk.images(index.cpu()), memory.images(index))


# Written once


def fail(*_: object) -> None:
    raise AssertionError("done again")


def the_archive(kept: Path) -> Path:
    (folder,) = kept.glob("arrow-*")
    return folder


def test_second_load__writes_and_measures_nothing(kept: Path, photos: str, monkeypatch: pytest.MonkeyPatch):
    first = load(path=photos, hold="disk", workers=0)
    monkeypatch.setattr(archive, "_build", fail)
    monkeypatch.setattr(imagefile, "pixels", fail)
    second = load(path=photos, hold="disk", workers=0)
    assert (first.mean, first.std, first.fingerprint) == (second.mean, second.std, second.fingerprint)
    assert sorted(file.name for file in the_archive(kept).iterdir()) == ["about.json", "test.arrow", "train.arrow"]


def test_archive__is_a_data_set_of_hugging_face(kept: Path, photos: str):
    import datasets

    load(path=photos, hold="disk", workers=0)
    found = datasets.Dataset.from_file(str(the_archive(kept) / "train.arrow"))
    assert found.features["label"].names == ["a", "b", "c"]
    assert found.features["image"] == datasets.Image(decode=False)
    assert found[0]["image"]["bytes"] == Path(found[0]["image"]["path"]).read_bytes()


def test_given_normalisation__nothing_is_decoded(photos: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(imagefile, "pixels", fail)
    data = load(path=photos, hold="disk", workers=0, mean=[0.5] * 3, std=[0.5] * 3)
    assert (len(data.train), data.train.counts().tolist(), data.shape) == (15, [5, 5, 5], (3, HEIGHT, WIDTH))


def test_other_shape__same_archive_and_another_fingerprint(kept: Path, photos: str):
    found = {load(path=photos, hold="disk", workers=0, size=size).fingerprint for size in (None, 4, 6)}
    assert len(found) == 3
    the_archive(kept)


def test_changed_file__is_written_anew(kept: Path, photos: str):
    before = load(path=photos, hold="disk", workers=0)
    file = Path(photos) / "train" / "a" / "0.png"
    file.write_bytes(encoded(draw(1, seed=99)[0]))
    after = load(path=photos, hold="disk", workers=0)
    assert before.fingerprint != after.fingerprint
    assert torch.equal(after.train.pixels.read()[0], torch.from_numpy(draw(1, seed=99)[0]).permute(2, 0, 1))


def test_fingerprint__is_of_the_encoded_files(tmp_path: Path):
    places = []
    for name, level in (("a", 1), ("b", 1), ("c", 9)):  # the same pixels, packed otherwise
        for place in (tmp_path / name / split / kind for split in ("train", "test") for kind in "xy"):
            place.mkdir(parents=True)
            (place / "0.png").write_bytes(encoded(draw(1)[0], compress_level=level))
        places.append(load(path=str(tmp_path / name), hold="disk", workers=0, mean=[0] * 3, std=[1] * 3).fingerprint)
    assert places[0] == places[1] != places[2]


def test_killed_build__is_started_anew(kept: Path, photos: str):
    load(path=photos, hold="disk", workers=0)
    whole = the_archive(kept)
    part = whole.rename(whole.with_name(f"{whole.name}.part"))
    (part / "about.json").unlink()
    (part / "test.arrow").write_bytes((part / "test.arrow").read_bytes()[:50])
    same(load(path=photos, hold="disk", workers=0).test, load(path=photos).test)
    assert the_archive(kept) == whole


def test_failed_build__leaves_nothing(kept: Path, photos: str):
    (Path(photos) / "test" / "c" / "9.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"test/c/9.png is not an image that can be read"):
        load(path=photos, hold="disk", workers=0)
    assert not list(kept.iterdir())


@pytest.mark.parametrize("damage", ["cut", "gone", "no json"])
def test_damaged_archive__is_written_anew(kept: Path, photos: str, damage: str):
    load(path=photos, hold="disk", workers=0)
    file = the_archive(kept) / ("about.json" if damage == "no json" else "train.arrow")
    file.unlink() if damage == "gone" else file.write_bytes(file.read_bytes()[:-9])
    same(load(path=photos, hold="disk", workers=0).train, load(path=photos).train)


def test_cache_that_cannot_be_written__is_an_error(tmp_path: Path, photos: str, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        UserError, match=r"images cannot be kept in .*file .*\$CONDENSATE_CACHE, or .* --data.hold memory"
    ):
        load(path=photos, hold="disk")


# What is wrong shows before a run


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(draw(1, 5, 9)[0]), r"train/b/9.png has 5x9 pixels .*train/a/0.png has 6x8; .* --data.size 6"),
        (encoded(draw(1)[0, ..., 0]), r"train/b/9.png has 1 channel\(s\) but .*a/0.png has 3; .* --data.channels 3"),
        (encoded(draw(1)[0, ..., 0].astype(np.uint16)), r"train/b/9.png has more than 8 bits a channel \(mode I;16\)"),
        (b"GIF89a", r"train/b/9.png is not an image that can be read"),
    ],
)
def test_odd_image__is_named_before_any_is_decoded(
    photos: str, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
):
    (Path(photos) / "train" / "b" / "9.png").write_bytes(content)
    monkeypatch.setattr(imagefile, "pixels", fail)
    for _ in range(2):  # the second time, of what was written the first time
        with pytest.raises(UserError, match=message):
            load(path=photos, hold="disk")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_turned_image__has_the_shape_it_decodes_to(tmp_path: Path, kind: str):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    for place in (tmp_path / "turned" / split / name for split in ("train", "test") for name in "xy"):
        place.mkdir(parents=True)
        (place / "0").write_bytes(encoded(draw(1)[0], kind, exif=exif))
    data = load(path=str(tmp_path / "turned"), hold="disk", workers=0)
    assert data.shape == data.train.images().shape[1:] == (3, WIDTH, HEIGHT)


@pytest.mark.parametrize("workers", [0, 1])
def test_cut_off_image__is_named_when_it_is_read(photos: str, workers: int):
    file = Path(photos) / "train" / "b" / "1.jpg"
    file.write_bytes(file.read_bytes()[:-20])
    data = load(path=photos, hold="disk", workers=workers, mean=[0.5] * 3, std=[0.5] * 3)
    assert len(data.test.images()) == 15
    for _ in range(2):
        with pytest.raises(UserError, match=r"train/b/1.jpg is not an image that can be read: .*truncated"):
            data.train.images()
    assert len(data.train.images(torch.arange(5))) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hold": "tape"}, r"--data.hold must be memory or disk, got 'tape'"),
        ({"hold": "disk", "workers": -1}, r"--data.workers must be at least 0, got -1"),
        ({"workers": 2}, r"--data.workers are for images held on disk: add --data.hold disk, or drop it"),
    ],
)
def test_wrong_option__is_refused(options: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        load(**options)  # type: ignore[arg-type]


def test_datasets_not_installed__says_what_to_install(photos: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"need the package datasets; .* pip install 'datasets>=3', or .* memory"):
        load(path=photos, hold="disk")


def test_memory__imports_no_datasets(photos: str):
    code = f"import sys, condensate as c; c.load_data(path={photos!r}); print('datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
