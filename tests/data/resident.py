"""A process that loads images from disk and condenses them for a few episodes; prints what memory it took, as JSON.

Counted is RssAnon of Linux, which leaves out pages mapped from files, of this process and of those that decode, beyond
what imports and the same episodes on few images in memory take.
Arguments: folder of Parquet files, number of workers.
"""

import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import pyarrow.parquet
import torch

from condensate import (
    Augment,
    Compute,
    ConvNet,
    DistributionMatching,
    ImageData,
    LowRank,
    Streams,
    SyntheticDataset,
    class_major,
    condense,
    from_arrays,
    load_data,
)
from condensate.starts import k_means

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


def decoding() -> list[str]:
    """Children that decode; one that is just being started still is this process, and would count it twice."""
    children = Path("/proc/self/task").joinpath(str(threading.main_thread().native_id), "children").read_text().split()
    return [pid for pid in children if b"imagefile.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


class Peak(threading.Thread):
    """The most that this process and its children held, looked at all the time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0

    def run(self) -> None:
        while True:
            self.bytes = max(self.bytes, resident("self") + sum(map(resident, decoding())))
            time.sleep(0.02)


def episodes(data: ImageData) -> None:
    """Five of distribution matching, from k-means."""
    streams, classes = Streams(0), len(data.classes)
    synthetic = SyntheticDataset(
        LowRank(classes, data.shape, rank=2),
        class_major(classes, 1),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
    )
    k_means(synthetic.parameterization, data.train, lambda: torch.flatten, streams)
    network, augment, compute = ConvNet(data.shape, classes, width=8), Augment(["crop", "flip"]), Compute(chunk=16)
    matching = DistributionMatching(data.train, network, augment, streams, compute, batch_real=32)
    condense(synthetic, matching, episodes=5, lr=1.0)


def main(folder: str, workers: int) -> None:
    torch.set_num_threads(1)
    idle = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, check=True).stdout
    few, labels = torch.zeros(10 * 32, 3, 64, 64, dtype=torch.uint8), class_major(10, 32)
    episodes(from_arrays(few, labels, few, labels))
    before, peak = resident("self"), Peak()
    peak.start()
    began = time.monotonic()
    data = load_data(path=folder, hold="disk", workers=workers)
    loaded = time.monotonic() - began
    episodes(data)
    beyond = peak.bytes - before - workers * 1024 * int(idle)
    held = len(data.train) * math.prod(data.shape)
    print(json.dumps({"images": len(data.train), "decoded": held, "beyond": beyond, "load": round(loaded, 1)}))


if __name__ == "__main__":
    assert datasets
    assert pyarrow.parquet
    main(sys.argv[1], int(sys.argv[2]))
