"""Results as the machine writes them, for cells that were never run."""

import json
from pathlib import Path

import pytest

from condensate.tables import Cell


@pytest.fixture
def put(tmp_path):
    """Write a result of a cell with accuracies, one a network; the folder of all results."""

    def write(cell: Cell, accuracies: list[float], **changed: object) -> Path:
        recipe = cell.resolve()
        epochs = recipe.evaluate.epochs_full if cell.row == "full" else recipe.evaluate.epochs
        mean = sum(accuracies) / len(accuracies)
        spread = sum((a - mean) ** 2 for a in accuracies) / max(1, len(accuracies) - 1)
        score = {"network": "convnet", "epochs": epochs, "accuracies": accuracies, "mean": mean, "std": spread**0.5}
        result = {
            "recipe": cell.recipe,
            "row": cell.row or cell.recipe,
            "seed": cell.seed,
            "smoke": False,
            "fraction": None if cell.row else cell.profile.fraction,
            "evaluation": [score],
            "stored": {"images_per_class": 2},
            "commit": "0123456789ab",
            "device": "cpu",
            "machine": {"processor": "a processor", "threads": 2},
            "versions": {"torch": "2.13.0"},
            "seconds": 120.0,
            "experts_seconds": 0.0,
            "peak_bytes": 2**20,
            "compute": recipe["compute"],
            "values": recipe.values,
        }
        file = tmp_path / cell.path / "result.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result | changed))
        return tmp_path

    return write
