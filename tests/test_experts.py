"""Expert stores: what they hold, several writers, and stores that are unfinished, foreign or damaged."""

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from condensate import Augment, Streams, UserError, build_network, from_arrays
from condensate.experts import ExpertOptions, Store, trajectory

OPTIONS = ExpertOptions(count=3, lr=0.1, batch=8)
KIND = {"data": "abc", "training": OPTIONS.training()}
REMEDY = "condensate experts this"


@pytest.fixture(scope="module")
def real():
    labels = torch.arange(3).repeat(10)
    images = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8, generator=Streams(0)("images"))
    return from_arrays(images, labels, images, labels).train


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, KIND, 3, 2, REMEDY)


def trained(real, number, epochs=2, options=OPTIONS, augment=None):
    network = build_network("convnet", (1, 8, 8), 3, Streams(0)("net"), width=4, depth=1)
    return trajectory(network, real, Streams(0), number, epochs, augment or Augment([]), options)


def test_trajectory__snapshots_are_copies_that_differ(real):
    path = trained(real, 0)
    assert len(path) == 3
    for before, after in itertools.pairwise(path):
        assert not {value.data_ptr() for value in before.values()} & {value.data_ptr() for value in after.values()}
        assert not torch.equal(before["classifier.weight"], after["classifier.weight"])


def test_trajectory__begins_like_a_longer_one_and_depends_on_its_number(real):
    short, long, other = trained(real, 1), trained(real, 1, epochs=4), trained(real, 2)
    for epoch, snapshot in enumerate(short):
        for name, value in snapshot.items():
            assert torch.equal(value, long[epoch][name])
    assert not torch.equal(short[0]["classifier.weight"], other[0]["classifier.weight"])


def test_trajectory__is_plain_gradient_descent(real):
    options = replace(OPTIONS, batch=30, momentum=0.0)
    first, second = trained(real, 0, epochs=1, options=options)
    network = build_network("convnet", (1, 8, 8), 3, Streams(0)("net"), width=4, depth=1)
    network.load_state_dict(first)
    torch.nn.functional.cross_entropy(network(real.images()), real.labels).backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(second[name], first[name] - 0.1 * parameter.grad)


def test_trajectory__augmented_one_differs(real):
    plain, seen = trained(real, 0), trained(real, 0, augment=Augment(["scale"]))
    assert torch.equal(plain[0]["classifier.weight"], seen[0]["classifier.weight"])
    assert not torch.equal(plain[1]["classifier.weight"], seen[1]["classifier.weight"])


def test_make__parameters_read_back_as_trained(store, real):
    store.make(lambda number: trained(real, number))
    assert store.missing() == []
    for number in range(3):
        for epoch, snapshot in enumerate(trained(real, number)):
            read = store.parameters(number, epoch)
            assert read.keys() == snapshot.keys()
            assert all(torch.equal(read[name], value) for name, value in snapshot.items())


def test_make__bfloat16__half_the_room_and_close(tmp_path, real):
    sizes = []
    for precision in ("float32", "bfloat16"):
        options = replace(OPTIONS, precision=precision)
        store = Store(tmp_path, {"training": options.training()}, 1, 2, REMEDY)
        store.make(lambda number, options=options: trained(real, number, options=options))
        (file,) = store.folder.glob("expert-*")
        sizes.append(file.stat().st_size)
        for name, value in store.parameters(0, 2).items():
            torch.testing.assert_close(value.float(), trained(real, 0)[2][name], rtol=2**-8, atol=0)
    assert sizes[1] < 0.8 * sizes[0]


def test_make__goes_on_where_it_was_stopped(store, real):
    class Stop(Exception):
        pass

    def stopping(number):
        if number == 1:
            raise Stop
        return trained(real, number)

    with pytest.raises(Stop):
        store.make(stopping)
    assert store.missing() == [1, 2]
    made = []
    store.make(lambda number: made.append(number) or trained(real, number))
    assert made == [1, 2]
    assert not [file for file in store.folder.iterdir() if file.name.endswith(".part")]


def test_make__a_folder_that_cannot_be_written__named_with_what_to_do(store, real, monkeypatch):
    monkeypatch.setattr("condensate.experts.replacing", Mock(side_effect=OSError(30, "Read-only file system")))
    with pytest.raises(UserError, match=r"cannot be kept in .* \(Read-only file system\); name .* in --experts.store"):
        store.make(lambda number: trained(real, number))


def test_make__several_writers__every_expert_once(store, real):
    made, together = [], threading.Barrier(3)

    def write(_):
        together.wait()
        store.make(lambda number: made.append(number) or trained(real, number))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    assert sorted(made) == [0, 1, 2]
    assert store.missing() == []


def test_make__more_epochs_wanted__made_anew_and_good_for_fewer(tmp_path, store, real):
    store.make(lambda number: trained(real, number))
    longer = Store(tmp_path, KIND, 3, 4, REMEDY)
    assert longer.folder == store.folder
    assert longer.missing() == [0, 1, 2]
    longer.make(lambda number: trained(real, number, epochs=4))
    assert longer.missing() == store.missing() == []


def test_folder__another_kind__another_name(tmp_path, store):
    assert Store(tmp_path, {**KIND, "data": "abd"}, 3, 2, REMEDY).folder != store.folder
    assert Store(tmp_path, KIND, 7, 9, REMEDY).folder == store.folder


def test_check__no_experts__says_the_command(store):
    with pytest.raises(UserError, match=f"no experts of this recipe in .*{REMEDY}"):
        store.check_complete()


def test_check__unfinished__says_how_many_and_the_command(store, real):
    store.make(lambda number: trained(real, number))
    (store.folder / "expert-00001.safetensors").unlink()
    with pytest.raises(UserError, match=f"holds 2 of 3 experts; finish it with: {REMEDY}"):
        store.check_complete()


def test_check__folder_of_another_kind_named__says_what_differs(store, real):
    store.make(lambda number: trained(real, number))
    other = Store(store.folder, {**KIND, "data": "abd"}, 3, 2, REMEDY)
    for check in (other.check_kind, other.check_complete, lambda: other.make(lambda number: trained(real, number))):
        with pytest.raises(UserError, match=f"made for something else .they differ in data.; .*{REMEDY}"):
            check()
    Store(store.folder, KIND, 3, 2, REMEDY).check_complete()


def test_parameters__damaged_or_absent_file__says_the_command(store, real):
    store.make(lambda number: trained(real, number))
    file = store.folder / "expert-00002.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=f"damaged .*{REMEDY}"):
        store.parameters(2, 0)
    file.unlink()
    with pytest.raises(UserError, match=f"absent .*{REMEDY}"):
        store.parameters(2, 0)
    with pytest.raises(UserError, match="holds no epoch 9"):
        store.parameters(0, 9)


def test_check__damaged_manifest__says_what_to_delete(store, real):
    store.make(lambda number: trained(real, number))
    (store.folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged; delete"):
        store.check_kind()


def test_manifest__says_what_the_experts_are_of(store, real):
    store.make(lambda number: trained(real, number))
    assert json.loads((store.folder / "manifest.json").read_text()) == {"format": 1, **KIND}


@pytest.mark.parametrize("wrong", [{"count": 0}, {"epochs": 0}, {"batch": 0}])
def test_options__count_below_one__refused(wrong):
    with pytest.raises(UserError, match="at least 1"):
        ExpertOptions(**wrong)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": float("inf")}, {"momentum": 1.0}, {"weight_decay": -1.0}])
def test_options__rates_that_cannot_train__refused(wrong):
    with pytest.raises(UserError, match="experts need a finite lr"):
        ExpertOptions(**wrong)


def test_make__all_there__nothing_is_written(store, real):
    store.make(lambda number: trained(real, number))
    before = {file: file.stat().st_mtime_ns for file in store.folder.iterdir()}
    store.make(lambda number: trained(real, number))
    assert before == {file: file.stat().st_mtime_ns for file in store.folder.iterdir()}


def test_make__leftovers_of_a_killed_writer_are_removed(store, real):
    store.folder.mkdir(parents=True)
    (store.folder / ".expert-00001.safetensors.abc.part").write_bytes(b"half")
    store.make(lambda number: trained(real, number))
    assert not list(store.folder.glob(".*.part"))
