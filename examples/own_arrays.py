"""Condense arrays of your own: two blobs of noise, a dark and a bright one. Run: python examples/own_arrays.py."""

import numpy as np

import condensate

rng = np.random.default_rng(0)
dark, bright = rng.integers(0, 120, (100, 12, 16, 3)), rng.integers(130, 256, (100, 12, 16, 3))
images, labels = np.concatenate([dark, bright]).astype(np.uint8), np.repeat([0, 1], 100)
data = condensate.from_arrays(images[::2], labels[::2], images[1::2], labels[1::2], classes=["dark", "bright"])

streams = condensate.Streams(seed=0)
stored = condensate.LowRank(2 * 3, data.shape, rank=1)
stored.reset_(streams("start"))
synthetic = condensate.SyntheticDataset(
    stored, condensate.class_major(2, 3), classes=data.classes, mean=data.mean, std=data.std
)
network = condensate.build_network("convnet", data.shape, 2, streams("network"), width=16, depth=2)
matching = condensate.DistributionMatching(data.train, network, condensate.Augment(["crop"]), streams, batch_real=32)
condensate.condense(synthetic, matching, episodes=50, lr=1.0)
options = {"width": 16, "depth": 2}
score = condensate.evaluate(synthetic, data.test, 2, streams, repeats=2, epochs=50, network_options=options)
print(f"{len(synthetic)} images, accuracy {100 * score.mean:.0f} %")
