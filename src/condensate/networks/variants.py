"""Networks under one name with their options, and lists of them, to score a set on."""

from typing import Any

# Name -> (key of NETWORKS, keywords of its constructor).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "convnet-d1": ("convnet", {"depth": 1}),
    "convnet-d2": ("convnet", {"depth": 2}),
    "convnet-d3": ("convnet", {"depth": 3}),
    "convnet-d4": ("convnet", {"depth": 4}),
    "convnet-w32": ("convnet", {"width": 32}),
    "convnet-w64": ("convnet", {"width": 64}),
    "convnet-w128": ("convnet", {"width": 128}),
    "convnet-w256": ("convnet", {"width": 256}),
    "convnet-w512": ("convnet", {"width": 512}),
    "convnet-w1024": ("convnet", {"width": 1024}),
    "convnet-sigmoid": ("convnet", {"activation": "sigmoid"}),
    "convnet-relu": ("convnet", {"activation": "relu"}),
    "convnet-leaky-relu": ("convnet", {"activation": "leaky-relu"}),
    "convnet-swish": ("convnet", {"activation": "swish"}),
    "convnet-nopool": ("convnet", {"pooling": "none"}),
    "convnet-maxpool": ("convnet", {"pooling": "max"}),
    "convnet-avgpool": ("convnet", {"pooling": "avg"}),
    "convnet-nn": ("convnet", {"norm": "none"}),
    "convnet-bn": ("convnet", {"norm": "batch"}),
    "convnet-ln": ("convnet", {"norm": "layer"}),
    "convnet-in": ("convnet", {"norm": "instance"}),
    "convnet-gn": ("convnet", {"norm": "group"}),
    "convnet-swish-bn": ("convnet", {"activation": "swish", "norm": "batch"}),
    "alexnet-bn": ("alexnet", {"norm": "batch"}),
    "vgg11-bn": ("vgg11", {"norm": "batch"}),
    "resnet18-bn": ("resnet18", {"norm": "batch"}),
    "resnet18-ap": ("resnet18", {"pooling": "avg"}),
    "resnet18-bn-ap": ("resnet18", {"norm": "batch", "pooling": "avg"}),
}

# The pools of Zhao et al., ICLR 2021, and Zhao & Bilen, ICML 2021.
LISTS: dict[str, tuple[str, ...]] = {
    "architectures": ("mlp", "convnet", "lenet", "alexnet", "vgg11", "resnet18"),
    "batchnorm": ("convnet-bn", "convnet-swish-bn", "alexnet-bn", "vgg11-bn", "resnet18-bn"),
    "widths": ("convnet-w32", "convnet-w64", "convnet-w128", "convnet-w256"),
    "depths": ("convnet-d1", "convnet-d2", "convnet-d3", "convnet-d4"),
    "activations": ("convnet-sigmoid", "convnet-relu", "convnet-leaky-relu", "convnet-swish"),
    "poolings": ("convnet-nopool", "convnet-maxpool", "convnet-avgpool"),
    "norms": ("convnet-nn", "convnet-bn", "convnet-ln", "convnet-in", "convnet-gn"),
}
