"""The command privacy: what a condensed set tells of the images it was made from."""

import argparse
from pathlib import Path

from condensate.commands.base import DEFAULT_RECIPE, Command, as_lists, show_summary
from condensate.commands.studies import BY_JOBS, carry_out, study_options
from condensate.errors import UserError
from condensate.recipe import Recipe, Values, merge
from condensate.records import read_json
from condensate.schema import complete
from condensate.sheets import find, shipped
from condensate.studies import privacy
from condensate.summaries import of_attack
from condensate.synthetic import check_single

# Beside what is asked about: real images in the same bytes, and networks that saw all members.
COMPARED = ["random", "random-uint8", "full"]


def _privacy(options: argparse.Namespace, keys: Values) -> None:
    usage = f"privacy needs a RECIPE or the folder of a run, as in: condensate privacy {DEFAULT_RECIPE}"
    folder, result = carry_out(
        options, keys, read=_read, prepare=privacy.prepare, reopen=privacy.reopen, command="privacy", usage=usage
    )
    show_summary(of_attack(result))
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


PRIVACY = Command(
    "Attack sets condensed from halves of the data; say what they give away.",
    study_options,
    _privacy,
    recipe=lambda name, keys: _read(name or DEFAULT_RECIPE, keys)[0],
    alone=BY_JOBS,
)
