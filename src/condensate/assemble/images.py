"""The real images of a recipe."""

from contextlib import nullcontext

import torch

from condensate.atomic import in_turn
from condensate.data import ImageData, Split, from_arrays, load
from condensate.data.cache import folder as cache_folder
from condensate.errors import UserError
from condensate.parameterizations import Shape
from condensate.ranks import ALONE, Ranks
from condensate.recipe import Recipe
from condensate.streams import Streams
from condensate.synthetic import class_major


def image_data(recipe: Recipe, device: torch.device, ranks: Ranks = ALONE) -> ImageData:
    """The data, on the device; of several processes one decodes them and the others read what it kept."""
    with in_turn(cache_folder() / ".loading") if ranks.world > 1 else nullcontext():
        return load(**recipe["data"]).to(device)


def random_data(shape: Shape, device: torch.device, classes: int = 2, each: int = 16) -> ImageData:
    """Random images in place of data, for smoke runs and estimates."""
    generator = Streams(0)("random data")
    images = torch.randint(0, 256, (classes * each, *shape), dtype=torch.uint8, generator=generator)
    labels = class_major(classes, each)
    return from_arrays(images, labels, images, labels, name="random").to(device)


def scoring_split(recipe: Recipe, data: ImageData) -> Split:
    """The real images that score."""
    if recipe.evaluate.split == "test":
        return data.test
    if data.validation is None:
        raise UserError("there is no validation split to score on; hold one out with --data.validation 0.2")
    return data.validation
