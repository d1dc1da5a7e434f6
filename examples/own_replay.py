"""Feed a condensed memory to a continual learning loop of your own. Run: python examples/own_replay.py STEP_FOLDER.

STEP_FOLDER is that of a step that `condensate continual` has written, not the last: runs/NAME/001/order0/NAME/step2.
Data and classes are those of its study, of one data set.
"""

import sys
from pathlib import Path

import torch
import yaml
from torch.utils.data import DataLoader

import condensate

if len(sys.argv) != 2:
    sys.exit(__doc__)
step = Path(sys.argv[1]).resolve()
said = yaml.safe_load((step.parents[2] / "recipe.yaml").read_text())["data"]
remembered = condensate.load_memory(step / "memory").parts  # a condensed set an experience, of its classes alone
said |= {"mean": remembered[0].mean, "std": remembered[0].std}  # all images are normalised as the memory's are
data = condensate.load_data(**said)
classes = data.classes  # of the whole stream: labels are places in this list
memory = condensate.Union(remembered, classes)  # a torch Dataset of (image, label)

seen = sorted(set(memory.labels.tolist()))
new = data.train.of_classes([label for label in range(len(classes)) if label not in seen])
experience = condensate.Union([new], classes)  # what is new; any torch Dataset of such images will do

channels, height, width = data.shape
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
print(f"{len(memory)} images remembered of {len(seen)} classes, {len(experience)} new ones of {len(new.classes)}")
