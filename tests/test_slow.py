"""Minutes long: programs that are compiled, and learning on real images."""

import os
from pathlib import Path

import pytest
import torch

from condensate import (
    Augment,
    Compute,
    DistributionMatching,
    LowRank,
    Pixels,
    Streams,
    SyntheticDataset,
    build_network,
    class_major,
    condense,
    evaluate,
    from_arrays,
    load_data,
)
from condensate.capabilities import can_compile

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


@pytest.fixture
def mnist():
    root = os.environ.get("CONDENSATE_DATA")
    if not root or not (Path(root) / "mnist").is_dir():
        pytest.skip("needs real data: set $CONDENSATE_DATA to a folder that holds mnist/train.parquet")
    return load_data("mnist", path=str(Path(root) / "mnist"))


@pytest.mark.skipif(not can_compile(CPU), reason="no C++ compiler")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("precision", "tiled"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)], ids=str
)
@pytest.mark.parametrize("each", [3, 11])
def test_compiled__equals_eager(precision, tiled, each):
    images = torch.randint(0, 256, (80, 3, 16, 16), dtype=torch.uint8, generator=Streams(0)("images"))
    labels = torch.arange(4).repeat(20)
    data = from_arrays(images, labels, images, labels)
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        stored = LowRank(4 * each, (3, 16, 16), rank=2)
        stored.reset_(Streams(1)("start"))
        synthetic = SyntheticDataset(stored, class_major(4, each), mean=data.mean, std=data.std)
        network = build_network("convnet", (3, 16, 16), 4, Streams(2)("net"), width=64 if tiled else 16, depth=2)
        compute = Compute(compiled=compiled, precision=precision, chunk=8, tiled=compiled and tiled)
        matching = DistributionMatching(data.train, network, Augment(), Streams(3), compute, batch_real=10)
        losses = []
        for number in range(3):  # networks re-initialise in place: the programs must follow
            losses += [float(loss) for loss in matching.episode(synthetic, number)]
        found.append((losses, [p.grad.clone() for p in synthetic.parameters()]))
    tolerance = 1e-3 if precision == torch.float32 else 3e-2
    assert found[0][0] == pytest.approx(found[1][0], rel=tolerance)
    assert len(set(found[1][0])) == 3
    for eager, compiled_ in zip(found[0][1], found[1][1], strict=True):
        cosine = torch.nn.functional.cosine_similarity(eager.flatten(), compiled_.flatten(), dim=0)
        assert float(cosine) > 1 - tolerance


def test_mnist__dm_far_above_random_images_after_a_few_episodes(mnist):
    torch.set_num_threads(2)
    streams, size = Streams(0), {"width": 32, "depth": 3}
    augment = Augment(["color", "crop", "cutout", "scale", "rotate"])
    scores = []
    for episodes in (0, 150):
        stored = Pixels(10, mnist.shape)
        synthetic = SyntheticDataset(stored, class_major(10, 1), mean=mnist.mean, std=mnist.std)
        index = torch.cat([mnist.train.sample(label, 1, streams("random", label)) for label in range(10)])
        stored.encode_(mnist.train.images(index))
        network = build_network("convnet", mnist.shape, 10, streams("network"), **size)
        matching = DistributionMatching(mnist.train, network, augment, streams, batch_real=64)
        condense(synthetic, matching, episodes=episodes, lr=1.0)
        test = mnist.test.subset(torch.arange(2000))
        options = {"repeats": 2, "epochs": 200, "network_options": size, "augment": augment}
        scores.append(evaluate(synthetic, test, 10, streams, **options))
    assert scores[1].mean > scores[0].mean + 0.1
