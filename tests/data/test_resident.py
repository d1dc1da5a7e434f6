"""Memory of data that stay on disk: bounded, however many images there are."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

BOUND = 128 << 20  # bytes beyond what is imported, of all processes
SIDE, CLASSES, DISTINCT, ROWS = 64, 10, 250, 2500

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc of Linux")


def low_entropy_jpegs() -> list[bytes]:
    """Images of 4x4 random coefficients a channel, 64x64 pixels, about 900 bytes each."""
    coefficients = np.random.default_rng(0).integers(256, size=(DISTINCT, 4, 4, 3), dtype=np.uint8)
    files = []
    for few in coefficients:
        stream = io.BytesIO()
        Image.fromarray(few).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=50)
        files.append(stream.getvalue())
    return files


def generate(folder: Path, count: int) -> None:
    """Parquet files of as many JPEGs; none is like another, for each ends with its number, which Pillow skips."""
    files = low_entropy_jpegs()
    for split, images in (("train", count), ("test", 1000)):
        schema = pa.schema({"image": pa.binary(), "label": pa.int64()})
        with pq.ParquetWriter(folder / f"{split}.parquet", schema, use_dictionary=False, compression="none") as writer:
            for start in range(0, images, ROWS):
                rows = range(start, min(start + ROWS, images))
                content = [files[row % DISTINCT] + row.to_bytes(4, "big") for row in rows]
                writer.write_table(pa.table({"image": content, "label": [row % CLASSES for row in rows]}, schema))


def check(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, timeout: int) -> None:
    monkeypatch.setenv("CONDENSATE_CACHE", str(folder / "cache"))
    generate(folder, count)
    command = [sys.executable, str(Path(__file__).with_name("resident.py")), str(folder), "2"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout).stdout)
    print(found)
    assert (found["images"], found["decoded"]) == (count, count * SIDE * SIDE * 3)
    assert found["beyond"] < BOUND < found["decoded"] / 4
    for kept in (folder / "cache").rglob("*"):
        assert kept.suffix in ("", ".arrow", ".json")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < found["decoded"]


def test_memory__50_000_images__stays_within_128_mib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check(tmp_path, monkeypatch, 50_000, timeout=300)


@pytest.mark.slow
def test_memory__1_000_000_images__stays_within_128_mib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check(tmp_path, monkeypatch, 1_000_000, timeout=3600)
