"""A process that loads images from disk and condenses them for a few episodes; prints what memory it took, as JSON.

Counted is RssAnon of Linux, which leaves out pages mapped from files, of this process and of those that decode.
Arguments: folder of Parquet files, number of workers.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import pyarrow.parquet
import torch

from condensate import Augment, Compute, ConvNet, DistributionMatching, LowRank, Streams, SyntheticDataset
from condensate import class_major, condense, load_data

IDLE = """
import numpy, pyarrow, pyarrow.ipc
from PIL import Image, ImageOps
print(next(line for line in open('/proc/self/status') if line.startswith('RssAnon')).split()[1])
"""


def resident(pid: int | str) -> int:
    """Bytes of a process that are not mapped from files; 0 of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def children() -> list[str]:
    return Path("/proc/self/task").joinpath(str(threading.main_thread().native_id), "children").read_text().split()


class Peak(threading.Thread):
    """The most that this process and its children held, looked at all the time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.start_children = 0, 0

    def run(self) -> None:
        while True:
            self.bytes = max(self.bytes, resident("self") + sum(map(resident, children())))
            time.sleep(0.02)


def main(folder: str, workers: int) -> None:
    torch.set_num_threads(1)
    idle = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, check=True).stdout
    imported, peak = resident("self"), Peak()
    peak.start()
    began = time.monotonic()
    data = load_data(path=folder, hold="disk", workers=workers)
    loaded = time.monotonic() - began
    streams, classes = Streams(0), len(data.classes)
    network = ConvNet(data.shape, classes, width=8)
    synthetic = SyntheticDataset(
        LowRank(classes, data.shape, rank=2),
        class_major(classes, 1),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
    )
    synthetic.parameterization.reset_(streams("start"))
    compute = Compute(chunk=16)
    matching = DistributionMatching(data.train, network, Augment(["crop", "flip"]), streams, compute, batch_real=32)
    condense(synthetic, matching, episodes=5, lr=1.0)
    beyond = peak.bytes - imported - workers * 1024 * int(idle)
    values = torch.Size(data.shape).numel()
    print(
        json.dumps({"images": len(data.train), "decoded": len(data.train) * values, "beyond": beyond, "load": loaded})
    )


if __name__ == "__main__":
    assert datasets and pyarrow.parquet  # what load_data imports is no memory of the data
    main(sys.argv[1], int(sys.argv[2]))
