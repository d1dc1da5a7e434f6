"""The synthetic data set: stored images, their labels, and what one must know to read them."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import Dataset

from condensate.atomic import replacing
from condensate.errors import UserError
from condensate.parameterizations import PARAMETERIZATIONS, Cost, Parameterization
from condensate.whitening import Whitening, file_name, read

FORMAT = 1
METADATA_LIMIT = 8192  # bytes, beside the names of the classes
SMALLEST_STEP_SIZE, LARGEST_STEP_SIZE = 1e-6, 1.0


class SyntheticDataset(nn.Module, Dataset[tuple[Tensor, Tensor]]):
    """Synthetic images with labels, and how to read them; a ``torch.utils.data.Dataset`` of (image, label).

    Args:
        parameterization: How the images are stored.
        labels: Of the images: classes (n,) int64, or soft (n, K).
        classes: Names of the classes; numbered if absent.
        mean: Per channel, of the normalisation the images are in (pixels scaled to 0..1); absent means none.
        std: Likewise.
        step_size: Learning rate learned with the images, if any.
        about: Whatever else a reader wants to know (hints for training, recipe, seed, versions): plain JSON.
        whitening: That the images are in, in place of a normalisation; saved in a file of its own beside the set.
    """

    labels: Tensor

    def __init__(
        self,
        parameterization: Parameterization,
        labels: Tensor,
        *,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        step_size: float | None = None,
        about: dict[str, Any] | None = None,
        whitening: Whitening | None = None,
    ) -> None:
        super().__init__()
        if len(labels) != len(parameterization):
            raise UserError(f"expected one label an image, got {len(labels)} labels for {len(parameterization)} images")
        whole = labels.dtype in (torch.uint8, torch.int32, torch.int64)
        if not (labels.ndim == 2 and labels.is_floating_point()) and not (labels.ndim == 1 and whole):
            raise UserError(
                "labels must be classes (n,), whole numbers, or soft labels (n, K) in floating point, "
                f"got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        if labels.ndim == 1 and labels.min() < 0:
            raise UserError(f"labels must be classes from 0, got {int(labels.min())}")
        self.parameterization = parameterization
        self.register_buffer("labels", labels)
        count = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
        self.classes = tuple(classes) if classes else tuple(str(label) for label in range(count))
        if count > len(self.classes):
            raise UserError(f"labels name {count} classes, but there are {len(self.classes)} class names")
        channels = parameterization.shape[0]
        self.mean = tuple(mean) if mean else (0.0,) * channels
        self.std = tuple(std) if std else (1.0,) * channels
        if not len(self.mean) == len(self.std) == channels:
            raise UserError(f"mean and std need {channels} values each, got {len(self.mean)} and {len(self.std)}")
        self.step_size: nn.Parameter | None = None
        if step_size is not None:
            self.step_size = nn.Parameter(torch.tensor(float(step_size), device=labels.device))
        self.about = about or {}
        self.whitening = whitening
        values = torch.Size(parameterization.shape).numel()
        if whitening is not None and len(whitening.mean) != values:
            raise UserError(f"a whitening of {len(whitening.mean)} values does not suit images of {values}")
        if whitening is not None and (any(self.mean) or set(self.std) != {1.0}):
            raise UserError("whitening takes the place of normalisation: give no mean and std with it")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.parameterization)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Normalised image (C, H, W) and its label."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.images(torch.tensor([index % len(self)])).detach()[0], self.labels[index]

    def images(self, index: Tensor | None = None) -> Tensor:
        """Normalised or whitened images at ``index``, all if None: (k,) -> (k, C, H, W), differentiable."""
        if index is None:
            index = torch.arange(len(self), device=self.labels.device)
        return self._read(self.parameterization, index)

    def _read(self, stored: Parameterization, index: Tensor) -> Tensor:
        images = stored.decode(index)
        return self.whitening.whiten(images) if self.whitening is not None and stored.holds_pixels else images

    def pictures(self, index: Tensor | None = None) -> Tensor:
        """Images as one looks at them, preprocessing undone and clipped to 0..1: (k,) -> (k, C, H, W)."""
        images = self.images(index).detach()
        if self.whitening is not None:
            images = self.whitening.colour(images)
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)

    def backward(self, index: Tensor, image_grad: Tensor) -> None:
        """Add a gradient with respect to the images at ``index``, (k, C, H, W), to the stored tensors' .grad.

        What it costs goes with those images, not with the whole set: only their rows of the stored tensors are touched.
        """
        part = self.parameterization.subset(index)
        torch.autograd.backward(self._read(part, torch.arange(len(index), device=index.device)), image_grad)
        for own, rows in zip(self.parameterization.parameters(), part.parameters(), strict=True):
            if own.grad is None:
                own.grad = torch.zeros_like(own)
            if rows.grad is not None:
                own.grad.index_add_(0, index, rows.grad)

    @torch.no_grad()
    def project_(self) -> Tensor | None:
        """Keep the constraints, in place: the step size stays from 1e-6 to 1.

        Returned is whether it had left them, a scalar on the device; None without a step size.
        """
        if self.step_size is None:
            return None
        outside = (self.step_size < SMALLEST_STEP_SIZE) | (self.step_size > LARGEST_STEP_SIZE)
        self.step_size.clamp_(SMALLEST_STEP_SIZE, LARGEST_STEP_SIZE)
        return outside

    @property
    def per_class(self) -> int | None:
        """Images per class where all classes have equally many in class-major order, else None."""
        each, rest = divmod(len(self), len(self.classes))
        if rest or self.labels.ndim != 1 or not torch.equal(self.labels.cpu(), class_major(len(self.classes), each)):
            return None
        return each

    def stored(self) -> dict[str, Tensor]:
        """The tensors that go to disk; labels are among them unless their order says it all."""
        tensors = self.parameterization.stored()
        if self.per_class is None:
            tensors["labels"] = self.labels.detach()
        if self.step_size is not None:
            tensors["step_size"] = self.step_size.detach()
        return tensors

    @torch.no_grad()
    def restore_(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of ``stored`` for a set of the same kind: take these tensors' values, in place."""
        rest = dict(tensors)
        for own, name in ((self.labels, "labels"), (self.step_size, "step_size")):
            value = rest.pop(name, None)
            if own is not None and value is not None:
                own.copy_(value)
        self.parameterization.restore_(rest)

    def subset(self, index: Tensor) -> "SyntheticDataset":
        """The images at ``index`` (k,) with their labels, stored alike, as a set of the same classes."""
        return SyntheticDataset(
            self.parameterization.subset(index),
            self.labels[index],
            classes=self.classes,
            mean=self.mean,
            std=self.std,
            step_size=None if self.step_size is None else float(self.step_size.detach()),
            about=self.about,
            whitening=self.whitening,
        )

    def cost(self) -> Cost:
        """Numbers and bits of what is stored."""
        tensors = self.stored().values()
        return Cost(sum(t.numel() for t in tensors), sum(8 * t.numel() * t.element_size() for t in tensors))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the stored tensors and one JSON metadata key to a safetensors file, atomically.

        The same contents give the same bytes. A whitening goes to a file of its own in the same folder, named by its
        hash and shared by all sets there.
        """
        kind = type(self.parameterization)
        name = next((name for name, cls in PARAMETERIZATIONS.items() if cls is kind), None)
        if name is None:
            raise UserError(
                f"a set is saved under the name of its storage, and PARAMETERIZATIONS has none for {kind.__name__}; "
                f"{_register(kind.__name__.lower(), kind.__name__)}"
            )
        metadata = {
            "format": FORMAT,
            "parameterization": {"name": name, **self.parameterization.options()},
            "shape": self.parameterization.shape,
            "images": len(self),
            "per_class": self.per_class,
            "classes": self.classes,
            "mean": self.mean,
            "std": self.std,
            "about": self.about,
        }
        if self.whitening is not None:
            digest = self.whitening.digest
            metadata["whitening"] = {"file": file_name(digest), "sha256": digest}
        said = len(_dump(metadata | {"classes": []}).encode())
        if said > METADATA_LIMIT:
            raise UserError(
                f"what is said about the set takes {said} bytes; at most {METADATA_LIMIT} go in a file: shorten about"
            )
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.stored().items()}
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise UserError(
                "the synthetic set holds values that are not finite; it diverged: try a smaller --condense.lr"
            )
        if self.whitening is not None:
            self.whitening.save_beside(path)
        with replacing(path) as part:
            part.write_bytes(save(tensors, metadata={"condensate": _dump(metadata)}))


def check_single(folder: Path) -> None:
    """Refuse the folder of a run of several seeds where one set is wanted."""
    seeds = sorted(file.parent.name for file in folder.glob("seed*/synthetic.safetensors"))
    if seeds:
        raise UserError(f"{folder} is of several seeds; name one of them, as in {folder / seeds[0]}")


def load(path: str | os.PathLike[str]) -> SyntheticDataset:
    """Read a synthetic data set from ``synthetic.safetensors``, or from the run folder that holds it.

    Raises:
        UserError: There is no such file, or it is damaged, or something else wrote it, or the whitening of its images
            is not beside it.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "synthetic.safetensors"
    if not path.is_file():
        check_single(path.parent)
        if (path.parent / "checkpoints").is_dir():
            folder = path.parent
            raise UserError(f"the run in {folder} has no set yet: condensate run --resume {folder} goes on with it")
        raise UserError(f"no synthetic data set at {path}; expected a synthetic.safetensors or the run folder of one")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("condensate")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or not a safetensors file ({error}); make it anew or copy it again"
        ) from error
    if text is None:
        raise UserError(f"{path} is a safetensors file, but not of condensate: it has no 'condensate' metadata")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise UserError(f"{path} holds values that are not finite; it was changed since it was saved: make it anew")
    try:
        metadata = json.loads(text)
        if metadata["format"] < 1:
            raise ValueError(f"there is no format {metadata['format']}")
        newer = metadata["format"] > FORMAT
        storage = "" if newer else metadata["parameterization"]["name"]
        synthetic = _rebuild(metadata, tensors) if storage in PARAMETERIZATIONS else None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or of an unknown kind: {error}") from error
    if newer:
        raise UserError(f"{path} has format {metadata['format']}, this version reads up to {FORMAT}: update condensate")
    if synthetic is None:
        raise UserError(
            f"{path} holds images stored as {storage!r}, and PARAMETERIZATIONS knows {', '.join(PARAMETERIZATIONS)}; "
            f"{_register(storage, 'the class that is its storage')}"
        )
    if "whitening" in metadata:
        synthetic.whitening = _whitening(path, metadata["whitening"])
    return synthetic


def class_major(classes: int, per_class: int) -> Tensor:
    """Labels (classes * per_class,): all of class 0, then all of class 1, and so on.

    Raises:
        UserError: There are no classes or images.
    """
    if classes < 1 or per_class < 1:
        raise UserError(f"a set has at least one class and one image of each, got {classes} and {per_class}")
    return torch.arange(classes).repeat_interleave(per_class)


def _whitening(path: Path, described: Any) -> Whitening:
    """The whitening of the set at ``path``, from the file beside it; the name in ``described`` is not trusted."""
    digest = described.get("sha256") if isinstance(described, dict) else None
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise UserError(f"{path} is damaged: it does not say by which whitening its images are to be read")
    side = path.with_name(file_name(digest))
    if not side.is_file():
        raise UserError(
            f"{path} holds whitened images, and {side.name}, which says how, is missing: copy {side.name} beside it "
            "from the folder the set was saved in"
        )
    try:
        whitening = read(side)
    except UserError as error:
        raise UserError(f"{error}; copy {side.name} again from the folder that {path.name} was saved in") from error
    if whitening.digest != digest:
        raise UserError(
            f"{side} is not the whitening that {path.name} was made with, but another under its name; copy {side.name} "
            "again from the folder that the set was saved in"
        )
    return whitening


def _rebuild(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> SyntheticDataset:
    options = dict(metadata["parameterization"])
    parameterization = PARAMETERIZATIONS[options.pop("name")](metadata["images"], tuple(metadata["shape"]), **options)
    classes = metadata["classes"]
    classes = [str(label) for label in range(classes)] if isinstance(classes, int) else classes  # of older files
    labels = tensors.pop("labels", None)
    if labels is None:
        labels = class_major(len(classes), metadata["per_class"])
    if not metadata["mean"] or not metadata["std"]:
        raise ValueError("it does not say the mean and std its images are normalised by")
    step_size = tensors.pop("step_size", None)
    parameterization.restore_(tensors)
    return SyntheticDataset(
        parameterization,
        labels,
        classes=classes,
        mean=metadata["mean"],
        std=metadata["std"],
        step_size=None if step_size is None else float(step_size),
        about=metadata["about"],
    )


def _register(name: str, kind: str) -> str:
    return f"add it before: condensate.parameterizations.PARAMETERIZATIONS[{name!r}] = {kind}"


def _dump(metadata: dict[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True, separators=(",", ":"))
