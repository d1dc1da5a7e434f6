"""What every test runs under, and data small enough for all of them."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from condensate import ImageData, from_arrays

# No deadline: a busy machine is no failure. Derandomised: a run of the tests can be repeated.
settings.register_profile("condensate", deadline=None, derandomize=True)
settings.load_profile("condensate")


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, here and in programs that are started, and a cache of decoded data that is not the user's."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CONDENSATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def random_state() -> Callable[[], object]:
    """Reads the global random states of PyTorch, NumPy and Python, to be compared."""

    def read() -> object:
        kind, keys, *rest = np.random.get_state()
        return torch.get_rng_state().tolist(), (kind, keys.tolist(), *rest), random.getstate()

    return read


@pytest.fixture(scope="session")
def toy_data() -> ImageData:
    """Stripes across, stripes down and checks, 3x8x8, under noise: 20 of each to train on, 10 to test on."""
    rows = torch.arange(8)[:, None].expand(8, 8) % 4 < 2
    patterns = torch.stack([rows, rows.T, rows ^ rows.T]).float() - 0.5
    generator = torch.Generator().manual_seed(0)

    def draw(each: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(3).repeat(each)
        noise = torch.randn(3 * each, 3, 8, 8, generator=generator)
        pixels = 128 + 80 * patterns[labels][:, None] + 40 * noise
        return pixels.round().clamp(0, 255).to(torch.uint8), labels

    return from_arrays(*draw(20), *draw(10), classes=("across", "down", "checks"), name="toy")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets which compilers are installed and what the processor can do; Triton is there."""
    monkeypatch.setattr("condensate.capabilities.find_spec", lambda name: name)
    monkeypatch.setattr("condensate.capabilities.sys.platform", "linux")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)

    def set_(compilers: tuple[str, ...] = ("gcc", "g++"), **capabilities: bool) -> None:
        monkeypatch.setattr("condensate.capabilities.shutil.which", lambda name: name if name in compilers else None)
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)

    set_()
    return set_
