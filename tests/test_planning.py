"""What a run is said to take."""

import pytest

from condensate import planning
from condensate.recipe import resolve


@pytest.mark.parametrize(
    ("networks", "least", "most"),
    [(["same"], 1, 1), (["same", "convnet-d3"], 2, 2), (["convnet-w32", "mlp"], 0, 0.2), (["batchnorm"], 10, 100)],
    ids=str,
)
def test_evaluation__networks_count_by_their_operations(networks, least, most):
    recipe = resolve("cifar10-dm-ipc1", {"evaluate": {"networks": networks}})
    assert least <= planning._evaluated_work(recipe, (3, 32, 32), 10) <= most
