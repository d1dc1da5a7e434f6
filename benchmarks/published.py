"""The papers' loops restated plainly, to measure ours against: eager, class by class, float32, one operator at a time.

They are meant to be honest: nothing is done that the released programs do not do, and waste that is not part of the
method (decoding all factors for each class, evaluation inside the loop) is left out.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pyarrow.parquet import read_table
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, pad
from torch.utils.data import DataLoader, TensorDataset

OPS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def siamese(op: str, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """One operator with parameters drawn once, for every image of a batch alike."""
    u = torch.rand(4, generator=generator).tolist()

    def warp(x: Tensor, theta: list[list[float]]) -> Tensor:
        grid = affine_grid(
            torch.tensor(theta, device=x.device).expand(len(x), 2, 3), list(x.shape), align_corners=False
        )
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
        mask = torch.ones(side, side, device=x.device)
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
    loss = torch.zeros((), device=real[0].device)
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
    augmented: bool = False,
) -> float:
    """One matching step of DC, or DSA: a fresh network, the graphs of all classes held until one backward, one step.

    Args:
        network: Makes a freshly initialised network.
        real: Normalised real images, a tensor (n, C, H, W) a class.
        images: Synthetic images of a class, with graph.
        optimizer: Of what ``images`` reads.
        generator: Draws batches and, for DSA, the augmentation.
        batch_real: Real images a class.
        augmented: Whether real and synthetic images of a class are changed alike, which is DSA.
    """
    net = network().train()
    parameters = list(net.parameters())
    loss = torch.zeros((), device=real[0].device)
    for label, of_class in enumerate(real):
        batch = of_class[torch.randperm(len(of_class), generator=generator)[:batch_real]]
        mine = images(label)
        if augmented:
            change = siamese(OPS[int(torch.randint(len(OPS), (), generator=generator))], generator)
            batch, mine = change(batch), change(mine)
        target = cross_entropy(net(batch), torch.full((len(batch),), label, device=batch.device))
        theirs = [gradient.detach().clone() for gradient in torch.autograd.grad(target, parameters)]
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
    batch: int | None = None,
) -> float:
    """One iteration of MTT: all steps of the student in one graph, one backward through it, one update.

    Args:
        network: Whose forward is used with the student's parameters.
        first: Parameters the student starts from.
        target: Parameters it should reach.
        images: The synthetic set decoded, with graph; every step uses a batch of it.
        labels: Its classes.
        step_size: The learned one, a leaf.
        optimizer: Of what ``images`` reads, and of the step size.
        generator: Draws the augmentation.
        steps: Of the student.
        batch: Images a step, one batch after another; all of them if absent.
    """
    theta = {name: value.clone().requires_grad_() for name, value in first.items()}
    decoded = images()
    batches = torch.arange(len(decoded), device=decoded.device).split(batch or len(decoded))
    for step in range(steps):
        change = siamese(OPS[int(torch.randint(len(OPS), (), generator=generator))], generator)
        index = batches[step % len(batches)]
        loss = cross_entropy(functional_call(network, theta, change(decoded[index])), labels[index])
        slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {name: value - step_size * slope for (name, value), slope in zip(theta.items(), slopes)}
    gone = torch.stack([(theta[name] - target[name]).square().sum() for name in theta]).sum()
    whole = torch.stack([(first[name] - target[name]).square().sum() for name in theta]).sum()
    optimizer.zero_grad()
    distance = gone / whole
    distance.backward()
    optimizer.step()
    return float(distance.detach())


def train(
    network: torch.nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    generator: torch.Generator,
    *,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch: int = 256,
) -> None:
    """Train one network by the released loop: batches put together image by image, augmented, one step, loss read.

    Args:
        network: Freshly initialised.
        images: Normalised.
        labels: Classes.
        epochs: How many.
        generator: Draws the order and the augmentation.
        lr: Learning rate.
        momentum: Of SGD.
        weight_decay: Of SGD.
        batch: Images a step.
    """
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    loader = DataLoader(TensorDataset(images, labels), batch, shuffle=True, generator=generator)
    for _ in range(epochs):
        total = 0.0
        for seen, wanted in loader:
            change = siamese(OPS[int(torch.randint(len(OPS), (), generator=generator))], generator)
            loss = cross_entropy(network(change(seen)), wanted)
            total += float(loss.detach()) * len(wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def score(network: torch.nn.Module, images: Tensor, labels: Tensor, batch: int = 256) -> float:
    """Share of images a network gets right, by the released loop; 0..1.

    Args:
        network: Trained.
        images: Normalised.
        labels: Classes.
        batch: Images at a time.
    """
    network.eval()
    total, right = 0.0, 0
    with torch.no_grad():
        for seen, wanted in DataLoader(TensorDataset(images, labels), batch):
            scores = network(seen)
            total += float(cross_entropy(scores, wanted)) * len(wanted)
            right += int((scores.argmax(1) == wanted).sum())
    return right / len(labels)


def read_images(folder: Path, mean: Sequence[float], std: Sequence[float]) -> list[Tensor]:
    """All training images as the released programs read a data set: item by item, normalised, then stacked.

    Args:
        folder: With images.npy, (n, H, W, 3) of bytes, and labels.npy, which is how torchvision holds CIFAR-10, or
            else with train.parquet, whose images are files that are decoded.
        mean: Subtracted, one value a channel.
        std: Divided by, one value a channel.

    Returns:
        A tensor (n, C, H, W) of each class.
    """
    shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    items = []
    for picture, label in _items(folder):
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float() / 255
        items.append((((pixels - shift) / scale)[None], label))
    images, labels = torch.cat([image for image, _ in items]), torch.tensor([label for _, label in items])
    return [images[labels == label] for label in range(int(labels.max()) + 1)]


def _items(folder: Path) -> Iterator[tuple[Image.Image, int]]:
    """Pictures and labels, one after another."""
    if (folder / "images.npy").is_file():
        for array, label in zip(np.load(folder / "images.npy"), np.load(folder / "labels.npy")):
            yield Image.fromarray(array), int(label)
        return
    table = read_table(folder / "train.parquet")
    for row in range(len(table)):
        yield Image.open(io.BytesIO(table["image"][row].as_py()["bytes"])), int(table["label"][row].as_py())
