"""Read a low-rank set without condensate, and train on it. Run: python examples/without_condensate.py FILE.

FILE is a synthetic.safetensors of a lo* recipe without ZCA. Whatever the network is shown must be normalised as the
set is.
"""

import json
import sys

import torch
from safetensors import safe_open

if len(sys.argv) != 2:
    sys.exit(__doc__)
with safe_open(sys.argv[1], framework="pt") as file:
    about = json.loads(file.metadata()["condensate"])
    a, b = file.get_tensor("a"), file.get_tensor("b")

images = a @ b  # (n, C, H, W), normalised
labels = torch.arange(len(about["classes"])).repeat_interleave(about["per_class"])  # class by class
mean, std = (torch.tensor(about[key]).view(-1, 1, 1) for key in ("mean", "std"))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Real images, (n, C, H, W) of 0 to 255, as the network is to see them."""
    return (pixels / 255 - mean) / std


model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(images[0].numel(), len(about["classes"])))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _step in range(100):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
pixels = torch.zeros(1, *about["shape"])  # in place of an image of yours
name = about["classes"][int(model(normalised(pixels)).argmax())]
print(f"{len(images)} images of {len(about['classes'])} classes, loss {loss.item():.4f}; black is taken for {name}")
