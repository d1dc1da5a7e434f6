"""What is written down of a run: the environment, the result, and files that are whole or absent."""

import functools
import json
import math
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from condensate import __version__
from condensate.atomic import replacing
from condensate.data import ImageData
from condensate.errors import UserError
from condensate.evaluation import Score
from condensate.recipe import Recipe, Values
from condensate.sheets import find, shipped
from condensate.synthetic import SyntheticDataset
from condensate.whitening import file_name

SCHEMA = 1
CPUINFO = Path("/proc/cpuinfo")  # where Linux tells of the processor


def as_json(score: Score) -> Values:
    """A score as in ``result.json``."""
    return {
        "network": score.network,
        "epochs": score.epochs,
        "augmentation": score.augmentation,
        "augment": list(score.augment),
        "accuracies": list(score.accuracies),
        "mean": score.mean,
        "std": score.std,
    }


def environment(device: torch.device, processes: int = 1) -> Values:
    """Commit, device, processes with one each, machine and versions; no host name and no path."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "commit": _commit(),
        "device": accelerator or "cpu",
        "processes": processes,
        "machine": {
            "system": platform.system(),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "bfloat16": torch.cpu.get_capabilities().get("avx512_bf16", False),
        },
        "versions": {
            "condensate": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
    }


def stored(synthetic: SyntheticDataset, artefact: Path) -> Values:
    """What a saved set takes, as in ``result.json``."""
    cost, whitening = synthetic.cost(), synthetic.whitening
    each, rest = divmod(len(synthetic), len(synthetic.classes))
    side = None if whitening is None else artefact.with_name(file_name(whitening.digest))
    return {
        "numbers": cost.numbers,
        "tensor_bytes": cost.bits // 8,
        "file_bytes": artefact.stat().st_size,
        "side_bytes": 0 if side is None else side.stat().st_size,
        "images_per_class": each if not rest else len(synthetic) / len(synthetic.classes),
    }


def stored_full(data: ImageData) -> Values:
    """What all training images take, at a byte a value."""
    numbers = len(data.train) * math.prod(data.shape)
    per_class = round(len(data.train) / len(data.classes))
    bytes_ = {"tensor_bytes": numbers, "file_bytes": None, "side_bytes": 0}
    return {"numbers": numbers, **bytes_, "images_per_class": per_class}


def fraction(recipe: Recipe) -> float | None:
    """Share of the shipped recipe's episodes; None for a recipe of the user's."""
    if recipe.name not in shipped():
        return None
    whole = int(find(recipe.name)[1]["condense"]["episodes"])
    return recipe.condense.episodes / whole if whole and recipe.condense.episodes else None


def peak_bytes(device: torch.device) -> int:
    """The most memory held: on the GPU by tensors, else by this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@functools.cache
def _commit() -> str | None:
    """Of the checkout this package lies in, if it lies in one; marked where files differ from it.

    Asked once a process: a checkout that moves on during a long run does not change the code that runs.
    """
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) / "src" / "condensate" != folder:
            return None
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def processor() -> str:
    """Name of the processor, and family and model where they are told: rented machines give several the same name."""
    try:
        first = CPUINFO.read_text().split("\n\n")[0]
    except OSError:
        first = ""
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    if "model name" not in told:
        return platform.processor() or platform.machine()
    finer = ", ".join(f"{key} {told[at]}" for key, at in (("family", "cpu family"), ("model", "model")) if at in told)
    return f"{told['model name']} ({finer})" if finer else told["model name"]


def read_json(path: Path) -> Any:
    """A JSON file of a run folder; one that is damaged is named."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged; delete it to have this part done again") from error


def read_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file of a run folder, and its metadata; one that is damaged is named."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged; delete it to have this part done again") from error


def write(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write(path, json.dumps(content, indent=1) + "\n")
