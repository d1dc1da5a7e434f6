"""What a machine can: compile, compute in bfloat16, gain by tiles."""

import os
import shutil
import sys
from importlib.util import find_spec

import torch


def lacking(device: torch.device) -> str | None:
    """What ``torch.compile`` needs and does not find on this machine, and how to get it; None where it finds all.

    It looks where PyTorch looks: on a CPU for ``$CXX`` or else the system's C++ compiler, under its usual name alone;
    on a GPU for Triton, which builds its launchers with ``$CC``, gcc or clang.
    """
    if device.type == "cuda":
        if find_spec("triton") is None:
            return "Triton, which is not installed; pip install triton"
        variable, kind, usual = "CC", "C", ["gcc", "clang"]
    else:
        variable, kind, usual = "CXX", "C++", [{"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")]
    named = os.environ.get(variable)
    if named is None:
        found = any(shutil.which(name) for name in usual)
        return None if found else f"a {kind} compiler, and {' or '.join(usual)} is not found; install {usual[0]}"
    return (
        None if shutil.which(named) else f"a {kind} compiler, and {variable}={named} is not found; correct {variable}"
    )


def can_compile(device: torch.device) -> bool:
    """Whether ``torch.compile`` has what it needs on this machine."""
    return lacking(device) is None


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 runs on instructions of its own there, not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def tiles_gain() -> bool:
    """Whether this CPU is of the kind on which convolutions on tiles were measured to be faster."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx2") and not capabilities.get("avx512_f"))
