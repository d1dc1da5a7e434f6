import errno
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from condensate.data import KNOWN, ImageData, load
from condensate.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path_factory.mktemp("cache")))


def pixels(count: int, height: int = 6, width: int = 6, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (count, height, width, channels) if channels > 1 else (count, height, width)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def png(image: np.ndarray | Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, "PNG", **options)
    return stream.getvalue()


def write(
    file: Path,
    images: Sequence[bytes | None],
    labels: object = None,
    names: Sequence[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
    raw: bool = False,
) -> None:
    """A Parquet file as `datasets` writes it, or with the images as plain bytes."""
    rows = list(images) if raw else [{"bytes": image, "path": "x.png"} for image in images]
    column = pa.array(rows, pa.binary() if raw else pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table(
        {columns[0]: column, columns[1]: [i % 2 for i in range(len(images))] if labels is None else labels}
    )
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def folders(root: Path, splits: Sequence[str] = ("train", "test"), classes: str = "ab", count: int = 4) -> None:
    for seed, split in enumerate(splits):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i, image in enumerate(pixels(count, seed=10 * seed + label)):
                (root / split / name / f"{i}.png").write_bytes(png(image))


def chw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


# Digits


def test_digits__are_scikit_learns():
    data = load()
    assert (data.shape, len(data.train), len(data.test), data.validation) == ((1, 8, 8), 1297, 500, None)
    assert data.classes == tuple("0123456789")
    both = torch.cat([data.train.raw, data.test.raw])
    assert both.unique().tolist() == [round(value * 255 / 16) for value in range(17)]
    from sklearn.datasets import load_digits

    bunch = load_digits()
    expected = sorted((label, np.round(image * 255 / 16).tolist()) for image, label in zip(bunch.images, bunch.target))
    labels = torch.cat([data.train.labels, data.test.labels])
    assert sorted((label, image[0].tolist()) for image, label in zip(both, labels.tolist())) == expected


def test_digits__are_divided_alike_in_every_class():
    data = load()
    part = data.test.counts() / (data.test.counts() + data.train.counts())
    assert (part - 500 / 1797).abs().max() < 0.005


def test_digits__size_and_channels__convert_them():
    assert load(size=16, channels=3).shape == (3, 16, 16)


def test_known__digits__agree_with_what_is_loaded():
    assert load().shape == KNOWN["digits"].shape
    assert len(load().classes) == KNOWN["digits"].classes


def test_known__subset_of_imagenet__needs_a_copy_and_names_its_classes():
    with pytest.raises(UserError, match=r"imagenette comes from .*--data.path DIR.* are 0, 217, 482"):
        load("imagenette")


# Parquet


def parquet(root: Path, **options: object) -> np.ndarray:
    images = pixels(6)
    for split, part in (("train", images[:4]), ("test", images[4:])):
        write(root / f"{split}.parquet", [png(image) for image in part], **options)  # type: ignore[arg-type]
    return images


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("columns", [("image", "label"), ("img", "fine_label"), ("image", "labels")])
def test_parquet__every_convention(tmp_path: Path, raw: bool, columns: tuple[str, str]):
    images = parquet(tmp_path, names=["cat", "dog"], columns=columns, raw=raw)
    data = load("anything", path=str(tmp_path))
    assert torch.equal(data.train.raw, chw(images[:4]))
    assert torch.equal(data.test.raw, chw(images[4:]))
    assert (data.train.labels.tolist(), data.classes, data.name) == ([0, 1, 0, 1], ("cat", "dog"), "anything")


def test_parquet__no_metadata__classes_are_numbers(tmp_path: Path):
    parquet(tmp_path)
    assert load(path=str(tmp_path)).classes == ("0", "1")


@pytest.mark.parametrize("base", [".", "data"])
def test_parquet__shards_and_validation__are_one_data_set(tmp_path: Path, base: str):
    images = pixels(6)
    for shard in range(2):
        part = [png(image) for image in images[2 * shard : 2 * shard + 2]]
        write(tmp_path / base / f"train-0000{shard}-of-00002.parquet", part)
    write(tmp_path / base / "validation-00000-of-00001.parquet", [png(image) for image in images[4:]])
    data = load(path=str(tmp_path))
    assert torch.equal(data.train.raw, chw(images[:4]))
    assert torch.equal(data.test.raw, chw(images[4:]))


def test_parquet__bad_image_in_a_shard__names_file_and_row(tmp_path: Path):
    good = png(pixels(1)[0])
    write(tmp_path / "train-0.parquet", [good, good, good])
    write(tmp_path / "train-1.parquet", [good, b"nothing"])
    write(tmp_path / "test.parquet", [good])
    with pytest.raises(
        UserError, match=r"row 1 of .*train-1.parquet is not an image that can be read; repair or remove it$"
    ):
        load(path=str(tmp_path))


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        ([None], {}, r"row 0 of .*train.parquet holds no image; every row must hold the bytes of one"),
        ([png(pixels(1)[0])[:-60]], {}, r"row 0 of .*train.parquet is not an image that can be read: .*truncated"),
        (
            [png(pixels(1)[0])] * 2,
            {"columns": ("picture", "label")},
            r"no column image or img; its columns are picture, label",
        ),
        ([png(pixels(1)[0])] * 2, {"columns": ("img", "y")}, r"no column label or .* img, y: .*, rename it label$"),
        (
            [png(pixels(1)[0])] * 2,
            {"labels": [0.0, 1.0]},
            r"column 'label' must hold integers from 0 to K-1, got double",
        ),
        ([png(pixels(1)[0])] * 2, {"labels": ["a", "b"]}, r"must hold integers from 0 to K-1, got string \(row 0 of"),
        ([png(pixels(1)[0])] * 2, {"labels": [0, None]}, r"got int64 with 1 missing"),
        (
            [png(pixels(1)[0])] * 2,
            {"labels": [0, -1]},
            r"train labels must be integers from 0 to 0, .* got -1 at position 1",
        ),
        ([png(pixels(1)[0])] * 2, {"labels": [0, 2]}, r"class 1 has no training images"),
        (
            [png(pixels(1)[0])] * 2,
            {"names": "ab", "labels": [0, 2]},
            r"integers from 0 to 1, one for each of 2 classes, got 2",
        ),
        ([png(pixels(1)[0])] * 2, {"names": ["a", "b", "c"]}, r"class 2 \(c\) has no training images"),
        ([], {"labels": pa.array([], pa.int64()), "raw": True}, r"train labels .* of shape \(0,\)"),
    ],
)
def test_parquet__wrong_rows__are_refused(
    tmp_path: Path, train: list[bytes | None], options: dict[str, object], message: str
):
    write(tmp_path / "train.parquet", train, **options)  # type: ignore[arg-type]
    write(tmp_path / "test.parquet", [png(pixels(1)[0])], labels=[0])
    with pytest.raises(UserError, match=message):
        load(path=str(tmp_path))
    assert not list(Path(os.environ["CONDENSATE_CACHE"]).iterdir())


def test_parquet__images_of_another_type__are_refused(tmp_path: Path):
    parquet(tmp_path)
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"must be encoded files, binary or a struct of bytes and path, got string"):
        load(path=str(tmp_path))


def test_parquet__not_parquet__is_refused(tmp_path: Path):
    parquet(tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match=r"cannot read .*test.parquet as Parquet: "):
        load(path=str(tmp_path))


def test_parquet__other_class_names_in_test__are_refused(tmp_path: Path):
    parquet(tmp_path, names=["cat", "dog"])
    write(tmp_path / "test.parquet", [png(pixels(1)[0])] * 2, names=["cat", "frog"])
    with pytest.raises(UserError, match=r"name the same classes in the same order; they differ from class 1 on"):
        load(path=str(tmp_path))


@pytest.mark.parametrize(("split", "there"), [("train", "test"), ("test", "train")])
def test_parquet__one_split_only__is_refused(tmp_path: Path, split: str, there: str):
    parquet(tmp_path)
    (tmp_path / f"{split}.parquet").unlink()
    with pytest.raises(UserError, match=rf"has Parquet files of {there} only; expected train.parquet and one of test"):
        load(path=str(tmp_path))


# Folders


def test_folders__with_splits(tmp_path: Path):
    folders(tmp_path)
    (tmp_path / "train" / "a" / ".DS_Store").write_bytes(b"")
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "labels.csv").write_text("beside the class folders")
    data = load("mine", path=str(tmp_path))
    assert (data.classes, data.train.labels.tolist()) == (("a", "b"), [0] * 4 + [1] * 4)
    assert torch.equal(data.train.raw, chw(np.concatenate([pixels(4, seed=0), pixels(4, seed=1)])))
    assert torch.equal(data.test.raw, chw(np.concatenate([pixels(4, seed=10), pixels(4, seed=11)])))


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini"])
def test_folders__what_windows_puts_there__passed_over(tmp_path: Path, name: str):
    folders(tmp_path)
    (tmp_path / "train" / "a" / name).write_bytes(b"no image")
    (tmp_path / "train" / "a" / "below").mkdir()
    (tmp_path / "train" / "a" / "below" / name.upper()).write_bytes(b"no image")
    assert len(load(path=str(tmp_path)).train) == 8


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_folders__other_names_of_test(tmp_path: Path, name: str):
    folders(tmp_path, ("train", name))
    assert len(load(path=str(tmp_path)).test) == 8


def test_folders__without_splits__a_fifth_is_held_and_said(tmp_path: Path):
    folders(tmp_path, (".",), count=10)
    with pytest.warns(UserWarning, match=r"no folders train and test: the same fifth of each class"):
        data = load(path=str(tmp_path))
    assert (data.train.counts().tolist(), data.test.counts().tolist()) == ([8, 8], [2, 2])
    with pytest.warns(UserWarning, match="fifth"):
        assert load(path=str(tmp_path)).fingerprint == data.fingerprint
    every = {image.tobytes() for label in range(2) for image in pixels(10, seed=label)}
    assert {image.permute(1, 2, 0).numpy().tobytes() for image in torch.cat([data.train.raw, data.test.raw])} == every


def test_folders__nested_images__belong_to_the_class(tmp_path: Path):
    folders(tmp_path)
    (tmp_path / "train" / "a" / "images").mkdir()
    (tmp_path / "train" / "a" / "0.png").rename(tmp_path / "train" / "a" / "images" / "0.png")
    assert load(path=str(tmp_path)).train.counts().tolist() == [4, 4]


def test_folders__named_a_level_too_high__is_said(tmp_path: Path):
    folders(tmp_path, splits=("photos",))
    with pytest.raises(
        UserError, match=r"one class folder, photos, which holds folders alone \(a, b\).*path .*/photos$"
    ):
        load(path=str(tmp_path))
    deep = tmp_path / "deep"
    folders(deep / "train", splits=("photos",))
    folders(deep / "test", splits=("photos",))
    with pytest.raises(
        UserError, match=r"\(a, b\); if these are the classes: move them to .*train, and those for testing"
    ):
        load(path=str(deep))
    shutil.rmtree(deep)
    folders(tmp_path, splits=("drawings",))
    said = "drawings, photos; those below them (a, b) are not"
    with pytest.warns(UserWarning, match=re.escape(said)), pytest.warns(UserWarning, match="the same fifth"):
        assert load(path=str(tmp_path)).classes == ("drawings", "photos")


def test_folders__one_class__is_said(tmp_path: Path):
    folders(tmp_path, classes="a")
    with pytest.warns(UserWarning, match="train has one class folder, a: every network is right on it"):
        assert load(path=str(tmp_path)).classes == ("a",)


def test_folders__links__are_followed(tmp_path: Path):
    folders(tmp_path / "far")
    (tmp_path / "near").mkdir()
    for split in ("train", "test"):
        (tmp_path / "near" / split).symlink_to(tmp_path / "far" / split)
    (tmp_path / "far" / "train" / "a").rename(tmp_path / "a")
    (tmp_path / "far" / "train" / "a").mkdir()
    (tmp_path / "far" / "train" / "a" / "more").symlink_to(tmp_path / "a")
    assert load(path=str(tmp_path / "near")).train.counts().tolist() == [4, 4]


@pytest.mark.parametrize(
    ("link", "to", "message"),
    [
        ("train/a/x.png", "gone.png", r"a.x.png is a link to gone.png, which is not there; put that back or remove"),
        ("train/c", "gone", r"train.c is a link to gone, which is not there"),
        ("train/a/all", "..", r"a.all.a is a link to .*train.a, whose images are in .*train.a already; remove one"),
        ("train/a/again", ".", r"a.again is a link to .*train.a, whose images are in .*train.a already; remove one"),
    ],
)
def test_folders__link_to_nothing_or_back__is_refused(tmp_path: Path, link: str, to: str, message: str):
    folders(tmp_path)
    (tmp_path / link).symlink_to(to)
    with pytest.raises(UserError, match=message):
        load(path=str(tmp_path))


def test_folders__folder_that_cannot_be_read__is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folders(tmp_path)
    (tmp_path / "train" / "a" / "more").mkdir()
    list_folder = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("more"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot read the folder .*a.more: Permission denied"):
        load(path=str(tmp_path))


def test_folders__class_without_images__is_refused(tmp_path: Path):
    folders(tmp_path)
    (tmp_path / "test" / "c").mkdir()
    with pytest.raises(UserError, match=r"class folder .*test.c holds no images; add some or remove the folder"):
        load(path=str(tmp_path))


def test_folders__other_classes_in_test__are_refused(tmp_path: Path):
    folders(tmp_path)
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "c")
    with pytest.raises(UserError, match=r"must hold the same classes; only in one of them: b, c"):
        load(path=str(tmp_path))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train"], r"there is a folder .*train but none called test or val or valid or validation beside it"),
        (["train"], r"add the missing one, or have a fifth of (.*train) held .* naming it alone: --data.path \1$"),
        (["val"], r"there is a folder .*val but none called train beside it"),
    ],
)
def test_folders__one_split_only__is_refused(tmp_path: Path, splits: list[str], message: str):
    folders(tmp_path, splits)
    with pytest.raises(UserError, match=message):
        load(path=str(tmp_path))


def test_folders__train_named_alone__is_what_the_refusal_says_it_is(tmp_path: Path):
    folders(tmp_path, ["train"])
    with pytest.warns(UserWarning, match="fifth of each class is always held for testing"):
        assert load(path=str(tmp_path / "train")).classes == ("a", "b")


def test_folders__more_than_one_to_test_on__the_one_not_read_is_said(tmp_path: Path):
    folders(tmp_path, ["train", "val", "test"])
    with pytest.warns(UserWarning, match=r"networks are tested on test; val is not read"):
        data = load(path=str(tmp_path))
    assert torch.equal(data.test.raw, chw(np.concatenate([pixels(4, seed=20), pixels(4, seed=21)])))


def test_folders__file_that_is_no_image__is_named(tmp_path: Path):
    folders(tmp_path)
    (tmp_path / "test" / "b" / "notes.txt").write_text("not an image")
    with pytest.raises(UserError, match=r"test.b.notes.txt is not an image that can be read; repair or remove it$"):
        load(path=str(tmp_path))


# Where nothing is found


def test_path__missing__is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"--data.path must name a folder .*nowhere does not exist"):
        load(path=str(tmp_path / "nowhere"))


def test_path__file__is_refused(tmp_path: Path):
    parquet(tmp_path)
    with pytest.raises(UserError, match=r"--data.path must name a folder .*train.parquet is a file"):
        load(path=str(tmp_path / "train.parquet"))


def test_path__empty_folder__says_what_is_expected(tmp_path: Path):
    with pytest.raises(UserError, match=r"no images found in .*; --data.path expects a folder with train.parquet and"):
        load(path=str(tmp_path))


def test_path__folder_above__names_those_below(tmp_path: Path):
    parquet(tmp_path / "cifar10")
    parquet(tmp_path / "mnist")
    with pytest.raises(UserError, match=r"there are data sets in its folders cifar10, mnist; --data.path expects"):
        load(path=str(tmp_path))


def test_name__unknown__names_the_nearest():
    with pytest.raises(UserError, match=r"unknown data set 'cifar'; did you mean 'cifar10'\? .*--data.path DIR"):
        load("cifar")


# Modes and sizes


def mixed(root: Path, *images: bytes, **options: int | None) -> ImageData:
    write(root / "train.parquet", images, labels=[0] * len(images))
    write(root / "test.parquet", images[:1])
    return load(path=str(root), **options)  # type: ignore[arg-type]


COLOUR, GRAY = pixels(1)[0], pixels(1, channels=1)[0]


def test_channels__mixed__needs_an_option(tmp_path: Path):
    files = png(COLOUR), png(GRAY)
    message = r"row 1 of .*train.parquet has 1 channel\(s\) but row 0 of .*train.parquet has 3; .*--data.channels 3"
    with pytest.raises(UserError, match=message):
        mixed(tmp_path, *files)
    assert torch.equal(mixed(tmp_path, *files, channels=3).train.raw[1], torch.from_numpy(GRAY).expand(3, 6, 6))
    gray = torch.from_numpy(np.array(Image.fromarray(COLOUR).convert("L")))
    assert torch.equal(mixed(tmp_path, *files, channels=1).train.raw[0, 0], gray)


def test_channels__differ_in_test__needs_an_option(tmp_path: Path):
    write(tmp_path / "train.parquet", [png(COLOUR)], labels=[0])
    write(tmp_path / "test.parquet", [png(GRAY)])
    with pytest.raises(
        UserError, match=r"row 0 of .*test.parquet has 1 channel\(s\) but row 0 of .*train.parquet has 3"
    ):
        load(path=str(tmp_path))


def test_mode__palette__is_colour(tmp_path: Path):
    palette = Image.fromarray(COLOUR).quantize(64)
    data = mixed(tmp_path, png(palette))
    assert torch.equal(data.train.raw[0], chw(np.array(palette.convert("RGB"))[None])[0])


def test_mode__one_bit__is_gray(tmp_path: Path):
    bits = Image.fromarray(GRAY).convert("1")
    assert torch.equal(mixed(tmp_path, png(bits)).train.raw[0, 0], torch.from_numpy(np.array(bits.convert("L"))))


def test_mode__transparency__needs_an_option_which_drops_it(tmp_path: Path):
    file = png(np.concatenate([COLOUR, GRAY[..., None]], -1))
    message = r"row 0 of .* is neither plain gray nor RGB \(mode RGBA\); convert all images with --data.channels 3 or 1"
    with pytest.raises(UserError, match=message):
        mixed(tmp_path, file)
    assert torch.equal(mixed(tmp_path, file, channels=3).train.raw[0], chw(COLOUR[None])[0])


@pytest.mark.parametrize("transparency", [0, bytes(range(64))])
def test_mode__palette_with_transparency__needs_an_option(tmp_path: Path, transparency: int | bytes):
    file = png(Image.fromarray(COLOUR).quantize(64), transparency=transparency)
    with pytest.raises(UserError, match=r"\(mode P, with transparency\); convert all"):
        mixed(tmp_path, file)
    assert mixed(tmp_path, file, channels=3).shape == (3, 6, 6)


def test_mode__cmyk__needs_an_option(tmp_path: Path):
    stream = io.BytesIO()
    Image.fromarray(COLOUR).convert("CMYK").save(stream, "JPEG")
    with pytest.raises(UserError, match=r"mode CMYK"):
        mixed(tmp_path, stream.getvalue())
    assert mixed(tmp_path, stream.getvalue(), channels=3).shape == (3, 6, 6)


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_mode__sixteen_bits__is_refused(tmp_path: Path, channels: int | None):
    with pytest.raises(UserError, match=r"more than 8 bits a channel \(mode I;16\); convert the files to 8 bits"):
        mixed(tmp_path, png(GRAY.astype(np.uint16) * 200), channels=channels)


def test_mode__inconvertible__is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def convert(image: Image.Image, mode: str) -> None:
        raise ValueError("conversion not supported")

    file = png(GRAY)
    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(UserError, match=r"row 0 of .* cannot be converted from mode L to RGB; convert the files"):
        mixed(tmp_path, file, channels=3)


def test_size__mixed__needs_an_option(tmp_path: Path):
    files = png(COLOUR), png(pixels(1, 8, 12)[0])
    message = r"row 1 of .* has 8x12 pixels \(height x width\) but row 0 of .* has 6x6; .* for instance --data.size 6"
    with pytest.raises(UserError, match=message):
        mixed(tmp_path, *files)
    data = mixed(tmp_path, *files, size=6)
    assert torch.equal(data.train.raw[0], chw(COLOUR[None])[0])


def test_size__mixed_and_large__a_small_one_is_advised(tmp_path: Path):
    files = png(pixels(1, 70, 90)[0]), png(pixels(1, 90, 70)[0])
    with pytest.raises(UserError, match=r"for instance --data.size 32; larger ones take longer: condensate plan tells"):
        mixed(tmp_path, *files)


@pytest.mark.parametrize(("height", "width", "box"), [(8, 16, (2, 0, 6, 4)), (16, 8, (0, 2, 4, 6))])
def test_size__shorter_side_is_resized_and_the_centre_kept(
    tmp_path: Path, height: int, width: int, box: tuple[int, int, int, int]
):
    image = Image.fromarray(pixels(1, height, width)[0])
    expected = image.resize((width // 2, height // 2), Image.Resampling.BICUBIC).crop(box)
    found = mixed(tmp_path, png(image), size=4).train.raw
    assert (found.int() - chw(np.array(expected)[None]).int()).abs().max() <= 1


def test_size__antialiases(tmp_path: Path):
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = mixed(tmp_path, png(stripes), size=4).train.raw[..., 1:-1]
    assert (inner.int() - 128).abs().max() < 8


def test_size__rectangle_without_option__stays(tmp_path: Path):
    assert mixed(tmp_path, png(pixels(1, 8, 12)[0])).shape == (3, 8, 12)


def test_orientation__is_followed(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    data = mixed(tmp_path, png(pixels(1, 8, 12)[0], exif=exif))
    assert torch.equal(data.train.raw[0], chw(np.rot90(pixels(1, 8, 12)[0], -1).copy()[None])[0])


def test_large_images__are_read_by_several_threads(tmp_path: Path):
    images = pixels(300, 40, 40)
    write(tmp_path / "train.parquet", [png(image) for image in images])
    write(tmp_path / "test.parquet", [png(image) for image in images[:2]])
    assert torch.equal(load(path=str(tmp_path)).train.raw, chw(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"--data.size must be at least 1, got 0"),
        ({"channels": 2}, r"--data.channels must be 1 or 3, got 2"),
    ],
)
def test_wrong_option__is_refused(options: dict[str, int], message: str):
    with pytest.raises(UserError, match=message):
        load(**options)  # type: ignore[arg-type]


# Hub


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub: ``owner/name`` is looked up below it."""
    import datasets

    root, kept, original = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("datasets"), datasets.load_dataset
    datasets.disable_progress_bars()

    def local(name: str, config: str | None) -> object:
        if not (root / name).is_dir():
            raise ConnectionError(f"no route to {name}\nand much more")
        return original(str(root / name), cache_dir=str(kept))

    monkeypatch.setattr(datasets, "load_dataset", local)
    return root


def test_hub__owner_and_name(hub: Path):
    images = parquet(hub / "me" / "mine", names=["cat", "dog"])
    data = load("me/mine")
    assert torch.equal(data.train.raw, chw(images[:4]))
    assert torch.equal(data.test.raw, chw(images[4:]))
    assert (data.classes, data.train.labels.tolist()) == (("cat", "dog"), [0, 1, 0, 1])


def test_hub__known_name__is_looked_up_with_its_columns(hub: Path):
    names = [f"class {label}" for label in range(4)]
    for split in ("train", "test"):
        write(
            hub / "uoft-cs" / "cifar100" / f"{split}.parquet", [png(COLOUR)] * 4, range(4), names, ("img", "fine_label")
        )
    assert load("cifar100").classes == tuple(names)


def test_hub__same_contents_as_local_files__same_fingerprint(hub: Path):
    parquet(hub / "me" / "mine", names=["cat", "dog"])
    assert load("me/mine").fingerprint == load(path=str(hub / "me" / "mine")).fingerprint


def test_hub__folder_of_images__is_read_from_their_paths(hub: Path):
    folders(hub / "me" / "photos")
    data = load("me/photos")
    assert data.classes == ("a", "b")
    assert data.fingerprint == load(path=str(hub / "me" / "photos")).fingerprint


def test_hub__missing_split__names_those_there(hub: Path):
    write(hub / "me" / "half" / "train.parquet", [png(COLOUR)])
    with pytest.raises(UserError, match=r"'me/half' has no split test or val .*; its splits are train: make one, or"):
        load("me/half")


def test_hub__missing_column__names_those_there(hub: Path):
    for split in ("train", "test"):
        write(hub / "me" / "odd" / f"{split}.parquet", [png(COLOUR)], columns=("picture", "label"))
    with pytest.raises(UserError, match=r"row 0 of me/odd train has no column .* picture, label: .* rename it image$"):
        load("me/odd")


def test_hub__no_connection__says_what_to_do(hub: Path):
    message = (
        r"cannot load 'uoft-cs/cifar10' from .* \(ConnectionError: no route to uoft-cs/cifar10\); .*--data.path DIR"
    )
    with pytest.raises(UserError, match=message):
        load("cifar10")


def test_hub__datasets_not_installed__says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package datasets; install it with pip install 'datasets>=3'"):
        load("svhn")
