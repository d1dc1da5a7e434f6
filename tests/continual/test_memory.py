"""Unions of sets, sets made smaller, and the reservoir."""

import pytest
import torch

from condensate import LowRank, Pixels, Streams, SyntheticDataset, UserError, class_major
from condensate.continual import Reservoir, Union, keep_first, load_memory, save_memory
from condensate.parameterizations import PARAMETERIZATIONS

SHAPE = (1, 4, 4)


def part(classes, each=2, seed=0, rank=None, soft=False, **named):
    stored = Pixels(len(classes) * each, SHAPE) if rank is None else LowRank(len(classes) * each, SHAPE, rank=rank)
    stored.reset_(Streams(seed)("part", *classes))
    labels = class_major(len(classes), each)
    if soft:
        labels = torch.nn.functional.one_hot(labels).float() * 0.75
    return SyntheticDataset(stored, labels, classes=classes, **named)


def test_union__images_and_labels__of_the_parts_by_the_names_of_their_classes():
    parts = [part(["d", "a"], rank=1), part(["b"], 3), part(["a", "c"], 1, seed=1)]
    union = Union(parts, ["a", "b", "c", "d", "e"])
    assert union.labels.tolist() == [3, 3, 0, 0, 1, 1, 1, 0, 2]
    images = torch.cat([each.images() for each in parts])
    assert torch.equal(union.images(), images)
    index = torch.tensor([8, 0, 3, 3, 5, 7])
    assert torch.equal(union.images(index), images[index])
    assert torch.equal(union[-1][0], images[8])
    assert (len(union), int(union[4][1])) == (9, 1)
    with pytest.raises(IndexError):
        union[9]
    assert Union(parts).classes == ("d", "a", "b", "c")


def test_union__soft_labels__stand_under_their_classes():
    union = Union([part(["b", "a"], 1, soft=True), part(["c"], 1)], ["a", "b", "c"])
    assert union.labels.tolist() == [[0, 0.75, 0], [0.75, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("parts", "classes", "message"),
    [
        ([], None, "at least one set"),
        ([part(["a"])], ["b"], "class a of a set is not among the 1"),
        ([part(["a"]), part(["b"], mean=[0.5], std=[0.5])], None, "must have one normalisation"),
    ],
)
def test_union__mistake__named(parts, classes, message):
    with pytest.raises(UserError, match=message):
        Union(parts, classes)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_subset__every_storage__the_same_images(name):
    options = {"lowrank": {"rank": 1}}.get(name, {})
    stored = PARAMETERIZATIONS[name](5, SHAPE, **options)
    stored.reset_(Streams(0)("start"))
    index = torch.tensor([4, 1, 1])
    chosen = stored.subset(index)
    assert (len(chosen), chosen.options()) == (3, stored.options())
    assert torch.equal(chosen.decode(torch.arange(3)), stored.decode(index))
    assert (
        sum(8 * t.numel() * t.element_size() for t in chosen.stored().values()) == chosen.cost(3, SHAPE, **options).bits
    )


def test_keep_first__of_every_class():
    whole = part(["a", "b"], 3, rank=1, mean=[0.5], std=[0.2], step_size=0.125)
    kept = keep_first(whole, 2)
    assert torch.equal(kept.images(), whole.images()[[0, 1, 3, 4]])
    assert (kept.labels.tolist(), kept.classes, kept.mean, kept.std) == ([0, 0, 1, 1], ("a", "b"), (0.5,), (0.2,))
    assert float(kept.step_size.detach()) == 0.125
    assert keep_first(whole, 3) is whole
    with pytest.raises(UserError, match="hard labels"):
        keep_first(part(["a"], soft=True), 1)


def test_memory__saved_and_loaded__the_same(tmp_path):
    parts = [part(["a", "b"]), part(["c"], rank=1)]
    save_memory(parts, tmp_path / "memory")
    loaded = load_memory(tmp_path / "memory", ["c", "b", "a"])
    assert torch.equal(loaded.images(), Union(parts).images())
    assert loaded.labels.tolist() == [2, 2, 1, 1, 0, 0]
    with pytest.raises(UserError, match="no memory in"):
        load_memory(tmp_path)


def test_reservoir__never_over_capacity_and_balanced():
    labels = [0] * 40 + [1] * 3 + [2] * 30 + [0] * 20
    reservoir = Reservoir(12, Streams(0)("reservoir"))
    for item, label in enumerate(labels):
        reservoir.observe(item, label)
        assert len(reservoir) == min(item + 1, 12)
    counts = {label: len(items) for label, items in reservoir.kept.items()}
    assert counts[1] == 3  # all there are
    assert sorted(counts.values())[1:] in ([4, 5], [5, 4])
    for label, items in reservoir.kept.items():
        assert len(set(items)) == len(items)
        assert all(labels[item] == label for item in items)


def test_reservoir__one_class__every_image_equally_likely():
    """Of 10 images 4 are kept: each with probability 0.4."""
    kept = torch.zeros(10)
    for seed in range(2000):
        reservoir = Reservoir(4, Streams(seed)("reservoir"))
        for item in range(10):
            reservoir.observe(item, 0)
        kept[reservoir.kept[0]] += 1
    assert (kept / 2000 - 0.4).abs().max() < 4.5 * (0.4 * 0.6 / 2000) ** 0.5


def test_reservoir__capacity_raised__takes_more():
    reservoir = Reservoir(2, Streams(0)("reservoir"))
    for item in range(6):
        reservoir.observe(item, 0)
    reservoir.capacity = 4
    for item in range(6, 12):
        reservoir.observe(item, 1)
    assert [len(items) for items in reservoir.kept.values()] == [2, 2]


def test_reservoir__classes_that_come_again_after_it_grew__have_their_share():
    for seed in range(20):
        reservoir = Reservoir(50, Streams(seed)("reservoir"))
        labels = torch.randint(10, (1200,), generator=Streams(seed)("labels")).tolist()
        for item, label in enumerate(labels):
            reservoir.capacity = 50 if item < 600 else 100
            reservoir.observe(item, label)
        sizes = torch.tensor([len(reservoir.kept[label]) for label in range(10)])
        assert (int(sizes.sum()), int(sizes.max() - sizes.min()) <= 1) == (100, True)
