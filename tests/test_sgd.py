"""The optimiser, against PyTorch's own class and against its formula."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from condensate import UserError
from condensate.sgd import Sgd, check

EAGER = """
import sys
from condensate import cli
assert cli.main(["run", "digits-lodm", "--smoke", "--device", "cpu", "--threads", "1", "--out", sys.argv[1]]) == 0
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.5, 0.0), (0.9, 5e-4)])
def test_step__is_that_of_pytorch(momentum: float, decay: float, fused: bool, device: str):
    generator = torch.Generator().manual_seed(0)
    theirs = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in ((4, 3), (5,))]
    ours = [tensor.detach().clone().requires_grad_() for tensor in theirs]
    other = torch.optim.SGD(theirs, 0.1, momentum, weight_decay=decay, fused=fused)
    own = Sgd(ours, momentum=momentum, weight_decay=decay, fused=fused)
    for rate in (0.1, 0.1, 0.01):
        for group in other.param_groups:
            group["lr"] = rate
        for tensors in (theirs, ours):
            sum((tensor**3).sum() for tensor in tensors).backward()
        other.step()
        own.step(rate)
        other.zero_grad()
        own.zero_grad()
        assert all(tensor.grad is None for tensor in ours)
        assert all(torch.equal(one, another) for one, another in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_step__is_the_formula(fused: bool):
    x = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer = Sgd([x], momentum=0.5, weight_decay=0.1, fused=fused)
    for gradient in ([1.0, 1.0], [0.0, 2.0]):
        x.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step(0.2)
    # v1 = g + 0.1 x = (1.1, 0.8), x1 = (0.78, -2.16); v2 = 0.5 v1 + g + 0.1 x1 = (0.628, 2.184)
    torch.testing.assert_close(optimizer.velocities[0], torch.tensor([0.628, 2.184], dtype=torch.float64))
    torch.testing.assert_close(x.detach(), torch.tensor([0.6544, -2.5968], dtype=torch.float64))


def test_step__leaves_what_has_no_gradient():
    moved, kept = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = Sgd([kept, moved], momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        moved.grad = torch.ones(2)
        optimizer.step(0.1)
    assert torch.equal(kept, torch.ones(2))
    assert optimizer.velocities[0] is None
    assert (moved < 1).all()


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"momentum": -0.1}, {"lr": -0.1}, {"weight_decay": float("nan")}])
def test_check__numbers_without_a_meaning__refused(wrong: dict[str, float]):
    check(**{"momentum": 0.9, "lr": 0.0, "weight_decay": 5e-4})
    with pytest.raises(UserError, match=f"{next(iter(wrong))} must be"):
        check(**{"momentum": 0.9, **wrong})


def test_run__nothing_compiled__does_not_import_the_compiler(tmp_path: Path):
    """It takes longer than all else that a start does but ``import torch``."""
    command = [sys.executable, "-c", EAGER, tmp_path / "run"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.split()[-1] == "False"
