"""The papers' loops restated plainly, to measure ours against: eager, class by class, float32, one operator at a time.

They are meant to be honest: nothing is done that the released programs do not do, and waste that is not part of the
method (item-by-item loading, decoding all factors for each class, evaluation inside the loop) is left out.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, pad

OPS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def siamese(op: str, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """One operator with parameters drawn once, for every image of a batch alike."""
    u = torch.rand(4, generator=generator).tolist()

    def warp(x: Tensor, theta: list[list[float]]) -> Tensor:
        grid = affine_grid(torch.tensor(theta).expand(len(x), 2, 3), list(x.shape), align_corners=False)
        return grid_sample(x, grid, align_corners=False)

    def color(x: Tensor) -> Tensor:
        x = x + (u[0] - 0.5)
        gray = x.mean(1, keepdim=True)
        x = (x - gray) * (2 * u[1]) + gray
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * (u[2] + 0.5) + mean

    def crop(x: Tensor) -> Tensor:
        side = x.shape[2]
        reach = int(0.125 * side + 0.5)
        down, right = (int(v * (2 * reach + 1)) for v in u[:2])
        return pad(x, (reach,) * 4)[:, :, down : down + side, right : right + side]

    def cutout(x: Tensor) -> Tensor:
        side = x.shape[2]
        hole = int(0.5 * side + 0.5)
        top, left = (int(v * (side + 1)) - hole // 2 for v in u[:2])
        mask = torch.ones(side, side)
        mask[max(top, 0) : top + hole, max(left, 0) : left + hole] = 0
        return x * mask

    def flip(x: Tensor) -> Tensor:
        return x.flip(3) if u[0] < 0.5 else x

    def scale(x: Tensor) -> Tensor:
        sx, sy = (1 / 1.2 + v * (1.2 - 1 / 1.2) for v in u[:2])
        return warp(x, [[sx, 0, 0], [0, sy, 0]])

    def rotate(x: Tensor) -> Tensor:
        angle = math.radians((u[0] - 0.5) * 30)
        return warp(x, [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])

    return dict(zip(OPS, (color, crop, cutout, flip, scale, rotate)))[op]


def dm_episode(
    network: Callable[[], torch.nn.Module],
    real: list[Tensor],
    images: Callable[[int], Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    batch_real: int = 256,
) -> float:
    """One episode of DM: a fresh network, all classes one after another, one backward, one step.

    Args:
        network: Makes a freshly initialised network.
        real: Normalised real images, a tensor (n, C, H, W) a class.
        images: Synthetic images of a class, with graph.
        optimizer: Of what ``images`` reads.
        generator: Draws batches and augmentation.
        batch_real: Real images a class.
    """
    net = network().train().requires_grad_(False)
    loss = torch.zeros(())
    for label, of_class in enumerate(real):
        batch = of_class[torch.randperm(len(of_class), generator=generator)[:batch_real]]
        change = siamese(OPS[int(torch.randint(len(OPS), (), generator=generator))], generator)
        target = net.features(change(batch)).detach()  # type: ignore[operator]
        seen = net.features(change(images(label)))  # type: ignore[operator]
        loss = loss + (target.mean(0) - seen.mean(0)).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def dc_episode(
    network: Callable[[], torch.nn.Module],
    real: list[Tensor],
    images: Callable[[int], Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    batch_real: int = 256,
) -> float:
    """One matching step of DC: a fresh network, the graphs of all classes held until one backward, one step.

    Args:
        network: Makes a freshly initialised network.
        real: Normalised real images, a tensor (n, C, H, W) a class.
        images: Synthetic images of a class, with graph.
        optimizer: Of what ``images`` reads.
        generator: Draws batches.
        batch_real: Real images a class.
    """
    net = network().train()
    parameters = list(net.parameters())
    loss = torch.zeros((), device=real[0].device)
    for label, of_class in enumerate(real):
        batch = of_class[torch.randperm(len(of_class), generator=generator)[:batch_real]]
        target = cross_entropy(net(batch), torch.full((len(batch),), label, device=batch.device))
        theirs = [gradient.detach().clone() for gradient in torch.autograd.grad(target, parameters)]
        mine = images(label)
        seen = cross_entropy(net(mine), torch.full((len(mine),), label, device=mine.device))
        ours = torch.autograd.grad(seen, parameters, create_graph=True)
        for a, b in zip(ours, theirs):
            if a.ndim > 1:
                a, b = a.flatten(1), b.flatten(1)
                loss = loss + (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-6)).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def mtt_episode(
    network: torch.nn.Module,
    first: dict[str, Tensor],
    target: dict[str, Tensor],
    images: Callable[[], Tensor],
    labels: Tensor,
    step_size: Tensor,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    steps: int,
) -> float:
    """One iteration of MTT: all steps of the student in one graph, one backward through it, one update.

    Args:
        network: Whose forward is used with the student's parameters.
        first: Parameters the student starts from.
        target: Parameters it should reach.
        images: The synthetic set decoded, with graph; every step uses all of it.
        labels: Its classes.
        step_size: The learned one, a leaf.
        optimizer: Of what ``images`` reads, and of the step size.
        generator: Draws the augmentation.
        steps: Of the student.
    """
    theta = {name: value.clone().requires_grad_() for name, value in first.items()}
    decoded = images()
    for _ in range(steps):
        change = siamese(OPS[int(torch.randint(len(OPS), (), generator=generator))], generator)
        loss = cross_entropy(functional_call(network, theta, change(decoded)), labels)
        slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {name: value - step_size * slope for (name, value), slope in zip(theta.items(), slopes)}
    gone = torch.stack([(theta[name] - target[name]).square().sum() for name in theta]).sum()
    whole = torch.stack([(first[name] - target[name]).square().sum() for name in theta]).sum()
    optimizer.zero_grad()
    distance = gone / whole
    distance.backward()
    optimizer.step()
    return float(distance.detach())
