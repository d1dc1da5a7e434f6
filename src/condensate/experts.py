"""Expert trajectories: networks trained on real images, kept epoch by epoch in a store that knows what they are of."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from condensate.atomic import replacing
from condensate.augment import Augment
from condensate.compute import PRECISIONS
from condensate.errors import UserError
from condensate.examples import Examples
from condensate.losses import MeanLoss
from condensate.networks import Network
from condensate.streams import Streams
from condensate.training import fit

FORMAT = 1

Parameters = dict[str, Tensor]


class Trajectories(Protocol):
    """What trajectory matching reads: the parameters of several networks before training and after every epoch."""

    epochs: int

    def __len__(self) -> int:
        """Number of experts."""

    def parameters(self, expert: int, epoch: int) -> Parameters:
        """The parameters of an expert after an epoch, 0 being its initialisation, by name."""


@dataclass(frozen=True)
class ExpertOptions:
    """How experts are trained, and where they are kept.

    The published ones (Cazenavette et al., CVPR 2022): 100 networks, plain SGD at 0.01, batches of 256, the recipe's
    augmentation.

    Args:
        count: How many.
        epochs: Kept of each; null for just as many as the objective can use.
        lr: Learning rate, constant.
        momentum: Of SGD.
        weight_decay: Of SGD.
        batch: Images a step.
        precision: Of what is kept: float32, or bfloat16 in half the room.
        seed: Of the experts; theirs is not the run's, so that all seeds of a run share them.
        store: Folder of all stores; null for "experts" in the cache. Neither it nor make changes a result.
        make: Whether a run makes the experts that it misses, or stops.
    """

    count: int = 100
    epochs: int | None = None
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch: int = 256
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    store: str | None = None
    make: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if min(self.count, self.batch, 1 if self.epochs is None else self.epochs) < 1:
            raise UserError(
                f"experts need a count, epochs and a batch of at least 1, got {self.count}, {self.epochs}, {self.batch}"
            )
        if not 0 < self.lr < math.inf or not 0 <= self.momentum < 1 or not 0 <= self.weight_decay < math.inf:
            raise UserError(
                "experts need a finite lr > 0, momentum in [0, 1) and weight_decay >= 0, "
                f"got {self.lr}, {self.momentum} and {self.weight_decay}"
            )

    def training(self) -> dict[str, Any]:
        """What of this makes one expert another."""
        keys = ("lr", "momentum", "weight_decay", "batch", "precision", "seed")
        return {key: getattr(self, key) for key in keys}


class Store:
    """Experts of one kind, in a folder named by the hash of what they are of.

    Nothing is read or written before it is asked for. Any number of processes may make experts in it at once: each
    expert is one file, whole or absent, and who is at one holds a lock that the system frees when its process ends.
    An expert depends on its number and kind alone, up to the rounding of another device or number of threads (on CUDA
    also its draws): runs that must agree to the byte share a store.

    Args:
        root: Folder of all stores.
        kind: What the experts are of, plain JSON: data, preprocessing, network and training.
        count: Experts wanted.
        epochs: Epochs wanted of each; files that hold more will do.
        remedy: The command that makes them, for messages.
    """

    def __init__(self, root: Path, kind: dict[str, Any], count: int, epochs: int, remedy: str) -> None:
        self.kind: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **kind}))
        self.count, self.epochs, self.remedy = count, epochs, remedy
        name = sha256(json.dumps(self.kind, sort_keys=True).encode()).hexdigest()[:16]
        own = (root / "manifest.json").is_file()  # the user named the folder of one kind itself
        self.root, self.folder = (root.parent, root) if own else (root, root / name)

    def __len__(self) -> int:
        """Number of experts wanted."""
        return self.count

    def check_kind(self) -> None:
        """Refuse a folder whose experts are of something else."""
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"experts.store must be a folder, and {self.root} is a file; name another")
        manifest = self.folder / "manifest.json"
        if not manifest.is_file():
            return
        try:
            kind = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{manifest} is damaged; delete {self.folder} and run: {self.remedy}") from error
        if not isinstance(kind, dict) or "format" not in kind:
            raise UserError(f"{manifest} is not of an expert store; name another folder with --experts.store")
        if kind != self.kind:
            other = sorted(key for key in {*kind, *self.kind} if kind.get(key) != self.kind.get(key))
            raise UserError(
                f"the experts in {self.folder} were made for something else (they differ in {', '.join(other)}); "
                f"make the right ones with: {self.remedy}"
            )

    def check_complete(self) -> None:
        """Refuse to begin without all experts."""
        self.check_kind()
        missing = len(self.missing())
        if missing == self.count:
            raise UserError(f"no experts of this recipe in {self.root}; make them with: {self.remedy}")
        if missing:
            done = self.count - missing
            raise UserError(f"{self.folder} holds {done} of {self.count} experts; finish it with: {self.remedy}")

    def missing(self) -> list[int]:
        """Numbers of the experts that are not there, or were kept for fewer epochs."""
        return [number for number in range(self.count) if not self.holds(number)]

    def holds(self, number: int) -> bool:
        """Whether this expert is there for all epochs wanted."""
        file = self._file(number)
        if not file.is_file():
            return False
        with self._open(file) as stored:
            return int((stored.metadata() or {}).get("epochs", -1)) >= self.epochs

    def make(
        self,
        train: Callable[[int], list[Parameters]],
        after: Callable[[int], None] | None = None,
        first: Sequence[int] = (),
    ) -> None:
        """Make the missing experts, and wait for those that other processes are at.

        Args:
            train: The trajectory of an expert by its number, ``epochs`` + 1 snapshots; see ``trajectory``.
            after: Called with the number of experts that are there, after each.
            first: Numbers to begin with, where several processes have dealt them out.
        """
        self.check_kind()
        if not self.missing():
            return
        if not (self.folder / "manifest.json").is_file():
            try:
                with replacing(self.folder / "manifest.json") as part:
                    part.write_text(json.dumps(self.kind, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            except OSError as error:
                raise UserError(
                    f"experts cannot be kept in {self.folder} ({error.strerror or error}); name a folder with room for "
                    "all of them in --experts.store"
                ) from error
        for wait in (False, True):  # those nobody is at first, then those that others have not finished
            for number in sorted(self.missing(), key=lambda number: number not in first):
                with _claim(self.folder / ".locks" / f"{number:05d}", wait) as mine:
                    if mine and not self.holds(number):
                        self._write(number, train(number))
                if after:
                    after(self.count - len(self.missing()))

    def parameters(self, expert: int, epoch: int) -> Parameters:
        """The parameters of an expert after an epoch, on the CPU as they are kept."""
        prefix = f"{epoch:04d}."
        with self._open(self._file(expert)) as stored:
            keys = [key for key in stored.keys() if key.startswith(prefix)]  # noqa: SIM118
            named = {key.removeprefix(prefix): stored.get_tensor(key) for key in keys}
        if not named:
            raise UserError(f"{self._file(expert)} holds no epoch {epoch}; make it anew with: {self.remedy}")
        return named

    def _file(self, number: int) -> Path:
        return self.folder / f"expert-{number:05d}.safetensors"

    def _write(self, number: int, snapshots: list[Parameters]) -> None:
        for left in self.folder.glob(f".{self._file(number).name}.*.part"):  # by a writer that was killed
            left.unlink(missing_ok=True)
        tensors = {f"{epoch:04d}.{name}": value for epoch, held in enumerate(snapshots) for name, value in held.items()}
        with replacing(self._file(number)) as part:
            part.write_bytes(save(tensors, metadata={"epochs": str(len(snapshots) - 1)}))

    @contextmanager
    def _open(self, file: Path) -> Iterator[Any]:
        try:
            stored = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is absent or damaged ({error}); delete it and run: {self.remedy}") from error
        with stored as opened:
            yield opened


def trajectory(
    network: Network,
    train: Examples,
    streams: Streams,
    number: int,
    epochs: int,
    augment: Augment,
    options: ExpertOptions,
    loss: MeanLoss | None = None,
) -> list[Parameters]:
    """Train one expert: its parameters at the start and after every epoch, copies on the CPU.

    Args:
        network: Re-initialised and trained in place.
        train: Real images.
        streams: Of the experts' seed; the expert draws from ("expert", number) alone.
        number: Of the expert.
        epochs: How long it is trained. A longer training begins with the same epochs.
        augment: One operator a batch, its parameters per image.
        options: Learning rate and the like.
        loss: The network's; see ``fit``.
    """
    held = PRECISIONS[options.precision]

    def snapshot() -> Parameters:
        taken = {name: value.detach().to("cpu", held, copy=True) for name, value in network.named_parameters()}
        return {name: value.contiguous() for name, value in taken.items()}

    network.reset_(streams("expert", number))
    snapshots = [snapshot()]
    fit(
        network,
        train,
        epochs=epochs,
        generator=streams("expert", number, "training"),
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        batch=options.batch,
        drop=False,
        augment=augment if augment.ops else None,
        after_epoch=lambda epoch: snapshots.append(snapshot()),
        loss=loss,
    )
    return snapshots


@contextmanager
def _claim(path: Path, wait: bool) -> Iterator[bool]:
    """Whether this process, and no other, is at what ``path`` stands for while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        yield _lock(file, wait)


def _lock(file: IO[str], wait: bool) -> bool:
    if os.name != "posix":  # without locks two processes may do the same work; their files are still whole
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
