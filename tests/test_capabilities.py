"""What a machine is said to be able to."""

from typing import Any

import pytest
import torch

from condensate.capabilities import can_compile, has_bfloat16, lacking

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "platform", "compilers", "variables", "words"),
    [
        (CPU, "linux", ("g++",), {}, None),
        (CPU, "linux", ("clang++", "c++"), {}, "C++ compiler, and g++ is not found; install g++"),
        (CPU, "darwin", ("clang++",), {}, None),
        (CPU, "win32", ("cl",), {}, None),
        (CPU, "linux", ("clang++",), {"CXX": "clang++"}, None),
        (CPU, "linux", ("g++",), {"CXX": "icpx"}, "C++ compiler, and CXX=icpx is not found; correct CXX"),
        (CUDA, "linux", ("gcc",), {}, None),
        (CUDA, "linux", ("clang",), {}, None),
        (CUDA, "linux", ("g++", "cc"), {}, "a C compiler, and gcc or clang is not found; install gcc"),
        (CUDA, "linux", ("tcc",), {"CC": "tcc"}, None),
        (CUDA, "linux", ("gcc",), {"CC": "tcc"}, "a C compiler, and CC=tcc is not found; correct CC"),
    ],
)
def test_lacking__looks_where_pytorch_looks(
    machine: Any,
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    platform: str,
    compilers: tuple[str, ...],
    variables: dict[str, str],
    words: str | None,
):
    machine(compilers)
    monkeypatch.setattr("condensate.capabilities.sys.platform", platform)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    said = lacking(device)
    assert can_compile(device) == (said is None) == (words is None)
    assert words is None or (said is not None and said.endswith(words))


def test_lacking__a_gpu_without_triton__says_so(machine: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("condensate.capabilities.find_spec", lambda name: None)
    assert lacking(CUDA) == "Triton, which is not installed; pip install triton"
    assert lacking(CPU) is None


@pytest.mark.skipif(not can_compile(CPU), reason="no C++ compiler")
def test_lacking__of_this_machine__is_what_pytorch_says():
    from torch._inductor.cpp_builder import get_cpp_compiler

    assert get_cpp_compiler()


@pytest.mark.parametrize("native", [True, False])
def test_has_bfloat16__on_cuda_does_not_count_emulation(native: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert has_bfloat16(CUDA) == native


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_has_bfloat16__on_a_cpu__by_instructions_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True, "avx512_f": True, name: True})
    assert has_bfloat16(CPU)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True, "avx512_f": True, name: False})
    assert not has_bfloat16(CPU)
