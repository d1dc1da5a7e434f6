"""Class means of real features, kept by episode for the runs that see the same."""

import hashlib
import warnings
from pathlib import Path

import torch
from torch import Tensor

CHECKED = 16  # bytes of a row that say whether it is whole


class KeptMeans:
    """A file with a row an episode: class means, float32, and a checksum of them and the number.

    Runs read and write it side by side, without locks: whoever computes an episode writes its row, and as all that
    decides the means decides the file, they all write the same. A row that is missing or torn is none.

    Args:
        file: Made with the first row.
        shape: Of the means, (K, D).
    """

    def __init__(self, file: Path, shape: tuple[int, int]) -> None:
        self.file, self.shape = file, shape
        self.size = 4 * shape[0] * shape[1]

    def get(self, episode: int) -> Tensor | None:
        """The means (K, D) of an episode, on the CPU; None if they are not kept."""
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(episode * (self.size + CHECKED))
                row = bytearray(file.read(self.size + CHECKED))
        except OSError:
            return None
        if len(row) < self.size + CHECKED or row[self.size :] != self._check(episode, row[: self.size]):
            return None
        return torch.frombuffer(row, dtype=torch.float32, count=self.size // 4).view(self.shape)

    def put(self, episode: int, means: Tensor) -> None:
        """Keep the means of an episode; a full or closed disk costs a warning and the means, not the run."""
        row = means.cpu().contiguous().numpy().tobytes()
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.touch()
            with self.file.open("r+b", buffering=0) as file:
                file.seek(episode * (self.size + CHECKED))
                file.write(row + self._check(episode, row))
        except OSError as error:
            warnings.warn(
                f"real features cannot be kept in {self.file.parent} ({error.strerror or error}) and will be computed "
                "again by every run; name a folder with room for them in $CONDENSATE_CACHE, or drop compute.reuse",
                stacklevel=2,
            )

    def _check(self, episode: int, row: bytes | bytearray) -> bytes:
        return hashlib.blake2b(row, digest_size=CHECKED, key=episode.to_bytes(8, "little")).digest()
