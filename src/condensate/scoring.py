"""Networks trained on examples and scored as a recipe says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from condensate import assemble, settling
from condensate.console import Display, Step
from condensate.data import ImageData
from condensate.evaluation import Score, evaluate
from condensate.examples import Examples
from condensate.ranks import ALONE, Ranks
from condensate.recipe import Recipe
from condensate.streams import Streams
from condensate.synthetic import SyntheticDataset
from condensate.training import Bookmark


def score(
    recipe: Recipe,
    examples: Examples,
    data: ImageData,
    streams: Streams,
    display: Display,
    *,
    title: str = "evaluate",
    full: bool = False,
    done: Mapping[str, Sequence[float]] | None = None,
    keep: Callable[[str, Sequence[float]], None] | None = None,
    ranks: Ranks = ALONE,
    bookmark: Callable[[str], Bookmark] | None = None,
) -> list[Score]:
    """Train and score all networks that a recipe's evaluation names.

    Where ``examples`` are a whitened set, real images are seen through its whitening, whatever that of ``data`` is.

    Args:
        recipe: Its section ``evaluate`` and its network and augmentation.
        examples: What to train on.
        data: What to score on.
        streams: Source of all draws.
        display: Shows the progress.
        title: Of the progress.
        full: Whether ``examples`` are the full training set, which has its own number of epochs.
        done: Accuracies known from before, by network, as ``keep`` named it.
        keep: Called with a network's place and name in the evaluation, and accuracies, after each.
        ranks: Processes that deal the networks out.
        bookmark: Keeps where a training stands, by the network's place and name and its number; of one process.
    """
    options, scores = recipe.evaluate, []
    if isinstance(examples, SyntheticDataset) and examples.whitening is not None:
        data = data.seen_through(examples.whitening)
    networks = assemble.networks_of(recipe, data.shape, len(data.classes))
    device = examples.labels.device
    settled = settling.settle_training(recipe, data.shape, len(data.classes), len(examples), device, full=full)
    for number, (name, registered, keywords) in enumerate(networks):
        key = f"{number} {name}"  # "same" and a name may stand for one network under two sets of options
        before = (done or {}).get(key, [])
        with display.work(f"{title} {name}", options.repeats, len(before)) as step:

            def mark(number: int, key: str = key) -> Bookmark:
                return bookmark(f"{key} {number}")  # type: ignore[misc]

            def after(accuracies: Sequence[float], key: str = key, step: Step = step) -> None:
                if keep:
                    keep(key, accuracies)
                step(len(accuracies), f"last {100 * accuracies[-1]:.1f} %")

            measured = evaluate(
                examples,
                assemble.scoring_split(recipe, data),
                len(data.classes),
                streams,
                network=registered,
                network_options=keywords,
                repeats=options.repeats,
                epochs=options.epochs_full if full else options.epochs,
                lr=learning_rate(options.lr, examples),
                augment=assemble.training_augment(recipe),
                done=before,
                after=after,
                **settling.training_way(settled),
                ranks=ranks,
                bookmark=mark if bookmark and ranks.world == 1 else None,
            )
        scores.append(replace(measured, network=name))
    return scores


def learning_rate(given: float | None, examples: Examples) -> float:
    """The one given, else the one learned with the images, else 0.01."""
    learned = examples.step_size if isinstance(examples, SyntheticDataset) else None
    return given if given is not None else 0.01 if learned is None else float(learned.detach())
