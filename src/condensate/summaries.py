"""What a result says, in tables and notes: of a run over its seeds, of a stream of classes, of an attack."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from condensate.console import percent
from condensate.recipe import Values
from condensate.rows import FULL

SMOKED = "a smoke run: it ran; the numbers mean nothing"


@dataclass(frozen=True)
class Table:
    """Names in the first column, numbers in the others.

    Args:
        title: Above it.
        columns: Headings.
        rows: Cells, as many as there are columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Summary:
    """All that is told of a result.

    Args:
        tables: One after another.
        notes: Sentences below them.
    """

    tables: Sequence[Table]
    notes: Sequence[str]


def of_run(title: str, results: Sequence[Mapping[str, Values]]) -> Summary:
    """Of the rows of a run, as ``result.json`` has each, over its seeds."""
    rows = []
    for row, first in results[0].items():
        for number, scored in enumerate(first["evaluation"]):
            means = [result[row]["evaluation"][number]["mean"] for result in results]
            stored = first["stored"]
            over_seeds = [f"{percent(mean(means), stdev(means))}", str(len(means))] if len(means) > 1 else []
            rows.append(
                [
                    row,
                    scored["network"],
                    f"{stored['images_per_class']:,}",
                    f"{stored['numbers']:,}",
                    f"{stored['tensor_bytes']:,}",
                    percent(scored["mean"], scored["std"]),
                    str(len(scored["accuracies"])),
                    *over_seeds,
                ]
            )
    columns = ["", "network", "images/class", "numbers", "bytes", "accuracy %", "n"]
    if len(results) > 1:
        columns = [*columns[:5], "first seed %", "networks", "over seeds %", "seeds"]
    smoke = bool(results[0]) and next(iter(results[0].values()))["smoke"]
    full = "; row full counts its bytes as uint8" if FULL in results[0] else ""
    over = "over networks and over seeds" if len(results) > 1 else "over n"
    notes = [*([SMOKED] if smoke else []), f"± is the sample standard deviation {over}{full}"]
    notes += [
        _guaranteed(row, first["privacy"], len(results)) for row, first in results[0].items() if "privacy" in first
    ]
    return Summary([Table(title, columns, rows)], notes)


def _guaranteed(row: str, privacy: Values, sets: int) -> str:
    """What is promised of the privacy of the images a row was condensed from."""
    promised = f"{row}: (epsilon, delta) = ({privacy['epsilon']:.3g}, {privacy['delta']:g}) for one training image"
    return promised + (f" and each of {sets} sets; published together, their epsilons add up" if sets > 1 else "")


def of_stream(result: Values) -> Summary:
    """Of continual learning: accuracy by classes seen, and what the whole stream gave."""
    rows, first = result["rows"], next(iter(result["rows"].values()))
    seen = [f"{point['classes_seen']}" for point in first["curve"]]
    if len(set(seen)) < len(seen):  # data sets that share their labels
        seen = [f"{classes}, step {number + 1}" for number, classes in enumerate(seen)]
    orders = len(result["orders"])
    networks = first["curve"][0]["networks"] // orders
    curves = Table(
        f"accuracy % by classes seen, {orders} class orders of {networks} networks each",
        ["", *seen],
        [[row, *(percent(p["mean"], p["std"]) for p in found["curve"])] for row, found in rows.items()],
    )
    told = []
    for row, found in rows.items():
        last, against = found["curve"][-1], result["differences"].get(row)
        over = "" if against is None else f"{100 * against['mean']:+.1f}"
        if against is not None and against["low"] is not None:
            over += f" ({100 * against['low']:+.1f} to {100 * against['high']:+.1f})"
        lost = found["forgetting"]
        told.append(
            [
                row,
                f"{last['images']:,}" if last["images"] else "",
                f"{last['bytes']:,}" if last["bytes"] else "",
                percent(found["average_incremental"]["mean"], found["average_incremental"]["std"]),
                "" if lost is None else percent(lost["mean"], lost["std"]),
                over,
            ]
        )
    whole = Table(
        f"{result['protocol']}, {result['budget']} budget",
        ["", "images at the end", "bytes", "mean over steps %", "forgetting %", f"{result['recipe']} is better by"],
        told,
    )
    notes = [
        f"{row}: step {cost['step']} shrank older classes from {cost['images'][0]} to {cost['images'][1]} images "
        f"({cost['rule']}), which cost {percent(cost['mean'], cost['std'])} points on them"
        for row, found in rows.items()
        for cost in found["cost_of_shrinking"]
    ]
    notes += [SMOKED] if result["smoke"] else []
    notes += ["± is the sample standard deviation over class orders, ( to ) a 95 % interval of the paired difference"]
    return Summary([curves, whole], notes)


def of_attack(result: Values) -> Summary:
    """Of measured privacy: what the attacks found out, and how near the synthetic images are to real ones."""
    rows = []
    for row, found in result["rows"].items():
        for attack, leak in found["attacks"].items():
            rates = [_with_interval(leak["tpr"][fpr]) for fpr in leak["tpr"]]
            close = _with_interval(leak["auc_of_the_nearest"], 1, 3) if "auc_of_the_nearest" in leak else ""
            told = [_with_interval(leak["auc"], 1, 3), close, _with_interval(leak["balanced_accuracy"]), *rates]
            rows.append([row, f"{100 * found['accuracy']:.1f}", attack, *told])
    first = next(iter(result["rows"].values()))["attacks"]["lira"]
    fprs = [f"TPR % at {100 * float(fpr):g} % FPR" for fpr in first["tpr"]]
    inference = Table(
        f"membership inference, {result['shadows']} shadows of a pool of {result['pool']:,} images",
        ["", "accuracy %", "attack", "AUC", "AUC of the nearest", "balanced accuracy %", *fprs],
        rows,
    )
    near = Table(
        "nearest real image to each synthetic one, of as many members as others",
        ["", "distance in", "closer to a member %", "median to a member", "median to another"],
        [
            [
                row,
                space,
                _with_interval(told["share_closer_to_a_member"]),
                f"{told['median_to_member']:.2f}",
                f"{told['median_to_other']:.2f}",
            ]
            for row, found in result["rows"].items()
            for space, told in found["nearest"].items()
        ],
    )
    notes = [
        f"the set named, {space}: {100 * told['share_closer_to_a_training_image']:.1f} % of its images are closer "
        f"to a training than to a test image (of {told['compared']:,} each); median distances "
        f"{told['median_to_training']:.2f} and {told['median_to_test']:.2f}"
        for space, told in (result["released"] or {}).items()
    ]
    if not fprs:
        notes += ["too few non-members' scores for a true-positive rate at 1 %: more shadows, --privacy.shadows"]
    notes += [SMOKED] if result["smoke"] else []
    notes += ["( to ) is a 95 % interval; 50 % and AUC 0.5 are what guessing gives"]
    return Summary([inference, near], notes)


def _with_interval(estimate: Mapping[str, Any], scale: int = 100, digits: int = 1) -> str:
    value, low, high = (f"{scale * estimate[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
