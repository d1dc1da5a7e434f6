"""Curves and distributions as PNG files."""

import os
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from condensate.atomic import replacing
from condensate.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.4
STYLES = ("-", "--", "-.", ":")  # curves may lie on each other
DPI = 160
# The upper and the lower line of continual learning are no memories.
LIMITS: dict[str, dict[str, Any]] = {
    "full": {"color": "black", "linestyle": "--"},
    "finetune": {"color": "0.5", "linestyle": "--"},
}


def save_roc(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], path: str | os.PathLike[str], title: str) -> None:
    """Write a PNG of ROC curves on logarithmic axes, where low false-positive rates can be read.

    The axes start at the lowest false-positive rate above 0 that a curve holds, one over the number of non-members
    where the scores do not tie; the diagonal is what guessing gives.

    Args:
        curves: By name, false- and true-positive rates (p,), as ``privacy.roc`` gives them.
        path: Of the file; its folder is made if need be.
        title: Above the axes.

    Raises:
        UserError: If there is no curve.
    """
    if not curves:
        raise UserError("expected at least one ROC curve to draw, got none")
    rates = {name: (np.asarray(fpr, float), np.asarray(tpr, float)) for name, (fpr, tpr) in curves.items()}
    lowest = min([0.1, *(fpr[fpr > 0].min() for fpr, _ in rates.values())])  # however much the scores tie
    figure, (axes,) = _figure(1, WIDTH)
    figure.set_layout_engine("none")  # the legend stands beside the axes, which keep their size
    axes.plot([lowest, 1], [lowest, 1], color="0.6", linestyle="--", linewidth=1, label="guessing")
    for number, (name, (fpr, tpr)) in enumerate(rates.items()):
        seen = np.maximum(fpr, lowest)  # what is found at no false positive stands on the left edge
        style = STYLES[number % len(STYLES)]
        axes.step(seen, np.maximum(tpr, lowest / 2), style, where="post", linewidth=1.8, label=_literal(name))
    axes.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1))
    axes.set_title(title, loc="left")
    axes.set(xlabel="false-positive rate (others taken for members)", ylabel="true-positive rate (members found)")
    axes.set_aspect("equal")
    axes.grid(which="major", color="0.9")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, frameon=False)
    _write(figure, path)


def save_distances(
    pairs: Mapping[str, tuple[ArrayLike, ArrayLike]],
    path: str | os.PathLike[str],
    unit: str = "Euclidean distance to the nearest real image (normalised pixels)",
) -> None:
    """Write a PNG with a row for each set: how far its images are from the nearest member and non-member.

    Each as a cumulative distribution; where nothing is memorised the two lie on each other.

    Args:
        pairs: By name, distances (m,) to the nearest member and to the nearest non-member.
        path: Of the file; its folder is made if need be.
        unit: Below the last horizontal axis; every row has its own range.

    Raises:
        UserError: If there is no pair.
    """
    if not pairs:
        raise UserError("expected the distances of at least one set to draw, got none")
    figure, rows = _figure(len(pairs), 0.8 + 1.6 * len(pairs))
    for axes, (name, (members, others)) in zip(rows, pairs.items(), strict=True):
        axes.ecdf(np.asarray(members, float), color="C3", linewidth=1.6, label="nearest member")
        axes.ecdf(np.asarray(others, float), color="C0", linewidth=1.6, linestyle="--", label="nearest non-member")
        axes.set_title(_literal(name), loc="left")
        axes.set(ylim=(-0.03, 1.03), yticks=(0, 0.5, 1), ylabel="share of images")
        axes.grid(color="0.9")
    rows[-1].set_xlabel(unit)
    figure.legend(*rows[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    _write(figure, path)


def save_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: str | os.PathLike[str]) -> None:
    """Write a PNG of accuracy by classes seen, one line a row, bars of one standard deviation over class orders.

    Where data sets share their labels the classes do not grow, and experiences are counted.

    Args:
        curves: By row, a point a step: ``classes_seen``, and ``mean`` and ``std`` (or None) of accuracy, 0..1.
        path: Of the file; its folder is made if need be.
    """
    figure, (axes,) = _figure(1, 4.6)
    figure.set_layout_engine("none")  # the legend stands beside the axes, which keep their size
    first = [point["classes_seen"] for point in next(iter(curves.values()))]
    grows = len(set(first)) == len(first)
    for number, (row, points) in enumerate(curves.items()):
        seen = [point["classes_seen"] for point in points] if grows else [*range(1, len(points) + 1)]
        means = [100 * point["mean"] for point in points]
        spreads = [100 * (point["std"] or 0.0) for point in points]
        style = LIMITS.get(row) or {"color": f"C{number % 10}", "linestyle": STYLES[number // 10], "marker": "o"}
        axes.errorbar(
            seen, means, spreads, capsize=2, markersize=3, linewidth=1.4, elinewidth=0.7, label=_literal(row), **style
        )
    axes.set(xlabel="classes seen" if grows else "experiences seen", ylabel="accuracy on the classes seen, %")
    axes.set_xticks(seen)
    axes.grid(color="0.9")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, frameon=False)
    _write(figure, path)


def save_neighbours(rows: Sequence[tuple[str, Tensor, Sequence[str]]], path: str | os.PathLike[str]) -> None:
    """Write a PNG of pictures in rows of equal length, a name before each and a word under each picture.

    Args:
        rows: Name, pictures (k, C, H, W) of 0..1, and k words.
        path: Of the file; its folder is made if need be.
    """
    from matplotlib.figure import Figure

    count = max(len(pictures) for _, pictures, _ in rows)
    figure = Figure(figsize=(1.8 + 0.8 * count, len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, pictures, words) in zip(grid, rows, strict=True):
        line[0].text(-0.15, 0.5, _literal(name), transform=line[0].transAxes, ha="right", va="center", fontsize=9)
        for axes, picture, word in zip(line, pictures, words, strict=False):
            seen = picture.permute(1, 2, 0).cpu().numpy()
            axes.imshow(seen, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xlabel(word, fontsize=8, labelpad=1)
    for axes in grid.flat:
        axes.set(xticks=(), yticks=())
        axes.spines[:].set_visible(False)
    _write(figure, path)


def save_accuracies(rows: Mapping[str, Sequence[float]], path: str | os.PathLike[str] | IO[bytes]) -> None:
    """Write a PNG with a line a row: a dot for the accuracy of every network, a bar for their mean.

    Args:
        rows: By name, accuracies of 0..1.
        path: Of the file, or what is open to be written.
    """
    figure, (axes,) = _figure(1, 0.9 + 0.32 * len(rows))
    for number, values in enumerate(rows.values()):
        percent = 100 * np.asarray(values, float)
        axes.plot(percent, np.full(len(percent), number), "o", color=f"C{number % 10}", alpha=0.5, markersize=5)
        axes.plot([percent.mean()] * 2, [number - 0.3, number + 0.3], color="black", linewidth=1.6)
    axes.set_yticks(range(len(rows)), map(_literal, rows))
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="accuracy, %")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    _write(figure, path)


def save_losses(
    rows: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]], path: str | os.PathLike[str] | IO[bytes]
) -> None:
    """Write a PNG with axes for each row: loss by episode, a line a seed; logarithmic where they span a decade.

    Args:
        rows: By name, for every seed the episodes and their losses.
        path: Of the file, or what is open to be written.
    """
    figure, panels = _figure(len(rows), 0.5 + 1.8 * len(rows))
    for axes, (name, lines) in zip(panels, rows.items(), strict=True):
        for episodes, losses in lines:
            axes.plot(episodes, losses, linewidth=1.2, marker="o" if len(losses) == 1 else "")
        every = [loss for _, losses in lines for loss in losses]
        if min(every) > 0 and max(every) > 10 * min(every):
            axes.set_yscale("log")
        axes.set_title(_literal(name), loc="left")
        axes.set(ylabel="loss")
        axes.grid(color="0.9")
    panels[-1].set_xlabel("episode")
    _write(figure, path)


def _literal(name: str) -> str:
    """A name that may hold what matplotlib takes for formulas."""
    return name.replace("$", r"\$")


def _figure(rows: int, height: float) -> tuple["Figure", list["Axes"]]:
    """A figure of its own, unknown to pyplot, with axes in rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _write(figure: "Figure", path: str | os.PathLike[str] | IO[bytes]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    if not isinstance(path, str | os.PathLike):
        figure.savefig(path, format="png", dpi=DPI, bbox_inches="tight")
        return
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=DPI, bbox_inches="tight")
