"""Decoded data kept on disk under the hash of the files it came from."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch

from condensate.atomic import replacing
from condensate.data.contents import Contents
from condensate.data.raw import RawImages, measure
from condensate.errors import UserError
from condensate.whitening import Whitening, check_size, fit, read

FORMAT = 1  # to be raised when the same files decode to something else, or the cached file changes


def folder() -> Path:
    """Where decoded data are kept: ``$CONDENSATE_CACHE``, else ``condensate`` under the XDG cache folder."""
    own, shared = os.environ.get("CONDENSATE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser()
    return (Path(shared) if shared else Path.home() / ".cache") / "condensate"


def cached(key: object, make: Callable[[], Contents]) -> Contents:
    """What ``make`` returns, made only if it is not kept yet, or if what is kept is damaged.

    Args:
        key: Anything JSON that decides the contents.
        make: Makes the contents; what it raises is raised, and nothing is kept.
    """
    name = hashlib.sha256(json.dumps([FORMAT, key]).encode()).hexdigest()
    path = folder() / f"{name}.safetensors"
    contents = _read(path)
    if contents is None:
        contents = make()
        try:
            _write(path, contents)
        except OSError as error:
            warnings.warn(
                f"decoded images cannot be kept in {path.parent} ({error.strerror or error}) and will be decoded again "
                "next time; name a folder that can be written in $CONDENSATE_CACHE",
                stacklevel=3,
            )
    return contents


def whitening(images: RawImages, fingerprint: str) -> Whitening:
    """The whitening of training images, fitted only if it is not kept yet.

    Its last bits depend on the threads of the eigendecomposition, so that each number of threads keeps its own.
    """
    check_size(images.shape)
    key = json.dumps([FORMAT, fingerprint, torch.get_num_threads(), str(torch.__version__)])
    path = folder() / f"zca-{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    with suppress(UserError):  # none yet, or damaged
        return read(path)
    fitted = fit(images.chunks())
    with suppress(OSError):  # a cache that cannot be written only costs time; of the images it has been said
        fitted.save(path)
    return fitted


def statistics(images: RawImages, fingerprint: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of images on disk, measured only if they are not kept yet."""
    path = folder() / f"statistics-{hashlib.sha256(json.dumps([FORMAT, fingerprint]).encode()).hexdigest()}.json"
    with suppress(OSError, ValueError, TypeError):
        mean, std = json.loads(path.read_text())
        return [float(value) for value in mean], [float(value) for value in std]
    measured = measure(images)
    with suppress(OSError), replacing(path) as part:
        part.write_text(json.dumps(measured))
    return measured


def _read(path: Path) -> Contents | None:
    """The contents, mapped rather than read where the system allows; None if absent or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["condensate"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        contents = Contents(**tensors, classes=tuple(about["classes"]))
        return contents if contents.fingerprint == about["fingerprint"] else None
    except (SafetensorError, OSError, LookupError, TypeError, ValueError):
        return None


def _write(path: Path, contents: Contents) -> None:
    """Write beside ``path`` and rename, so that readers and other writers see a whole file or none."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    about = {"classes": contents.classes, "fingerprint": contents.fingerprint}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{uuid4().hex}.part")
    try:
        save_file(contents.tensors(), part, {"condensate": json.dumps(about)})
        os.replace(part, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        part.unlink(missing_ok=True)
