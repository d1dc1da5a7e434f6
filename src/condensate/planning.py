"""What a run will take, before it is started."""

import math
from dataclasses import dataclass, replace

import torch

from condensate import assemble, settling
from condensate.compute import PRECISIONS
from condensate.data import KNOWN, ImageData, look
from condensate.data.disk import AHEAD
from condensate.losses import trained_at_once
from condensate.networks import outline
from condensate.objectives import OBJECTIVES
from condensate.parameterizations import PARAMETERIZATIONS, Shape
from condensate.peaks import peaks
from condensate.rates import Rates, measured_rates, training_gain
from condensate.recipe import STUDIES, Recipe, Values
from condensate.streams import Streams
from condensate.whitening import check_size, side_bytes

INDEX_BYTES = 24  # held of an image on disk: its label, its row and its place in its class


@dataclass(frozen=True)
class Plan:
    """Storage, time and memory of a recipe's main row.

    Args:
        shape: Of one image.
        classes: Number of classes.
        images_per_class: What the budget holds.
        numbers: Stored.
        bytes: Of the stored tensors.
        budget_bytes: What was allowed.
        compiled: Whether the run compiles its programs.
        tiled: Whether their wide convolutions go on tiles.
        precision: Of what carries no gradient to the images.
        condense_seconds: Of all episodes, from this machine's measured rates; compilation apart.
        evaluate_seconds: Of all networks.
        memory_bytes: Of images and activations at the peak, beside what PyTorch itself takes.
        data_bytes: Of the real images in it.
        condense_bytes: Likewise, until networks are trained to score.
        side_bytes: Of the whitening beside the set, not in the budget; 0 without ZCA.
        experts: What the experts take, where the objective matches any.
        sets: How often all classes are condensed: class orders of a stream, shadows of a study of privacy, else 1.
        privacy: What a set gives away of one training image at most, see ``Objective.guarantee``; None of studies.
    """

    shape: Shape
    classes: int
    images_per_class: int
    numbers: int
    bytes: int
    budget_bytes: int
    compiled: bool
    tiled: bool
    precision: str
    condense_seconds: float
    evaluate_seconds: float
    memory_bytes: int
    data_bytes: int
    condense_bytes: int
    side_bytes: int
    experts: "ExpertPlan | None" = None
    sets: int = 1
    privacy: Values | None = None


@dataclass(frozen=True)
class ExpertPlan:
    """What the experts of a recipe take.

    Args:
        count: Of them.
        missing: To be made first; all of them where the data are not at hand, or are still to be measured or whitened.
        epochs: Kept of each.
        bytes: Of all of them on disk.
        seconds: Of making those that are missing; None where the data are not at hand.
    """

    count: int
    missing: int
    epochs: int
    bytes: int
    seconds: float | None


def plan(recipe: Recipe, device: torch.device) -> Plan:
    """Estimate a run without an episode of it; machine rates are measured once, in seconds, and kept in the cache.

    Of a recipe with a section of a study, the main row of the whole study; older classes condensed again, and networks
    that are trained on real images along a stream, are not counted.
    """
    single = _plan(recipe, device)
    sets, networks, parts = 1, 1.0, 1
    if "continual" in recipe.values:
        stream = recipe.continual
        parts = len(stream.groups or range(stream.steps)) * (1 + len(stream.then))
        sets, networks = stream.orders, parts if stream.budget == "fixed" else (parts + 1) / 2  # whole sets trained on
    elif "privacy" in recipe.values:
        sets, networks = recipe.privacy.shadows, recipe.privacy.networks / recipe.evaluate.repeats
    made = single.experts
    if made is not None and sets * parts > 1:  # of every part anew, whatever a store holds
        seconds = made.seconds * sets * made.count / made.missing if made.seconds and made.missing else None
        count = made.count * sets * parts
        made = replace(made, count=count, missing=count, bytes=made.bytes * parts, seconds=seconds)
    condense, evaluate = single.condense_seconds * sets, single.evaluate_seconds * sets * networks
    return replace(single, condense_seconds=condense, evaluate_seconds=evaluate, experts=made, sets=sets)


def _plan(recipe: Recipe, device: torch.device) -> Plan:
    there = _data(recipe)
    shape, classes, data = there.shape, there.classes, there.data
    side = 0
    if recipe["data"]["zca"]:
        check_size(shape)
        side = side_bytes(shape)
    each = assemble.images_per_class(recipe, classes, shape)
    images = each * classes
    if data is not None and recipe.condense.episodes:
        settling.check_images(recipe, images, len(data.train))
    storage = PARAMETERIZATIONS[recipe["parameterization"]["name"]]
    cost = storage.cost(images, shape, **recipe.options("parameterization"))
    labels = images * classes if recipe.condense.lr_labels else 0
    labels += 1 if recipe.experts is not None else 0  # the step size
    settled = settling.settle_compute(recipe, shape, classes, images, device, there.trained)
    settled = settling.settle_training(settled, shape, classes, images, device)
    together = settled.evaluate.together or 1
    at_a_time, piece = min(256, images) * together, None
    if together == 1:
        piece = trained_at_once(shape, settling.training_way(settled)["compute"], device)
    rates = measured_rates(settled, shape, classes, at_a_time, device)
    condensing, scoring = peaks(settled, shape, classes, images, at_a_time, piece, device)
    lasting = there.held + 3 * cost.bits // 8 + 2 * side
    return Plan(
        shape=shape,
        classes=classes,
        images_per_class=each,
        numbers=cost.numbers + labels,
        bytes=cost.bits // 8 + 4 * labels,
        budget_bytes=recipe.budget.bits(classes, shape) // 8,
        compiled=settled["compute"]["compile"] == "always",
        tiled=settled["compute"]["tiles"] == "always",
        precision=settled["compute"]["precision"],
        condense_seconds=_condense_seconds(recipe, classes, images, rates),
        evaluate_seconds=_evaluate_seconds(settled, there, images, rates, device),
        memory_bytes=lasting + max(condensing, scoring),
        data_bytes=there.held,
        condense_bytes=lasting + condensing,
        side_bytes=side,
        experts=_experts(settled, there, rates, device),
        privacy=_privacy(recipe, there),
    )


def _condense_seconds(recipe: Recipe, classes: int, images: int, rates: Rates) -> float:
    """Of all episodes."""
    work = OBJECTIVES[recipe["objective"]["name"]].planned(classes, images, **recipe.options("objective"))
    taken = work.features / rates.features + work.gradients / rates.there_and_back
    return recipe.condense.episodes * (taken + work.real_gradients / rates.real_gradients)


def _evaluate_seconds(recipe: Recipe, there: "_Data", images: int, rates: Rates, device: torch.device) -> float:
    """Of training and scoring all networks, as the recipe has settled it."""
    options = recipe.evaluate
    networks = options.repeats * _evaluated_work(recipe, there.shape, there.classes)
    gain = training_gain(settling.training_way(recipe)["compute"], device)
    return networks * (options.epochs * images / (gain * rates.training) + there.scored / rates.scoring)


def _experts(recipe: Recipe, there: "_Data", rates: Rates, device: torch.device) -> ExpertPlan | None:
    options, data = recipe.experts, there.data
    if options is None:
        return None
    epochs = assemble.expert_epochs(recipe)
    numbers = _parameters(recipe, there.shape, there.classes)
    kept = (epochs + 1) * numbers * PRECISIONS[options.precision].itemsize * options.count
    if data is None:
        return ExpertPlan(options.count, options.count, epochs, kept, None)
    said = recipe["data"]
    unmeasured = said["hold"] == "disk" and None in (said["mean"], said["std"])
    unseen = said["zca"] or unmeasured  # which experts are there shows only after that
    missing = options.count if unseen else len(assemble.experts(recipe, data).missing())
    compute = assemble.expert_compute(recipe, there.shape, there.classes, there.trained, device)
    seconds = missing * epochs * there.trained / (training_gain(compute, device) * rates.training)
    return ExpertPlan(options.count, missing, epochs, kept, seconds)


def _privacy(recipe: Recipe, there: "_Data") -> Values | None:
    episodes, options = recipe.condense.episodes, recipe.options("objective")
    if not episodes or any(study in recipe.values for study in STUDIES):  # whose sets are of parts of the data
        return None
    return OBJECTIVES[recipe["objective"]["name"]].guarantee(there.classes, there.trained, episodes, **options)


def _parameters(recipe: Recipe, shape: Shape, classes: int) -> int:
    return sum(p.numel() for p in assemble.network(recipe, shape, classes, Streams(0)("count")).parameters())


@dataclass(frozen=True)
class _Data:
    """What is known of the real images.

    Args:
        shape: Of one.
        classes: Number of classes.
        held: Bytes of those that stay in memory.
        trained: How many networks are trained on.
        scored: How many networks are scored on.
        data: Themselves, where they are at hand.
    """

    shape: Shape
    classes: int
    held: int
    trained: int
    scored: int
    data: ImageData | None = None


def _data(recipe: Recipe) -> _Data:
    """What is not at hand is not fetched."""
    name, path, hold, part = (recipe["data"][key] for key in ("name", "path", "hold", "validation"))
    if path is None and name in KNOWN and name != "digits":
        known, validated = KNOWN[name], recipe.evaluate.split == "validation"
        train, test = known.counts
        scored, trained = round(part * train) if validated else test, round((1 - part) * train)
        return _Data(known.shape, known.classes, _held(train + test, known.shape, hold), trained, scored)
    data = look(**recipe["data"] | {"zca": False})
    held = _held(len(data.train) + len(data.test), data.shape, hold)
    scored = len(assemble.scoring_split(recipe, data))
    return _Data(data.shape, len(data.classes), held, len(data.train), scored, data)


def _held(count: int, shape: Shape, hold: str) -> int:
    """Bytes that so many images take in memory."""
    image = math.prod(shape)
    return count * image if hold == "memory" else count * INDEX_BYTES + min(AHEAD, count * image)


def _evaluated_work(recipe: Recipe, shape: Shape, classes: int) -> float:
    """Operations of one network of each kind that scores, in those of the recipe's own."""
    own = outline(recipe["network"]["name"], shape, classes, **recipe.options("network")).operations
    networks = assemble.networks_of(recipe, shape, classes)
    return sum(outline(name, shape, classes, **options).operations / own for _, name, options in networks)
