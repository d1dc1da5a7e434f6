"""The synthetic set: how it is read, and what lies in its file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from condensate import LowRank, Parameterization, Pixels, SyntheticDataset, Uint8, UserError, class_major, load
from condensate.parameterizations import PARAMETERIZATIONS, Cost
from condensate.whitening import fit

SHAPE = (3, 4, 5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(n: int = 6) -> Pixels:
    stored = Pixels(n, SHAPE)
    stored.reset_(seeded())
    return stored


def lowrank(n: int = 6) -> LowRank:
    stored = LowRank(n, SHAPE, rank=2)
    stored.reset_(seeded())
    return stored


def synthetic(
    stored: Parameterization | None = None, labels: Tensor | tuple[int, ...] = (0, 0, 1, 1, 2, 2), **about: Any
) -> SyntheticDataset:
    return SyntheticDataset(stored or lowrank(), torch.as_tensor(labels), **about)


def contents(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Path:
    """The file at ``path`` with its metadata and tensors changed in place."""
    metadata, tensors = contents(path)
    about = json.loads(metadata["condensate"])
    change(about, tensors)
    save_file(tensors, path, {"condensate": json.dumps(about)})
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    synthetic(classes="abc", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).save(tmp_path / "set.safetensors")
    return tmp_path / "set.safetensors"


# A data set.


def test_item__is_an_image_and_its_label():
    data = synthetic()
    assert isinstance(data, Dataset)
    assert len(data) == 6
    for i in (0, 3, 5):
        image, label = data[i]
        torch.testing.assert_close(image, data.images().detach()[i])
        assert not image.requires_grad
        assert (label.dtype, int(label)) == (torch.int64, i // 2)
    torch.testing.assert_close(data[-1][0], data[5][0])
    assert int(data[-6][1]) == 0


@pytest.mark.parametrize("index", [6, -7, 100])
def test_item__outside_is_an_index_error(index: int):
    with pytest.raises(IndexError, match=f"image {index} of 6"):
        synthetic()[index]


def test_iteration__ends():
    assert [int(label) for _, label in synthetic()] == [0, 0, 1, 1, 2, 2]


def test_data_loader__batches_it():
    data = synthetic()
    batches = list(DataLoader(data, batch_size=4))
    assert [tuple(images.shape) for images, _ in batches] == [(4, *SHAPE), (2, *SHAPE)]
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), data.images().detach())
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.labels)


def test_images__at_an_index_are_those_of_all():
    data, index = synthetic(), torch.tensor([4, 0, 4])
    torch.testing.assert_close(data.images(index), data.images()[index])


def test_pictures__undo_the_normalisation():
    raw = torch.randint(0, 256, (6, *SHAPE), generator=seeded()) / 255
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    stored = pixels()
    stored.encode_((raw - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    data = synthetic(stored, mean=mean, std=std)
    torch.testing.assert_close(data.pictures(), raw)
    torch.testing.assert_close(data.pictures(torch.tensor([5, 1])), raw[[5, 1]])
    assert not data.pictures().requires_grad


def test_pictures__are_clipped():
    stored = Pixels(1, (1, 1, 4))
    stored.encode_(torch.tensor([[[[-2.0, -0.5, 0.5, 2.0]]]]))
    data = SyntheticDataset(stored, torch.tensor([0]), mean=(0.5,), std=(0.5,))
    assert data.pictures().flatten().tolist() == [0, 0.25, 0.75, 1]


@pytest.mark.parametrize("labels", [torch.arange(5), torch.arange(7), torch.rand(5, 3)], ids=("5", "7", "soft"))
def test_labels__must_be_as_many_as_images(labels: Tensor):
    with pytest.raises(UserError, match=f"got {len(labels)} labels for 6 images"):
        synthetic(labels=labels)


@pytest.mark.parametrize("labels", [torch.arange(6) // 2, torch.full((6, 3), 1 / 3)], ids=("hard", "soft"))
def test_labels__must_have_names(labels: Tensor):
    with pytest.raises(UserError, match="labels name 3 classes, but there are 2 class names"):
        synthetic(labels=labels, classes="ab")
    assert synthetic(labels=labels).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    "labels", [torch.zeros(6), torch.zeros(6, 3, dtype=torch.int64), torch.zeros(6, 3, 1), torch.zeros(6) > 0]
)
def test_labels__neither_classes_nor_soft__are_refused(labels: Tensor):
    with pytest.raises(UserError, match=r"classes \(n,\), whole numbers, or soft labels \(n, K\)"):
        synthetic(labels=labels)


@pytest.mark.parametrize(("classes", "per_class"), [(0, 3), (3, 0), (-3, 2)])
def test_class_major__of_nothing__is_refused(classes: int, per_class: int):
    with pytest.raises(UserError, match=f"at least one class and one image of each, got {classes} and {per_class}"):
        class_major(classes, per_class)


def test_labels__below_zero__are_refused():
    with pytest.raises(UserError, match="classes from 0, got -1"):
        synthetic(labels=(0, 0, 1, 1, 2, -1))


def test_class_major__is_all_of_one_class_after_the_other():
    assert class_major(3, 2).tolist() == [0, 0, 1, 1, 2, 2]
    assert class_major(3, 2).dtype == torch.int64


# Gradients.


@pytest.mark.parametrize("index", [[0, 1, 2, 3, 4, 5], [4], [2, 0, 2, 2]], ids=str)
def test_backward__adds_the_gradient_of_pixels(index: list[int]):
    stored = pixels()
    grad = torch.randn(len(index), *SHAPE, generator=seeded(1))
    expected = torch.zeros(6, *SHAPE)
    for i, g in zip(index, grad):
        expected[i] += g
    data = synthetic(stored)
    data.backward(torch.tensor(index), grad)
    torch.testing.assert_close(stored.pixels.grad, expected)
    data.backward(torch.tensor(index), grad)
    torch.testing.assert_close(stored.pixels.grad, 2 * expected)


@pytest.mark.parametrize("index", [[0, 1, 2, 3, 4, 5], [4], [2, 0, 2, 2]], ids=str)
def test_backward__adds_the_gradient_of_factors(index: list[int]):
    """X = A B gives dA = dX B' and dB = A' dX, summed where an image is named twice."""
    stored = lowrank()
    grad = torch.randn(len(index), *SHAPE, generator=seeded(1))
    a, b = torch.zeros(6, 3, 4, 2), torch.zeros(6, 3, 2, 5)
    for i, g in zip(index, grad):
        a[i] += g @ stored.b[i].detach().transpose(1, 2)
        b[i] += stored.a[i].detach().transpose(1, 2) @ g
    data = synthetic(stored)
    data.backward(torch.tensor(index), grad)
    torch.testing.assert_close(stored.a.grad, a)
    torch.testing.assert_close(stored.b.grad, b)
    data.backward(torch.tensor(index), grad)
    torch.testing.assert_close(stored.a.grad, 2 * a)


@pytest.mark.parametrize("stored", [pixels, lowrank])
def test_backward__is_the_gradient_through_images(stored: Callable[[], Parameterization]):
    pulled, through = synthetic(stored()), synthetic(stored())
    index = torch.tensor([1, 5, 1])
    images = pulled.images(index).detach().requires_grad_()
    images.sin().sum().backward()
    pulled.backward(index, images.grad)
    through.images(index).sin().sum().backward()
    for one, other in zip(pulled.parameters(), through.parameters(), strict=True):
        assert one.grad.any()
        torch.testing.assert_close(one.grad, other.grad)


def test_step_size__lies_where_the_labels_do():
    labels = torch.zeros(2, 3, device="meta")
    data = SyntheticDataset(Pixels(2, (1, 4, 4)).to("meta"), labels, step_size=0.02)
    assert data.step_size is not None
    assert data.step_size.device.type == "meta"


@pytest.mark.parametrize(("step_size", "expected"), [(-0.5, 1e-6), (0.0, 1e-6), (1e-7, 1e-6), (0.02, 0.02)])
def test_project__keeps_the_step_size_above_a_millionth(step_size: float, expected: float):
    data = synthetic(step_size=step_size)
    before = data.images().detach()
    data.project_()
    assert float(data.step_size.detach()) == pytest.approx(expected, rel=1e-6)
    assert torch.equal(data.images().detach(), before)


def test_project__without_a_step_size_changes_nothing():
    data = synthetic()
    before = data.images().detach()
    data.project_()
    assert data.step_size is None
    assert torch.equal(data.images().detach(), before)


def test_step_size__is_a_parameter_and_only_where_it_is_learned():
    assert {name for name, _ in synthetic(step_size=0.02).named_parameters()} == {
        "parameterization.a",
        "parameterization.b",
        "step_size",
    }
    assert {name for name, _ in synthetic().named_parameters()} == {"parameterization.a", "parameterization.b"}


# What is stored.

CLASS_MAJOR, INTERLEAVED, UNEQUAL = (0, 0, 1, 1, 2, 2), (0, 1, 2, 0, 1, 2), (0, 0, 0, 1, 1, 2)


@pytest.mark.parametrize(
    ("labels", "classes", "stored", "per_class"),
    [
        (CLASS_MAJOR, "abc", False, 2),
        ((0, 1, 2, 3, 4, 5), "abcdef", False, 1),
        ((0,) * 6, "a", False, 6),
        (INTERLEAVED, "abc", True, None),
        (UNEQUAL, "abc", True, None),
        (CLASS_MAJOR, "abcd", True, None),
        (CLASS_MAJOR, "abcdef", True, None),
        ((1, 1, 1, 0, 0, 0), "ab", True, None),
        ([[0.6, 0.4]] * 3 + [[0.1, 0.9]] * 3, "ab", True, None),
    ],
    ids=str,
)
def test_labels__are_stored_and_counted_unless_class_major(
    labels: tuple[int, ...], classes: str, stored: bool, per_class: int | None, tmp_path: Path
):
    data = synthetic(labels=labels, classes=classes)
    assert data.per_class == per_class
    assert ("labels" in data.stored()) == stored
    images = data.parameterization.cost(6, SHAPE, rank=2)
    more = data.labels if stored else torch.empty(0)
    assert data.cost() == Cost(images.numbers + more.numel(), images.bits + 8 * more.numel() * more.itemsize)
    data.save(tmp_path / "set.safetensors")
    read = load(tmp_path / "set.safetensors")
    assert torch.equal(read.labels, data.labels)
    assert read.labels.dtype == data.labels.dtype
    assert read.classes == data.classes == tuple(classes)
    assert read.per_class == per_class


@pytest.mark.parametrize("stored", [pixels, lowrank, lambda: Uint8(6, SHAPE)], ids=("pixels", "lowrank", "uint8"))
@pytest.mark.parametrize("about", [{}, {"labels": INTERLEAVED}, {"step_size": 0.02}], ids=str)
def test_cost__is_what_the_file_holds(stored: Callable[[], Parameterization], about: dict[str, Any], tmp_path: Path):
    data = synthetic(stored(), **about)
    data.save(tmp_path / "set.safetensors")
    _, tensors = contents(tmp_path / "set.safetensors")
    numbers = sum(tensor.numel() for tensor in tensors.values())
    size = sum(len(tensor.numpy().tobytes()) for tensor in tensors.values())
    assert data.cost() == Cost(numbers, 8 * size)
    header = int.from_bytes((tmp_path / "set.safetensors").read_bytes()[:8], "little")
    assert (tmp_path / "set.safetensors").stat().st_size == 8 + header + size


# Save and load.


def test_load__gives_what_was_saved(tmp_path: Path):
    about = {"seed": 3, "hints": {"lr": 0.01, "ops": ["flip"]}, "name": "ä"}
    data = synthetic(classes=("ä", "b", "c"), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), step_size=0.0123, about=about)
    data.save(tmp_path / "set.safetensors")
    read = load(tmp_path / "set.safetensors")
    assert torch.equal(read.images(), data.images())
    assert torch.equal(read.labels, data.labels)
    assert (read.classes, read.mean, read.std, read.about) == (data.classes, data.mean, data.std, about)
    assert torch.equal(read.step_size, data.step_size)
    assert read.cost() == data.cost()
    assert torch.equal(read.pictures(), data.pictures())


def test_load__without_a_step_size_has_none(saved: Path):
    assert load(saved).step_size is None
    assert load(str(saved)).about == {}


def test_load__can_be_saved_again_to_the_same_bytes(saved: Path, tmp_path: Path):
    load(saved).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_load__of_a_run_folder(tmp_path: Path):
    data = synthetic()
    data.save(tmp_path / "runs" / "001" / "synthetic.safetensors")
    assert torch.equal(load(tmp_path / "runs" / "001").images(), data.images())


def test_save__same_contents_give_the_same_bytes(tmp_path: Path):
    for name, about in (("a", {"seed": 1, "recipe": {"x": 1, "y": 2}}), ("b", {"recipe": {"y": 2, "x": 1}, "seed": 1})):
        synthetic(labels=INTERLEAVED, step_size=0.5, about=about).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    synthetic(labels=INTERLEAVED, step_size=0.25, about=about).save(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() != (tmp_path / "a").read_bytes()


def test_save__writes_one_metadata_key_with_sorted_json(saved: Path):
    metadata, tensors = contents(saved)
    assert set(metadata) == {"condensate"}
    assert set(tensors) == {"a", "b"}
    text = metadata["condensate"]
    assert len(text.encode()) <= 8192
    about = json.loads(text)
    assert list(about) == sorted(about)
    assert list(about["parameterization"]) == ["name", "rank"]
    assert about["parameterization"] == {"name": "lowrank", "rank": 2}
    assert about["shape"] == list(SHAPE)
    assert about["classes"] == ["a", "b", "c"]


def test_save__a_thousand_class_names_are_kept(tmp_path: Path):
    names = [f"class number {k}" for k in range(1000)]
    SyntheticDataset(Uint8(1000, (1, 2, 2)), torch.arange(1000), classes=names).save(tmp_path / "set.safetensors")
    read = load(tmp_path / "set.safetensors")
    assert read.classes == tuple(names)
    assert torch.equal(read.labels, torch.arange(1000))
    metadata, tensors = contents(tmp_path / "set.safetensors")
    older = {"condensate": json.dumps(json.loads(metadata["condensate"]) | {"classes": 1000})}
    (tmp_path / "older.safetensors").write_bytes(save(tensors, metadata=older))  # which had numbers instead
    assert load(tmp_path / "older.safetensors").classes == tuple(str(k) for k in range(1000))


def test_save__too_much_to_say_is_refused_and_leaves_no_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"takes \d+ bytes; at most 8192 go in a file: shorten about"):
        synthetic(about={"story": "x" * 8192}).save(tmp_path / "set.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there_before", [False, True])
def test_save__that_fails_leaves_what_was_there(there_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "set.safetensors"
    if there_before:
        path.write_bytes(b"old")
    whole = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        whole(self, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        synthetic().save(path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"] * there_before


def test_save__replaces_and_leaves_nothing_else(saved: Path):
    synthetic(step_size=0.5).save(saved)
    assert load(saved).step_size is not None
    assert list(saved.parent.iterdir()) == [saved]


# Files that cannot be read.


def test_load__of_a_folder_of_several_seeds__says_to_name_one(tmp_path: Path):
    synthetic().save(tmp_path / "seed3" / "synthetic.safetensors")
    with pytest.raises(UserError, match=r"is of several seeds; name one of them, as in .*seed3"):
        load(tmp_path)


def test_load__of_a_run_under_way__says_how_to_go_on(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=f"no set yet: condensate run --resume {tmp_path}"):
        load(tmp_path)


def test_load__of_nothing(tmp_path: Path):
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(UserError, match=r"no synthetic data set at .*\.safetensors; expected"):
            load(path)


@pytest.mark.parametrize("damage", ["empty", "cut", "header cut", "garbage", "text", "pickle"])
def test_load__of_a_damaged_file(damage: str, saved: Path):
    whole = saved.read_bytes()
    changed = {
        "empty": b"",
        "cut": whole[:-1],
        "header cut": whole[:100],
        "garbage": b"\xff" * len(whole),
        "text": b"{}",
        "pickle": b"\x80\x04N.",
    }
    saved.write_bytes(changed[damage])
    with pytest.raises(UserError, match=r"set\.safetensors is damaged or not a safetensors file .* make it anew"):
        load(saved)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}], ids=str)
def test_load__of_a_file_of_something_else(metadata: dict[str, str] | None, tmp_path: Path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors", metadata)
    with pytest.raises(UserError, match=r"model\.safetensors is a safetensors file, but not of condensate"):
        load(tmp_path / "model.safetensors")


def test_load__of_a_newer_format_says_to_update(saved: Path):
    with pytest.raises(UserError, match="has format 2, this version reads up to 1: update condensate"):
        load(rewritten(saved, lambda about, _: about.update(format=2)))


TAMPERED: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], object]] = {
    "another shape": lambda about, _: about.update(shape=[3, 4, 4]),
    "no shape": lambda about, _: about.pop("shape"),
    "a flat shape": lambda about, _: about.update(shape=[3, 4]),
    "a shape of text": lambda about, _: about.update(shape="345"),
    "another rank": lambda about, _: about["parameterization"].update(rank=3),
    "a rank of text": lambda about, _: about["parameterization"].update(rank="2"),
    "an impossible rank": lambda about, _: about["parameterization"].update(rank=9),
    "an unknown option": lambda about, _: about["parameterization"].update(colour="red"),
    "a storage that is no name": lambda about, _: about["parameterization"].update(name=["pixels"]),
    "another storage": lambda about, _: about.update(parameterization={"name": "pixels"}),
    "no storage": lambda about, _: about.update(parameterization=None),
    "more images": lambda about, _: about.update(images=9),
    "no images": lambda about, _: about.update(images=0),
    "a googol of images": lambda about, _: about.update(images=10**100),
    "more per class": lambda about, _: about.update(per_class=3),
    "no labels": lambda about, _: about.update(per_class=None),
    "too few classes": lambda about, _: about.update(classes=["a", "b"]),
    "a format of text": lambda about, _: about.update(format="one"),
    "a format below all": lambda about, _: about.update(format=-1),
    "no mean": lambda about, _: about.update(mean=None),
    "an empty mean": lambda about, _: about.update(mean=[]),
    "a mean of keys": lambda about, _: about.update(mean={}),
    "no std": lambda about, _: about.update(std=None),
    "labels below 0": lambda _, tensors: tensors.update(labels=torch.arange(6) % 3 - 1),
    "a missing tensor": lambda _, tensors: tensors.pop("a"),
    "one tensor more": lambda _, tensors: tensors.update(c=torch.zeros(1)),
    "another tensor": lambda _, tensors: tensors.update(a=torch.zeros(2)),
    "labels of too many images": lambda _, tensors: tensors.update(labels=torch.arange(7)),
    "labels of too many classes": lambda _, tensors: tensors.update(labels=torch.arange(6)),
    "two step sizes": lambda _, tensors: tensors.update(step_size=torch.zeros(2)),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_load__of_a_file_that_contradicts_itself(
    change: Callable[[dict[str, Any], dict[str, Tensor]], None], saved: Path
):
    with pytest.raises(UserError, match=r"set\.safetensors is damaged or of an unknown kind: "):
        load(rewritten(saved, change))


def test_load__of_values_that_are_not_finite(saved: Path):
    def change(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors["a"][0] = torch.nan

    with pytest.raises(UserError, match=r"set\.safetensors holds values that are not finite; .* make it anew"):
        load(rewritten(saved, change))


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", '"text"', "{}"])
def test_load__of_a_file_whose_metadata_are_not_ours(text: str, saved: Path):
    _, tensors = contents(saved)
    save_file(tensors, saved, {"condensate": text})
    with pytest.raises(UserError, match="is damaged or of an unknown kind"):
        load(saved)


# A storage of one's own.


class Doubled(Pixels):
    """Stores half of every value."""

    def decode(self, index: Tensor) -> Tensor:
        return 2 * super().decode(index)


def test_save__a_storage_not_registered__says_how_and_leaves_no_file(tmp_path: Path):
    message = (
        r"has none for Doubled; add it before: condensate\.parameterizations\.PARAMETERIZATIONS\['doubled'\] = Doubled"
    )
    with pytest.raises(UserError, match=message):
        synthetic(Doubled(6, SHAPE)).save(tmp_path / "set.safetensors")
    assert not list(tmp_path.iterdir())


def test_load__a_storage_not_registered__says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stored = Doubled(6, SHAPE)
    stored.reset_(seeded())
    file = tmp_path / "set.safetensors"
    with monkeypatch.context() as registered:
        registered.setitem(PARAMETERIZATIONS, "doubled", Doubled)
        synthetic(stored).save(file)
        assert torch.equal(load(file).images(), synthetic(stored).images())
    with pytest.raises(UserError, match=r"stored as 'doubled', .*knows pixels, .*: condensate\..*\['doubled'\] = "):
        load(file)


# Whitened sets.


def raw_images(n: int = 6, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, *SHAPE), generator=seeded(seed), dtype=torch.uint8)


WHITENING = fit(raw_images(50))


def whitened(seed: int = 0) -> SyntheticDataset:
    stored = pixels()
    stored.encode_(WHITENING.whiten(raw_images(seed=seed) / 255))
    return synthetic(stored, whitening=WHITENING)


def test_whitened__pictures_are_the_pixels():
    data = whitened()
    assert float((data.pictures() - raw_images() / 255).abs().max()) < 1 / 255 / 2
    torch.testing.assert_close(data.pictures(torch.tensor([5, 1])), data.pictures()[[5, 1]])


def test_whitened__uint8_holds_real_pixels_and_shows_networks_whitened_ones():
    stored = Uint8(6, SHAPE)
    stored.encode_(raw_images() / 255)
    data = synthetic(stored, whitening=WHITENING)
    assert torch.equal(stored.values, raw_images())
    torch.testing.assert_close(data.images(), whitened().images().detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(data.pictures(), raw_images() / 255, rtol=0, atol=1e-5)
    assert not Uint8(6, SHAPE, mean=(0.5,), std=(1.0,)).holds_pixels
    assert not Uint8(6, SHAPE, std=(0.5,)).holds_pixels


def test_whitened__saved_and_loaded__with_one_side_file(tmp_path: Path):
    name = f"zca-{WHITENING.digest[:16]}.safetensors"
    data = whitened()
    data.save(tmp_path / "a.safetensors")
    first = (tmp_path / name).stat().st_mtime_ns
    whitened(seed=1).save(tmp_path / "b.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", name]
    assert (tmp_path / name).stat().st_mtime_ns == first
    about = json.loads(contents(tmp_path / "a.safetensors")[0]["condensate"])
    assert about["whitening"] == {"file": name, "sha256": WHITENING.digest}
    read = load(tmp_path / "a.safetensors")
    assert read.whitening is not None
    assert read.whitening.digest == WHITENING.digest
    assert torch.equal(read.images(), data.images())
    assert torch.equal(read.pictures(), data.pictures())
    read.save(tmp_path / "again" / "a.safetensors")
    for file in ("a.safetensors", name):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_whitened__side_file_damaged__is_named_and_made_anew_when_saved(tmp_path: Path):
    whitened().save(tmp_path / "set.safetensors")
    (side,) = tmp_path.glob("zca-*")
    whole = side.read_bytes()
    side.write_bytes(whole[:-4])
    with pytest.raises(UserError, match=rf"{side.name} is not a whitening, or is damaged .* copy {side.name} again"):
        load(tmp_path / "set.safetensors")
    whitened().save(tmp_path / "set.safetensors")
    assert side.read_bytes() == whole


def test_whitened__side_file_missing__says_what_to_copy(tmp_path: Path):
    whitened().save(tmp_path / "set.safetensors")
    (side,) = tmp_path.glob("zca-*")
    side.unlink()
    with pytest.raises(UserError, match=rf"{side.name}, which says how, is missing: copy {side.name} beside it"):
        load(tmp_path / "set.safetensors")


def test_whitened__side_file_of_another_set__is_refused(tmp_path: Path):
    whitened().save(tmp_path / "set.safetensors")
    (side,) = tmp_path.glob("zca-*")
    fit(raw_images(50, seed=1)).save(side)
    with pytest.raises(UserError, match=rf"{side.name} is not the whitening that set.safetensors was made with"):
        load(tmp_path / "set.safetensors")


@pytest.mark.parametrize("said", [{"file": "../x", "sha256": "../x"}, {"sha256": 3}, "zca", {}])
def test_whitened__damaged_description__is_refused(said: object, tmp_path: Path):
    whitened().save(tmp_path / "set.safetensors")
    rewritten(tmp_path / "set.safetensors", lambda about, _: about.update(whitening=said))
    with pytest.raises(UserError, match="does not say by which whitening"):
        load(tmp_path / "set.safetensors")


def test_whitened__what_does_not_fit__is_refused():
    with pytest.raises(UserError, match="whitening of 60 values does not suit images of 12"):
        SyntheticDataset(Pixels(1, (1, 3, 4)), torch.tensor([0]), whitening=WHITENING)
    with pytest.raises(UserError, match="give no mean and std"):
        synthetic(whitening=WHITENING, mean=(0.5, 0.5, 0.5))


def test_not_whitened__file_says_nothing_of_it(saved: Path):
    assert "whitening" not in json.loads(contents(saved)[0]["condensate"])
    assert load(saved).whitening is None
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
