"""Real data sets, one folder each below ``$CONDENSATE_DATA``."""

import os
from pathlib import Path

import pytest
import torch

from condensate.data import KNOWN, load
from condensate.errors import UserError

MEASURED = {
    "mnist": (60_000, 10_000, (0.1307,), (0.3081,)),
    "tiny_imagenet_20": (10_000, 1_000, (0.4926, 0.4458, 0.3958), (0.2801, 0.2742, 0.2841)),
    "imagenette_128": (3_000, 600, (0.4586, 0.4550, 0.4271), (0.2773, 0.2742, 0.2967)),
}


def folder(name: str) -> str:
    root = os.environ.get("CONDENSATE_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"name the folder that holds {name} in $CONDENSATE_DATA")
    return str(Path(root) / name)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONDENSATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("name", MEASURED)
def test_counts_and_statistics(name: str):
    train, test, mean, std = MEASURED[name]
    data = load(name, path=folder(name), channels=3 if name == "tiny_imagenet_20" else None)
    assert (len(data.train), len(data.test)) == (train, test)
    assert tuple(round(value, 4) for value in data.mean) == mean
    assert tuple(round(value, 4) for value in data.std) == std


def test_mnist__is_what_is_known():
    data = load("mnist", path=folder("mnist"))
    assert data.train.counts().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.test.counts().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (data.shape, len(data.classes)) == (KNOWN["mnist"].shape, KNOWN["mnist"].classes)


def test_mnist__validation__is_a_tenth_of_each_class():
    data = load("mnist", path=folder("mnist"), validation=0.1)
    assert data.validation is not None
    assert len(data.train) + len(data.validation) == 60_000
    part = data.validation.counts() / (data.train.counts() + data.validation.counts())
    assert torch.allclose(part, torch.tensor(0.1), atol=1e-4)


def test_tiny_imagenet__gray_images__need_an_option():
    message = r"row \d+ of .* has (1|3) channel\(s\) but row 0 of .* has (1|3); .*--data.channels 3"
    with pytest.raises(UserError, match=message):
        load("tiny", path=folder("tiny_imagenet_20"))
