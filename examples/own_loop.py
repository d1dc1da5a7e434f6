"""Train a network of your own on a condensed set, a torch Dataset. Run: python examples/own_loop.py RUN_FOLDER."""

import sys

import torch
from torch.utils.data import DataLoader

import condensate

if len(sys.argv) != 2:
    sys.exit(__doc__)
synthetic = condensate.load(sys.argv[1])
classes, (channels, height, width) = len(synthetic.classes), synthetic.parameterization.shape
model = torch.nn.Sequential(
    torch.nn.Flatten(), torch.nn.Linear(channels * height * width, 64), torch.nn.ReLU(), torch.nn.Linear(64, classes)
)
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for _epoch in range(100):
    for images, labels in DataLoader(synthetic, batch_size=32, shuffle=True):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"{len(synthetic)} synthetic images of {classes} classes, loss {loss.item():.4f}")
