"""The command privacy: what a condensed set tells of the images it was made from."""

import argparse
from pathlib import Path

from condensate.commands.base import Command, as_lists
from condensate.commands.studies import BY_JOBS, carry_out, study_options
from condensate.console import show_table
from condensate.errors import UserError
from condensate.recipe import Recipe, Values, merge
from condensate.records import read_json
from condensate.schema import complete
from condensate.sheets import find, shipped
from condensate.studies import privacy
from condensate.synthetic import check_single

# Beside what is asked about: real images in the same bytes, and networks that saw all members.
COMPARED = ["random", "random-uint8", "full"]


def _privacy(options: argparse.Namespace, keys: Values) -> None:
    usage = "privacy needs a RECIPE or the folder of a run, as in: condensate privacy digits-lodm"
    folder, result = carry_out(
        options, keys, read=_read, prepare=privacy.prepare, reopen=privacy.reopen, command="privacy", usage=usage
    )
    _show(result)
    print(f"figures: {folder}/*.png")


def _read(given: str, keys: Values) -> tuple[Recipe, Values]:
    """The recipe of a name, a file or a run folder, with the rows to read it against unless the user chose some."""
    folder, about = Path(given), dict[str, str]()
    if given not in shipped() and folder.is_dir():
        if not (folder / "result.json").is_file() or not (folder / "synthetic.safetensors").is_file():
            check_single(folder)
            raise UserError(
                f"{folder} holds no finished run; give the folder with its synthetic.safetensors, or a recipe"
            )
        described = read_json(folder / "environment.json")
        name, before = described["recipe"], described["overrides"]
        _, values, _ = find(str(folder / "recipe.yaml"))
        values = merge(values, {"privacy": {"released": str(folder)}, "compare": COMPARED})
    else:
        name, values, about = find(given)
        before = {}
        if name in shipped() or not values.get("compare"):
            values = merge(values, {"compare": COMPARED})
    values = merge({"privacy": {}}, values)
    keys = as_lists(keys, complete(name, values, about).values)
    changes = {section: content for section, content in before.items() if section != "compare"}
    return complete(name, merge(values, keys), about), merge(changes, keys)


def _show(result: Values) -> None:
    """What the attacks found out, and how near the synthetic images are to real ones."""
    rows = []
    for row, found in result["rows"].items():
        for attack, leak in found["attacks"].items():
            rates = [_with_interval(leak["tpr"][fpr]) for fpr in leak["tpr"]]
            close = _with_interval(leak["auc_of_the_nearest"], 1, 3) if "auc_of_the_nearest" in leak else ""
            told = [_with_interval(leak["auc"], 1, 3), close, _with_interval(leak["balanced_accuracy"]), *rates]
            rows.append([row, f"{100 * found['accuracy']:.1f}", attack, *told])
    first = next(iter(result["rows"].values()))["attacks"]["lira"]
    fprs = [f"TPR % at {100 * float(fpr):g} % FPR" for fpr in first["tpr"]]
    show_table(
        f"membership inference, {result['shadows']} shadows of a pool of {result['pool']:,} images",
        ["", "accuracy %", "attack", "AUC", "AUC of the nearest", "balanced accuracy %", *fprs],
        rows,
    )
    near = []
    for row, found in result["rows"].items():
        for space, told in found["nearest"].items():
            share = _with_interval(told["share_closer_to_a_member"])
            near.append([row, space, share, f"{told['median_to_member']:.2f}", f"{told['median_to_other']:.2f}"])
    show_table(
        "nearest real image to each synthetic one, of as many members as others",
        ["", "distance in", "closer to a member %", "median to a member", "median to another"],
        near,
    )
    for space, told in (result["released"] or {}).items():
        print(
            f"the set named, {space}: {100 * told['share_closer_to_a_training_image']:.1f} % of its images are closer "
            f"to a training than to a test image (of {told['compared']:,} each); median distances "
            f"{told['median_to_training']:.2f} and {told['median_to_test']:.2f}"
        )
    if not fprs:
        print("too few non-members' scores for a true-positive rate at 1 %: more shadows, --privacy.shadows")
    if result["smoke"]:
        print("a smoke run: it ran; the numbers mean nothing")
    print("( to ) is a 95 % interval; 50 % and AUC 0.5 are what guessing gives")


def _with_interval(estimate: Values, scale: int = 100, digits: int = 1) -> str:
    value, low, high = (f"{scale * estimate[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


PRIVACY = Command(
    "Attack sets condensed from halves of the data; say what they give away.", study_options, _privacy, alone=BY_JOBS
)
