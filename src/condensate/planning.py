"""What a run will take, before it is started."""

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from condensate import assemble, settling
from condensate.atomic import replacing
from condensate.compute import PRECISIONS, like_convolutions, parts
from condensate.data import KNOWN, ImageData, look
from condensate.data.cache import folder as cache_folder
from condensate.data.disk import AHEAD
from condensate.evaluation import HELD_BYTES
from condensate.networks import NETWORKS, forward_operations
from condensate.objectives import OBJECTIVES
from condensate.objectives.trajectory import last_epoch
from condensate.parameterizations import PARAMETERIZATIONS, Shape
from condensate.recipe import Recipe
from condensate.streams import Streams
from condensate.training import scored_at_once, trained_at_once
from condensate.whitening import check_size, side_bytes

PATIENCE = 0.8  # seconds a measurement goes on for
# How much faster than eager ones compiled programs are: python -m benchmarks. Two cores: 1.3 (MTT) to 2.2 (training).
# An H200: 2.6 (MTT) to 3.0; all but MTT was eager in bfloat16, and is held against compiled float32 here.
COMPILED_GAIN = {"cpu": 1.6, "cuda": 2.5}
SCRATCH_BYTES = 100 * 2**20  # what libraries take once they are used, whatever the work
COMPILER_BYTES = 64 * 2**20  # what torch.compile keeps of the programs it has made
SCORED = 10_000  # images that score, as most data sets have
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
        precision: Of real features.
        condense_seconds: Of all episodes, from this machine's measured rates; compilation apart.
        evaluate_seconds: Of all networks.
        memory_bytes: Of images and activations at the peak, beside what PyTorch itself takes.
        condense_bytes: Likewise, until networks are trained to score.
        side_bytes: Of the whitening beside the set, not in the budget; 0 without ZCA.
        experts: What the experts take, where the objective matches any.
        sets: How often all classes are condensed: class orders of a stream, shadows of a study of privacy, else 1.
    """

    shape: Shape
    classes: int
    images_per_class: int
    numbers: int
    bytes: int
    budget_bytes: int
    compiled: bool
    precision: str
    condense_seconds: float
    evaluate_seconds: float
    memory_bytes: int
    condense_bytes: int
    side_bytes: int
    experts: "ExpertPlan | None" = None
    sets: int = 1


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


@dataclass(frozen=True)
class Rates:
    """Images a second through a network on this machine, as the run does it.

    Args:
        features: Without gradient, in the precision of the recipe.
        there_and_back: Forward, and back to the parameters and the pixels: thrice a forward's operations, float32.
        training: Through a training step, float32, eager.
        scoring: Without gradient, float32, eager.
    """

    features: float
    there_and_back: float
    training: float
    scoring: float


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
    shape, classes, held, data = _data(recipe)
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
    settled = settling.settle_compute(recipe, shape, classes, images, device)
    work = OBJECTIVES[recipe["objective"]["name"]].planned(classes, images, **recipe.options("objective"))
    labels = images * classes if recipe.condense.lr_labels else 0
    labels += 1 if recipe.experts is not None else 0  # the step size
    settled_training = settling.settle_training(recipe, shape, classes, images, device)
    training = settled_training.evaluate
    at_a_time = min(256, images) * (training.together or 1)
    rates = _rates(settled, shape, classes, at_a_time, device)
    options, evaluated = recipe.condense, recipe.evaluate
    trained = _evaluated_work(recipe, shape, classes) * evaluated.repeats * evaluated.epochs * images
    piece = None
    if training.together == 1:
        piece = trained_at_once(shape, settling.training_way(settled_training)["compute"], device)
    if training.compile == "always":
        trained /= COMPILED_GAIN[device.type]
    experts = _experts(recipe, shape, classes, data, rates)
    if experts is not None:  # the student's parameters after every step
        held += recipe["objective"]["syn_steps"] * 4 * _parameters(recipe, shape, classes)
    peaks = _peaks(settled, shape, classes, images, at_a_time, piece, device)
    lasting = held + 3 * cost.bits // 8 + 2 * side
    return Plan(
        shape,
        classes,
        each,
        cost.numbers + labels,
        cost.bits // 8 + 4 * labels,
        recipe.budget.bits(classes, shape) // 8,
        settled["compute"]["compile"] == "always",
        settled["compute"]["precision"],
        options.episodes * (work.features / rates.features + work.gradients / rates.there_and_back),
        trained / rates.training + evaluated.repeats * SCORED / rates.scoring,
        lasting + max(peaks),
        lasting + peaks[0],
        side,
        experts,
    )


def _experts(recipe: Recipe, shape: Shape, classes: int, data: ImageData | None, rates: Rates) -> ExpertPlan | None:
    options, window = recipe.experts, recipe["objective"]
    if options is None:
        return None
    epochs = options.epochs or last_epoch(window["max_start_epoch"], window["expert_epochs"])
    kept = (epochs + 1) * _parameters(recipe, shape, classes) * PRECISIONS[options.precision].itemsize * options.count
    if data is None:
        return ExpertPlan(options.count, options.count, epochs, kept, None)
    said = recipe["data"]
    unmeasured = said["hold"] == "disk" and None in (said["mean"], said["std"])
    unseen = said["zca"] or unmeasured  # which experts are there shows only after that
    missing = options.count if unseen else len(assemble.experts(recipe, data).missing())
    return ExpertPlan(options.count, missing, epochs, kept, missing * epochs * len(data.train) / rates.training)


def _parameters(recipe: Recipe, shape: Shape, classes: int) -> int:
    return sum(p.numel() for p in assemble.network(recipe, shape, classes, Streams(0)("count")).parameters())


def _data(recipe: Recipe) -> tuple[Shape, int, int, ImageData | None]:
    """Shape, number of classes, bytes held, and the data; what is not at hand is not fetched."""
    name, path, hold = (recipe["data"][key] for key in ("name", "path", "hold"))
    if path is None and name in KNOWN and name != "digits":
        return KNOWN[name].shape, KNOWN[name].classes, 0, None
    data = look(**recipe["data"] | {"zca": False})
    count, image = len(data.train) + len(data.test), math.prod(data.shape)
    held = count * image if hold == "memory" else count * INDEX_BYTES + min(AHEAD, count * image)
    return data.shape, len(data.classes), held, data


def _evaluated_work(recipe: Recipe, shape: Shape, classes: int) -> float:
    """Operations of one network of each kind that scores, in those of the recipe's own."""
    own = forward_operations(NETWORKS[recipe["network"]["name"]](shape, classes, **recipe.options("network")), shape)
    networks = assemble.networks_of(recipe, shape, classes)
    return sum(
        forward_operations(NETWORKS[name](shape, classes, **options), shape) / own for _, name, options in networks
    )


def _rates(recipe: Recipe, shape: Shape, classes: int, batch: int, device: torch.device) -> Rates:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x {torch.get_num_threads()}"
    key = [recipe["network"], shape, classes, batch, recipe["compute"], where, str(torch.__version__)]
    key.append(COMPILED_GAIN[device.type])
    file = cache_folder() / f"rates-{sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    try:
        return Rates(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        pass
    rates = _measure(recipe, shape, classes, batch, device)
    with suppress(OSError), replacing(file) as part:  # a cache that cannot be written only costs time
        part.write_text(json.dumps(rates.__dict__))
    return rates


def _measure(recipe: Recipe, shape: Shape, classes: int, batch: int, device: torch.device) -> Rates:
    """Rates of eager programs, in those of compiled ones where the run compiles."""
    compute = settling.compute(recipe, shape, device)
    net = assemble.network(recipe, shape, classes, Streams(0, device)("rates"))
    precision = torch.float32 if compute.compiled else compute.precision
    low = assemble.network(recipe, shape, classes, Streams(0, device)("rates")).to(precision)
    images = torch.zeros(compute.chunk, *shape, device=device)
    few = torch.zeros(batch, *shape, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)

    def features() -> None:
        with torch.no_grad():
            low.features(images.to(precision))

    def scoring() -> None:
        with torch.no_grad():
            net(images)

    def there_and_back() -> None:
        net(images.clone().requires_grad_()).sum().backward()
        net.zero_grad()

    optimizer = torch.optim.SGD(net.parameters(), 1e-6, fused=True)
    augment = assemble.training_augment(recipe)
    generator = Streams(0, device)("rates")

    def training() -> None:
        cross_entropy(net(augment.unpaired(few, generator)), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    gain, low_gain = 1.0, 1.0
    if compute.compiled:
        gain = COMPILED_GAIN[device.type]
        low_gain = gain * _product_rate(compute.precision, device) / _product_rate(torch.float32, device)
    return Rates(
        low_gain * compute.chunk / _seconds(features, device),
        gain * compute.chunk / _seconds(there_and_back, device),
        batch / _seconds(training, device),
        compute.chunk / _seconds(scoring, device),
    )


def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Matrix products a second, of one size."""
    side = 8192 if device.type == "cuda" else 1024  # long beside the start of a kernel
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    with like_convolutions():
        return 1 / _seconds(lambda: a @ b, device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a piece of work."""
    work()
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 3 or (time.perf_counter() - began < PATIENCE and len(taken) < 50):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def _peaks(
    recipe: Recipe,
    shape: Shape,
    classes: int,
    images: int,
    trained: int,
    piece_trained: int | None,
    device: torch.device,
) -> tuple[int, int]:
    """Bytes at the peak of condensing, and at that of training and scoring, beside what lasts all along.

    Networks are trained on ``trained`` images at a time, of all that are trained together, in such pieces if any.

    Of an image, training holds the outputs of all layers on the way, gradients with the way back once more where the
    program may be differentiated again, and twice that under a gradient of gradients. Eager programs were measured to
    hold so much (``python -m benchmarks --only plan-...``), compiled ones about half.
    """
    largest, all_layers, whole = _outputs(recipe, shape, classes)
    compute, pixels = settling.compute(recipe, shape, device), 4 * torch.Size(shape).numel()
    chunk, piece = compute.chunk, compute.at_once
    half = PRECISIONS[recipe["compute"]["precision"]].itemsize / 4
    matching = OBJECTIVES[recipe["objective"]["name"]]
    each = images // classes
    if whole:  # batch statistics are of whole batches
        chunk = piece = max(images, classes * recipe["objective"].get("batch_real", 0))
    elif piece_trained:
        trained = min(trained, piece_trained)
    if matching.matches_experts:
        batch = recipe["objective"]["batch_syn"] or images
        pieces = parts(batch, piece)
        matched = 4.0 * all_layers * -(-batch // pieces) + 3 * images * pixels
    elif recipe["objective"]["name"] == "dc":
        matched = max(2 * half * all_layers * piece, 4.0 * all_layers * (each if each <= chunk else piece))
    else:
        group = max(each, min(piece, images))  # of whole classes
        matched = max(2 * half * largest * piece, 1.0 * all_layers * (group if group <= chunk else piece))
    lasting = SCRATCH_BYTES
    if recipe["compute"]["compile"] == "always":
        matched, lasting = matched / 2, SCRATCH_BYTES + COMPILER_BYTES
    held = images * pixels if images * pixels <= HELD_BYTES else 0
    scored = 2 * largest * scored_at_once(shape)
    return int(lasting + matched), int(lasting + held + max(all_layers * trained, scored))


@torch.no_grad()
def _outputs(recipe: Recipe, shape: Shape, classes: int) -> tuple[int, int, bool]:
    """Bytes of the largest layer's output for one image, of all layers', and whether it takes whole batches."""
    net = assemble.network(recipe, shape, classes, Streams(0)("count"))
    counted: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counted.append(4 * output[0].numel())

    for module in net.modules():
        if not list(module.children()) and not isinstance(module, nn.Identity):
            module.register_forward_hook(count)
    net(torch.zeros(2, *shape))
    return max(counted), sum(counted), net.batch_statistics
