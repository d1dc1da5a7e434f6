"""Condense in a continual loop of your own: digits, two classes at a time. Run: python examples/own_stream.py."""

import torch

import condensate

data = condensate.load_data("digits", mean=[0.5], std=[0.5])  # stated: nothing is measured on classes to come
streams, size = condensate.Streams(seed=0), {"width": 32, "depth": 2}
augment = condensate.Augment(["crop", "scale", "rotate"])
classes, bits = data.classes, 32 * 8 * 8  # a class: those of one float32 image

memory, seen = [], []
for number, new in enumerate([[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]):
    real, own = data.train.of_classes(new), streams.under("experience", number)  # labels 0 and 1, and the names
    each = condensate.capacity(condensate.LowRank, bits * len(new), len(new), data.shape, rank=2)
    stored = condensate.LowRank(each * len(new), data.shape, rank=2)
    stored.reset_(own("start"), pixel_std=0.5)
    labels = condensate.class_major(len(new), each)
    synthetic = condensate.SyntheticDataset(stored, labels, classes=real.classes, mean=data.mean, std=data.std)
    network = condensate.build_network("convnet", data.shape, len(classes), own("network"), **size)  # tells all apart
    matching = condensate.DistributionMatching(real, network, augment, own, batch_real=32)
    condensate.condense(synthetic, matching, episodes=30, lr=1.0)

    memory, seen = [*memory, synthetic], [*seen, *new]
    remembered = condensate.Union(memory, classes)  # a torch Dataset, its labels those of the stream, by name
    test = data.test.subset(torch.isin(data.test.labels, torch.tensor(seen)).nonzero().flatten())
    score = condensate.evaluate(
        remembered, test, len(classes), own, repeats=1, epochs=60, network_options=size, augment=augment
    )
    stored_bytes = sum(part.cost().bits for part in memory) // 8
    print(f"{len(seen)} classes, {len(remembered)} images, {stored_bytes} bytes: accuracy {100 * score.mean:.0f} %")
