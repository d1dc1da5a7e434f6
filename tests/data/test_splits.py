import json
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from condensate.data import ImageData, Split, from_arrays, load
from condensate.errors import UserError
from condensate.whitening import fit


def draw(count: int, channels: int = 3, size: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def arrays(per_class: tuple[int, ...] = (20, 12, 8), **options: object) -> ImageData:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(per_class)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    test = torch.arange(len(per_class))
    return from_arrays(draw(len(labels)), labels, draw(len(test), seed=1), test, **options)  # type: ignore[arg-type]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Split


def test_images__are_normalised_float32_at_the_index():
    data = arrays(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    index = torch.tensor([7, 0, 7])
    mean, std = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])[..., None, None]
    expected = (data.train.raw[index] / 255 - mean) / std
    assert data.train.images(index).dtype == torch.float32
    torch.testing.assert_close(data.train.images(index), expected)
    assert torch.equal(data.train.images(), data.train.images(torch.arange(40)))
    assert data.train.images(torch.tensor([], dtype=torch.long)).shape == (0, 3, 6, 6)


def test_images__seen__are_as_given__and_of_any_part_of_them():
    images = torch.randn(6, 3, 4, 4)
    split = Split(images, torch.arange(6) % 2, ("a", "b"), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), seen=True)
    assert torch.equal(split.images(), images)
    assert torch.equal(split.subset(torch.tensor([4, 1])).images(), images[[4, 1]])
    assert torch.equal(split.of_classes([1]).images(), images[1::2])
    assert split.images(torch.tensor([0])).data_ptr() != images.data_ptr()
    for otherwise in (lambda: split.normalised((0.0,) * 3, (1.0,) * 3), lambda: split.seen_through(None)):
        with pytest.raises(UserError, match="normalised already"):
            otherwise()


def test_images__leave_the_raw_images_alone():
    data = arrays()
    before = data.train.raw.clone()
    data.train.images()
    assert torch.equal(data.train.raw, before)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_sample__draws_distinct_images_of_the_class(label: int):
    split = arrays().train
    index = split.sample(label, 8, seeded())
    assert len(set(index.tolist())) == 8
    assert (split.labels[index] == label).all()
    assert torch.equal(index, split.sample(label, 8, seeded()))
    assert not torch.equal(index, split.sample(label, 8, seeded(1)))


def test_sample__reaches_every_image_of_the_class():
    split = arrays().train
    assert split.sample(1, 12, seeded()).sort().values.tolist() == (split.labels == 1).nonzero().flatten().tolist()


def test_sample__small_class__with_replacement_and_one_warning():
    split = arrays().train
    with pytest.warns(UserWarning, match=r"10 images .* with replacement: 2 \(8\)$"):
        index = split.sample(2, 10, seeded())
    assert len(index) == 10
    assert (split.labels[index] == 2).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split.sample(2, 300, seeded())
        split.sample(1, 300, seeded())


def test_sample__many_small_classes__warning_stays_short():
    with pytest.warns(UserWarning, match=r"0 \(1\), .*, 9 \(1\) and 5 more$"):
        arrays((1,) * 15).train.sample(0, 2, seeded())


def test_sample__class_without_images__is_refused():
    split = arrays().train
    only_first = split.subset((split.labels == 0).nonzero().flatten())
    assert only_first.counts().tolist() == [20, 0, 0]
    with pytest.raises(UserError, match=r"cannot sample class 2 \(2\): it has no images"):
        only_first.sample(2, 1, seeded())


def test_sample_all__of_one_class__draws_distinct_images(toy_data):
    split = toy_data.only([1]).train
    (index,) = split.sample_all(4, seeded())
    assert len(set(index.tolist())) == 4


def test_sample_all__draws_distinct_images_of_every_class():
    split = arrays().train
    index = split.sample_all(8, seeded())
    assert index.shape == (3, 8)
    assert all(len(set(row)) == 8 for row in index.tolist())
    assert split.labels[index].tolist() == [[label] * 8 for label in range(3)]
    assert torch.equal(index, split.sample_all(8, seeded()))
    assert not torch.equal(index, split.sample_all(8, seeded(1)))


def test_sample_all__each_image_as_often_in_any_place():
    split, times = arrays((4, 3)).train, 4000
    drawn = torch.stack([split.sample_all(3, generator) for generator in [seeded()] for _ in range(times)])
    for label, size in ((0, 4), (1, 3)):
        members = (split.labels == label).nonzero().flatten()
        for place in range(3):
            seen = (drawn[:, label, place, None] == members).double().mean(0)
            assert (seen - 1 / size).abs().max() < 5 * (1 / size * (1 - 1 / size) / times) ** 0.5


def test_sample_all__small_class__with_replacement_and_one_warning_the_others_without():
    split = arrays().train
    with pytest.warns(UserWarning, match=r"10 images .* with replacement: 2 \(8\)$"):
        index = split.sample_all(10, seeded())
    assert [len(set(row)) for row in index.tolist()[:2]] == [10, 10]
    assert (split.labels[index[2]] == 2).all()
    every = torch.cat([split.sample_all(10, seeded(seed))[2] for seed in range(30)])
    assert set(every.tolist()) == set((split.labels == 2).nonzero().flatten().tolist())


def test_sample_all__class_without_images__is_refused():
    split = arrays().train
    with pytest.raises(UserError, match=r"cannot sample class 2 \(2\): it has no images"):
        split.subset((split.labels < 2).nonzero().flatten()).sample_all(1, seeded())


def test_counts__of_every_class():
    split = arrays().train
    assert split.counts().tolist() == [20, 12, 8]
    split.counts().zero_()
    assert split.counts().tolist() == [20, 12, 8]
    assert len(split) == 40


def test_subset__keeps_classes_and_normalisation():
    split = arrays(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).train
    index = torch.tensor([3, 1])
    assert torch.equal(split.subset(index).images(), split.images(index))
    assert split.subset(index).labels.tolist() == split.labels[index].tolist()


def test_to__same_device__is_the_same_split():
    data = arrays(validation=0.2)
    assert data.train.to("cpu") is data.train
    assert data.to("cpu").fingerprint == data.fingerprint


@pytest.mark.cuda
def test_to__cuda__draws_what_the_cpu_draws():
    data = arrays(validation=0.2)
    moved = data.to("cuda")
    assert moved.validation is not None
    assert moved.validation.raw.is_cuda
    index = moved.train.sample(1, 5, seeded())
    assert index.is_cuda
    assert torch.equal(index.cpu(), data.train.sample(1, 5, seeded()))
    torch.testing.assert_close(moved.train.images(index).cpu(), data.train.images(index.cpu()))
    torch.testing.assert_close(moved.train.images(index.cpu()), moved.train.images(index))
    assert moved.train.sample(1, 5, torch.Generator("cuda").manual_seed(0)).is_cuda


# ImageData


def test_statistics__equal_a_direct_computation():
    data = arrays()
    pixels = data.train.raw.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_statistics__with_validation__are_of_the_remaining_images():
    data = arrays(validation=0.5)
    pixels = data.train.raw.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)


def test_statistics__one_given__the_other_is_measured():
    assert arrays(mean=(0, 0, 0)).mean == (0, 0, 0)
    assert arrays(mean=(0, 0, 0)).std == arrays().std
    assert arrays(std=(1, 1, 1)).mean == arrays().mean


def test_statistics__constant_channel__becomes_zero():
    images = draw(4)
    images[:, 1] = 7
    data = from_arrays(images, [0, 1, 0, 1], images, [0, 1, 0, 1])
    assert data.std[1] == 1
    assert data.train.images()[:, 1].abs().max() < 1e-6


def test_validation__is_disjoint_stratified_and_fixed():
    data, again = arrays(validation=0.25), arrays(validation=0.25)
    assert data.validation is not None
    assert again.validation is not None
    assert data.train.counts().tolist() == [15, 9, 6]
    assert data.validation.counts().tolist() == [5, 3, 2]
    assert torch.equal(data.validation.raw, again.validation.raw)
    whole = {image.numpy().tobytes() for image in arrays().train.raw}
    kept, held = ({image.numpy().tobytes() for image in split.raw} for split in (data.train, data.validation))
    assert kept | held == whole
    assert not kept & held


@pytest.mark.parametrize(("part", "kept", "held"), [(0.001, [19, 11, 1], [1, 1, 1]), (0.999, [1, 1, 1], [19, 11, 1])])
def test_validation__every_class_keeps_an_image_and_gives_one(part: float, kept: list[int], held: list[int]):
    data = arrays((20, 12, 2), validation=part)
    assert data.validation is not None
    assert (data.train.counts().tolist(), data.validation.counts().tolist()) == (kept, held)


def test_validation__absent__is_none():
    assert arrays().validation is None


def test_validation__class_of_one_image__is_refused():
    with pytest.raises(UserError, match=r"class 2 has too few images \(1\)"):
        arrays((3, 3, 1), validation=0.5)


def test_global_generators__are_untouched():
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    data = arrays(validation=0.2)
    data.train.sample(0, 5, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # type: ignore[index]


# ZCA


def test_zca__images_are_whitened_pixels_and_not_normalised():
    data = arrays(zca=True)
    assert data.whitening is not None
    expected = fit(data.train.raw).whiten(data.train.raw / 255)
    torch.testing.assert_close(data.train.images(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(data.train.images(torch.tensor([7, 0, 7])), expected[[7, 0, 7]], rtol=0, atol=1e-6)
    assert data.train.images(torch.tensor([], dtype=torch.long)).shape == (0, 3, 6, 6)
    assert (data.mean, data.std) == ((0, 0, 0), (1, 1, 1))
    some = data.train.subset(torch.tensor([4, 2]))
    torch.testing.assert_close(some.images(), expected[[4, 2]], rtol=0, atol=1e-6)


def test_zca__fitted_on_training_images_alone__applied_to_all():
    data, plain = arrays(zca=True, validation=0.3), arrays(validation=0.3)
    fitted = fit(plain.train.raw)
    assert data.whitening is not None
    assert data.whitening.digest == fitted.digest
    for name in ("train", "validation", "test"):
        raw = getattr(plain, name).raw
        torch.testing.assert_close(getattr(data, name).images(), fitted.whiten(raw / 255), rtol=0, atol=1e-6)
    assert data.fingerprint == plain.fingerprint


def test_zca__gray_images():
    raw = draw(30, 1)
    data = from_arrays(raw, torch.arange(30) % 2, raw, torch.arange(30) % 2, zca=True)
    torch.testing.assert_close(data.test.images(), fit(raw).whiten(raw / 255), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": (0.5,) * 3}, r"drop --data.mean \(--data.mean null\), or say --data.zca false"),
        (
            {"mean": (0.5,) * 3, "std": (0.5,) * 3},
            r"drop --data.mean and --data.std \(--data.mean null --data.std null\)",
        ),
    ],
)
def test_zca__with_a_normalisation__is_refused(given: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        arrays(zca=True, **given)
    with pytest.raises(UserError, match=message):
        load(zca=True, **given)  # type: ignore[arg-type]


def test_preprocessing__is_plain_json():
    plain, data = arrays(mean=(0.1, 0.2, 0.3)), arrays(zca=True)
    assert plain.preprocessing == {"mean": [0.1, 0.2, 0.3], "std": list(plain.std), "zca": None}
    assert data.whitening is not None
    assert data.preprocessing == {"mean": [0, 0, 0], "std": [1, 1, 1], "zca": data.whitening.digest}
    assert json.loads(json.dumps(data.preprocessing)) == data.preprocessing


def test_seen_through__another_whitening__takes_the_place_of_what_was_there():
    other = fit(draw(50, seed=9))
    for data in (arrays(validation=0.3), arrays(zca=True, validation=0.3)):
        seen = data.seen_through(other)
        for name in ("train", "validation", "test"):
            split = getattr(seen, name)
            torch.testing.assert_close(split.images(), other.whiten(split.raw / 255), rtol=0, atol=1e-6)
        assert seen.preprocessing == {"mean": [0, 0, 0], "std": [1, 1, 1], "zca": other.digest}
        assert seen.seen_through(fit(draw(50, seed=9))) is seen
        torch.testing.assert_close(data.train.seen_through(None).images(), data.train.raw / 255)


@pytest.mark.cuda
def test_zca__cuda__sees_what_the_cpu_sees():
    data = arrays(zca=True)
    torch.testing.assert_close(data.to("cuda").test.images().cpu(), data.test.images(), rtol=0, atol=1e-5)


def test_fingerprint__is_of_the_contents():
    assert arrays().fingerprint == arrays(mean=(0, 0, 0), name="other").fingerprint
    different = [arrays(), arrays((20, 12, 9)), arrays(validation=0.2), arrays(validation=0.3), arrays(classes="abc")]
    assert len({data.fingerprint for data in different}) == 5


def test_fingerprint__many_chunks__sees_one_changed_pixel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("condensate.data.contents._CHUNK", 100)
    images, labels = draw(10), [0] * 10
    before = from_arrays(images, labels, images[:1], labels[:1]).fingerprint
    images[-1, -1, -1, -1] ^= 1
    assert from_arrays(images, labels, images[:1], labels[:1]).fingerprint != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5,)}, r"--data.mean must have one value for each of 3 channels of the images, got \[0.5\]"),
        ({"std": (1, 1)}, r"--data.std must have one value for each of 3 channels of the images, got \[1, 1\]"),
        ({"std": (1, 0, 1)}, r"--data.std must be above 0, got \[1, 0, 1\]"),
        ({"mean": (0, float("nan"), 0)}, r"--data.mean must be finite"),
        ({"validation": 1.0}, r"--data.validation must be a part from 0 to below 1, got 1.0"),
        ({"validation": -0.1}, r"--data.validation must be a part from 0 to below 1, got -0.1"),
    ],
)
def test_wrong_option__is_refused(options: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        arrays(**options)


# from_arrays


def test_from_arrays__every_layout__gives_the_same():
    images = draw(6)
    labels = [0, 1, 2, 0, 1, 2]
    expected = from_arrays(images, labels, images, labels).train.raw
    as_last = images.permute(0, 2, 3, 1)
    for given in (images.numpy(), as_last, as_last.numpy(), images / 255, (images / 255).double().numpy()):
        assert torch.equal(from_arrays(given, np.array(labels), given, torch.tensor(labels)).train.raw, expected)


def test_from_arrays__no_channel_axis__is_gray():
    images = draw(4, channels=1)
    data = from_arrays(images[:, 0].numpy(), [0, 1, 0, 1], images, [0, 1, 0, 1])
    assert data.shape == (1, 6, 6)
    assert torch.equal(data.train.raw, data.test.raw)


def test_from_arrays__copies():
    images = draw(4)
    data = from_arrays(images, [0, 1, 0, 1], images.numpy(), [0, 1, 0, 1])
    images.zero_()
    assert data.train.raw.any()
    assert data.test.raw.any()


def test_from_arrays__class_names():
    assert arrays().classes == ("0", "1", "2")
    assert arrays(classes=["a", "b", "c"]).classes == ("a", "b", "c")
    assert arrays().name == "arrays"


GOOD, TARGET = draw(4), [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GOOD.long(), TARGET, r"train images must be uint8, or floating point in 0 to 1, got torch.int64"),
        (GOOD.float(), TARGET, r"train images in floating point must lie in 0 to 1, got 0 to 255"),
        (GOOD / 255 * torch.nan, TARGET, r"must lie in 0 to 1, got nan to nan"),
        (GOOD[:, :, 0, 0], TARGET, r"train images must be \(N, C, H, W\), .* got \(4, 3\)"),
        (draw(4, channels=5), TARGET, r"with 1 to 4 channels, got \(4, 5, 6, 6\)"),
        (GOOD[:0], TARGET, r"got \(0, 3, 6, 6\)"),
        ("images", TARGET, r"train images must be a PyTorch tensor or a NumPy array of numbers, got str"),
        (GOOD, [0, 1, 0], r"one label an image, got 4 training images, 3 labels"),
        (GOOD, [0.0, 1.0, 0.0, 1.0], r"train labels must be integers from 0 to K-1, .* got torch.float64"),
        (GOOD, [True, False, True, False], r"got torch.bool of shape \(4,\)"),
        (GOOD, np.zeros((4, 1), dtype=int), r"got torch.int64 of shape \(4, 1\)"),
        (GOOD, [], r"train labels must be integers .* of shape \(0,\)"),
        (GOOD, [0, -1, 0, 1], r"integers from 0 to 1, one for each of 2 classes, got -1 at position 1"),
        (GOOD, [0, 2, 0, 2], r"class 1 has no training images; number the classes from 0 without gaps"),
        (GOOD, [1, 2, 1, 2], r"class 0 has no training images"),
    ],
)
def test_from_arrays__wrong_array__is_refused(images: object, labels: object, message: str):
    with pytest.raises(UserError, match=message):
        from_arrays(images, labels, GOOD, TARGET)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            draw(4, size=7),
            TARGET,
            r"test images must have the shape of the training images, \(3, 6, 6\), got \(3, 7, 7\)",
        ),
        (draw(4, channels=1), TARGET, r"\(3, 6, 6\), got \(1, 6, 6\)"),
        (
            GOOD,
            [0, 1, 2, 1],
            r"test labels must be integers from 0 to 1, one for each of 2 classes, got 2 at position 2",
        ),
        (GOOD, [0], r"got 4 test images, 1 labels"),
    ],
)
def test_from_arrays__test_unlike_train__is_refused(images: object, labels: object, message: str):
    with pytest.raises(UserError, match=message):
        from_arrays(GOOD, TARGET, images, labels)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a"], r"train labels must be integers from 0 to 0, one for each of 1 classes, got 1 at position 1"),
        (["a", "b", "c"], r"class 2 \(c\) has no training images"),
        (["a", "a"], "class names must differ, for they tell classes apart; 'a' comes more than once"),
    ],
)
def test_from_arrays__class_names_that_do_not_suit__are_refused(classes: list[str], message: str):
    with pytest.raises(UserError, match=message):
        from_arrays(GOOD, TARGET, GOOD, TARGET, classes=classes)


def test_split__is_what_fit_and_evaluate_accept():
    split = arrays().train
    assert isinstance(split, Split)
    assert (len(split), split.images(torch.tensor([0])).shape, split.labels.dtype) == (40, (1, 3, 6, 6), torch.int64)
