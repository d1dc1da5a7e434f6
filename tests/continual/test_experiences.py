"""Streams: which classes come when, and that nothing of a later experience shows in an earlier one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from condensate import UserError, from_arrays
from condensate.continual import ContinualOptions, class_order, split_stream
from condensate.data import measure


def data(classes=5, each=4, test=3, name="toy", side=4, names=None, shade=20):
    labels, tests = (torch.arange(classes).repeat(count) for count in (each, test))
    images = [
        (values[:, None, None, None] * shade + torch.zeros(1, 1, side, side)).to(torch.uint8)
        for values in (labels, tests)
    ]
    return from_arrays(images[0], labels, images[1], tests, classes=names, name=name)


def test_class_order__seeds_0_to_4__as_published():
    published = ["2849167305", "2964031785", "4150723698", "5412967038", "3849260157"]
    for seed, text in enumerate(published):
        assert class_order(10, seed) == [int(digit) for digit in text]
    assert class_order(100, 0)[:5] == [26, 86, 2, 55, 75]
    assert class_order(100, 4)[-5:] == [87, 1, 69, 55, 46]


def test_class_order__global_state__untouched(random_state):
    before = random_state()
    class_order(10, 3)
    assert random_state() == before


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_class_order__seed_out_of_range__named(seed):
    with pytest.raises(UserError, match=r"seed from 0 to 4294967295, got"):
        class_order(10, seed)


@given(classes=st.integers(1, 12), steps=st.integers(1, 12), seed=st.integers(0, 5))
def test_split_stream__any_number_of_steps__every_class_once(classes, steps, seed):
    options = ContinualOptions(steps=steps)
    if steps > classes:
        with pytest.raises(
            UserError, match=f"{classes} classes of toy make at most {classes} experiences, not {steps}"
        ):
            split_stream([data(classes)], options, seed)
        return
    stream = split_stream([data(classes)], options, seed)
    seen = [name for experience in stream.experiences for name in experience.data.classes]
    assert [int(name) for name in seen] == class_order(classes, seed)
    assert max(stream.slots) - min(stream.slots) <= 1
    assert list(stream.slots) == sorted(stream.slots, reverse=True)
    assert stream.seen(steps - 1) == classes


def test_split_stream__experience__has_its_own_images_alone():
    whole = data(5)
    for experience in split_stream([whole], ContinualOptions(steps=2), 1).experiences:
        for split, of in ((experience.data.train, whole.train), (experience.data.test, whole.test)):
            for image, label in zip(split.raw, split.labels.tolist(), strict=True):
                assert int(image[0, 0, 0]) == 20 * int(experience.data.classes[label])
            assert len(split) == sum(int(of.counts()[int(name)]) for name in experience.data.classes)


def test_split_stream__normalisation__measured_on_the_first_experience():
    whole = data(5)
    stream = split_stream([whole], ContinualOptions(steps=5), 3)
    first = stream.experiences[0].data
    for experience in stream.experiences:
        assert experience.data.mean == first.mean == tuple(measure(first.train.raw)[0])
        assert experience.data.train.mean == first.mean
    assert first.mean != whole.mean
    assert first.std == (1.0,)  # all its pixels are equal
    stated = split_stream([whole], ContinualOptions(steps=5), 0, mean=whole.mean, std=whole.std)
    assert stated.experiences[3].data.mean == whole.mean
    half = split_stream([whole], ContinualOptions(steps=5), 3, mean=[0.5]).experiences[2].data
    assert (half.mean, half.std) == ((0.5,), first.std)


def test_split_stream__groups__by_name_and_number():
    whole = data(4, names=["a", "b", "c", "d"])
    stream = split_stream([whole], ContinualOptions(groups=[["d", 0], ["b"], [2]]), 3)
    assert [e.data.classes for e in stream.experiences] == [("d", "a"), ("b",), ("c",)]
    assert stream.slots == (2, 1, 1)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1], [1, 2, 3]], "overlap: class b is in experiences 1 and 2"),
        ([[0, "a"], [1, 2, 3]], "overlap: class a is in experiences 1 and 1"),
        ([[0, 1], [3]], "miss c; each of the 4 classes"),
        ([[0, 1], [2, 3, 4]], "names class 4; there are classes 0 to 3"),
        ([[0, 1], ["cc"]], "unknown class in continual.groups 'cc'; did you mean 'c'"),
        ([[0, 1], []], "experience 2 of continual.groups has no class"),
    ],
)
def test_split_stream__groups_that_do_not_divide_the_classes__named(groups, message):
    with pytest.raises(UserError, match=message):
        split_stream([data(4, names=["a", "b", "c", "d"])], ContinualOptions(groups=groups), 0)


def test_split_stream__two_data_sets__disjoint_labels():
    first, second = data(3, name="one"), data(2, name="two", shade=50)
    stream = split_stream([first, second], ContinualOptions(steps=1, then=[{"name": "two"}]), 0)
    assert stream.classes == ("0", "1", "2", "two 2: 0", "two 2: 1")
    assert stream.slots == (3, 2)
    assert stream.experiences[1].data.mean == stream.experiences[0].data.mean
    steps = split_stream([first, second], ContinualOptions(steps=2, then=[{"name": "two"}]), 0)
    assert steps.slots == (2, 1, 1, 1)


def test_split_stream__two_data_sets__shared_labels():
    first, second = data(3, name="one"), data(3, name="two", shade=50, names=["x", "y", "z"])
    options = ContinualOptions(steps=1, labels="shared", then=[{"name": "two"}])
    stream = split_stream([first, second], options, 0)
    assert stream.classes == ("0", "1", "2")
    assert [e.data.classes for e in stream.experiences] == [("0", "1", "2")] * 2
    assert stream.seen(1) == 3
    with pytest.raises(UserError, match="share labels need equally many classes, got 3 and 2 of two"):
        split_stream([first, data(2, name="two")], options, 0)


def test_split_stream__images_of_two_shapes__named():
    with pytest.raises(UserError, match=r"one shape, got \(1, 4, 4\) of toy and \(1, 5, 5\)"):
        split_stream([data(), data(side=5)], ContinualOptions(then=[{"name": "x"}]), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "gdump"}, "unknown continual.protocol 'gdump'; did you mean 'gdumb'"),
        ({"budget": "none"}, "unknown continual.budget 'none'"),
        ({"shrink": "keep"}, "unknown continual.shrink 'keep'; known: drop, recondense"),
        ({"labels": "same"}, "unknown continual.labels 'same'"),
        ({"steps": 0}, "must be at least 1, got 0"),
        ({"then": [{"nam": "x"}]}, "unknown key of continual.then 'nam'; did you mean 'name'"),
        ({"then": [{"path": "x"}]}, "needs the name of every data set"),
        ({"then": [{"name": "x"}], "groups": [[0]]}, "divides one data set"),
        ({"labels": "shared"}, "one experience of each of several data sets"),
        ({"labels": "shared", "then": [{"name": "x"}]}, "set continual.steps 1"),
    ],
)
def test_options__mistake__named(options, message):
    with pytest.raises(UserError, match=message):
        ContinualOptions(**options)
