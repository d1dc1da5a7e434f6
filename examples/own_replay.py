"""Feed a condensed memory to a continual learning loop of your own. Run: python examples/own_replay.py STEP_FOLDER.

STEP_FOLDER is that of a step that `condensate continual` has written, not the last: runs/NAME/001/order0/NAME/step2.
"""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import condensate

if len(sys.argv) != 2:
    sys.exit(__doc__)
classes = [str(digit) for digit in range(10)]  # of the whole stream: labels are places in this list
memory = condensate.load_memory(Path(sys.argv[1]) / "memory", classes)  # a torch Dataset of (image, label)

# What is new: any torch Dataset whose images are normalised as the memory's are.
seen = set(memory.labels.tolist())
data = condensate.load_data("digits", mean=memory.parts[0].mean, std=memory.parts[0].std)
new = data.train.of_classes([label for label in range(10) if label not in seen])
experience = condensate.Union([new], classes)

channels, height, width = memory[0][0].shape
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * height * width, len(classes)))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _epoch in range(5):
    replay = iter(DataLoader(memory, batch_size=32, sampler=torch.utils.data.RandomSampler(memory, num_samples=10**6)))
    for images, labels in DataLoader(experience, batch_size=32, shuffle=True):
        old_images, old_labels = next(replay)
        new_loss, old_loss = (
            torch.nn.functional.cross_entropy(model(x), y) for x, y in ((images, labels), (old_images, old_labels))
        )
        optimizer.zero_grad()
        (new_loss + old_loss).backward()
        optimizer.step()
print(f"{len(memory)} images remembered of {len(seen)} classes, {len(experience)} new ones of {10 - len(seen)}")
