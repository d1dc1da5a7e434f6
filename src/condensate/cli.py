"""The command line."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml

from condensate import __version__, assemble, runs
from condensate.atomic import replacing
from condensate.console import Display, duration, percent, show_table, size
from condensate.errors import UserError, unknown
from condensate.planning import ExpertPlan, plan
from condensate.recipe import Recipe, Values, complete, describe_keys, find, merge, shipped
from condensate.records import as_json, environment
from condensate.rows import Session
from condensate.scoring import score
from condensate.streams import Streams
from condensate.synthetic import SyntheticDataset, load

DEFAULT_RECIPE = "digits-lodm"


@dataclass(frozen=True)
class Command:
    """A command of the program.

    Args:
        help: What it does, in one line.
        options: Adds its own arguments.
        execute: Carries it out; what the user changed of the recipe comes second.
        keys: Whether it takes recipe keys.
    """

    help: str
    options: Callable[[argparse.ArgumentParser], None]
    execute: Callable[[argparse.Namespace, Values], None]
    keys: bool = True


class _Parser(argparse.ArgumentParser):
    """Mistakes become errors of ours, on one line."""

    def error(self, message: str) -> Any:
        """Raise instead of exiting."""
        raise UserError(f"{message}; see: {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status is 0, or 2 after a mistake of the user's, said in one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if given[0] == "--version":
        print(__version__)
        return 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            _execute(given[0], given[1:])
    except UserError as error:
        print(f"condensate: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of a pipe has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"condensate: cannot use {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("condensate: interrupted", file=sys.stderr)
        return 130
    return 0


def _execute(name: str, given: list[str]) -> None:
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    command = COMMANDS[name]
    parser = _Parser(prog=f"condensate {name}", description=command.help, allow_abbrev=False)
    command.options(parser)
    own, keys = _separate(given) if command.keys else (given, {})
    if {"-h", "--help"} & set(own):
        print(parser.format_help())
        if command.keys:
            named = next((token for token in own if token in shipped()), DEFAULT_RECIPE)
            print(f"recipe keys, with the values of {named}:\n\n{describe_keys(complete(named, find(named)[1]))}")
        return
    options = parser.parse_args(own)
    if getattr(options, "threads", None):
        torch.set_num_threads(options.threads)
    command.execute(options, keys)


def _separate(given: list[str]) -> tuple[list[str], Values]:
    """The command's own arguments, and the recipe keys ``--section.key value`` among them, nested."""
    own: list[str] = []
    keys: Values = {}
    tokens = iter(given)
    for token in tokens:
        name, equals, value = token.partition("=")
        if not name.startswith("--") or ("." not in name and name not in ("--seed", "--compare")):
            own.append(token)
            continue
        if not equals:
            value = next(tokens, "--")
            if value.startswith("--"):
                raise UserError(f"{name} needs a value, as in {name} VALUE")
        section, _, key = name[2:].partition(".")
        text = name in ("--data.path", "--data.name") and value != "null"
        read = value if text else _value(value)
        keys = merge(keys, {section: {key: read} if key else read})
    return own, keys


def _value(text: str) -> Any:
    """A value as YAML has it; commas make a list."""
    try:
        read = yaml.safe_load(text)
        return [yaml.safe_load(part) for part in text.split(",")] if isinstance(read, str) and "," in text else read
    except yaml.YAMLError as error:
        raise UserError(f"cannot read the value {text!r}: {' '.join(str(error).split())}") from error


def _recipe(name: str, keys: Values) -> tuple[Recipe, Values]:
    """A recipe with the user's changes; a single value stands for a list of one."""
    name, values, about = find(name)
    keys = _as_lists(keys, complete(name, values, about).values)
    return complete(name, merge(values, keys), about), keys


def _as_lists(keys: Values, known: Values) -> Values:
    """The keys, single values for which a list is known wrapped in one."""
    if not keys:
        return {}
    wrapped = {}
    for section, content in keys.items():
        old = known.get(section)
        if isinstance(content, dict):
            lists = [
                key for key, value in (old if isinstance(old, dict) else {}).items() if isinstance(value, list)
            ] + ["ops", "mean", "std"]
            content = {k: [v] if k in lists and not isinstance(v, list | None) else v for k, v in content.items()}
        elif isinstance(old, list) and not isinstance(content, list):
            content = [content]
        wrapped[section] = content
    return wrapped


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}; known: cpu, cuda, cuda:0 and so on") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device {name!r}; known: cpu, cuda, cuda:0 and so on")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device {name}; this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; absent: cuda where there is one")
    parser.add_argument("--threads", type=_positive, help="threads of PyTorch; absent: one a core")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _recipes_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", nargs="?", default="", help="list the names with this in them, as in cifar10-lodm")


def _recipes(options: argparse.Namespace, keys: Values) -> None:
    if not options.part:
        _recipes_by_data()
        return
    rows = []
    for name in shipped():
        if options.part in name:
            _, values, about = find(name)
            rows.append([name, about.get("cost", f"{values['condense']['episodes']:,} episodes"), about["source"]])
    if not rows:
        raise unknown("recipe", options.part, shipped())
    show_table("", ["recipe", "cost", "source"], rows, prose=True)
    print("what a recipe takes on this machine: condensate plan RECIPE")


def _recipes_by_data() -> None:
    """How many recipes of which methods there are for each data set."""
    names: dict[str, list[str]] = {}
    for name in shipped():
        names.setdefault(find(name)[1]["data"]["name"], []).append(name)
    rows = []
    for data, those in names.items():
        methods = dict.fromkeys(name.removeprefix(f"{data}-").split("-")[0] for name in those)
        rows.append([data, ", ".join(methods), str(len(those))])
    show_table("", ["data", "methods", "recipes"], rows, prose=True)
    print("names, cost and source, for instance: condensate recipes cifar10-lodm; all of them: condensate recipes -")


def _show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a shipped name or the path of a YAML file")


def _show(options: argparse.Namespace, keys: Values) -> None:
    print(_recipe(options.recipe, keys)[0].dump(), end="")


def _plan_options(parser: argparse.ArgumentParser) -> None:
    _show_options(parser)
    _common(parser)


def _plan(options: argparse.Namespace, keys: Values) -> None:
    recipe, _ = _recipe(options.recipe, keys)
    expected = plan(recipe, _device(options.device))
    how = f"{'compiled' if expected.compiled else 'eager'}, real features in {expected.precision}"
    rows = [
        ["image", "x".join(map(str, expected.shape))],
        ["classes", str(expected.classes)],
        ["images per class", str(expected.images_per_class)],
        ["numbers stored", f"{expected.numbers:,}"],
        ["bytes stored", f"{expected.bytes:,} of {expected.budget_bytes:,}"],
        *([["side file of ZCA", f"{expected.side_bytes:,}"]] if expected.side_bytes else []),
        ["computed", how],
        *_expert_rows(expected.experts),
        [f"{recipe.condense.episodes:,} episodes", duration(expected.condense_seconds)],
        ["evaluation", duration(expected.evaluate_seconds)],
        ["memory", f"{size(expected.memory_bytes)} and what PyTorch takes"],
    ]
    show_table(f"{recipe.name}, the main row", ["", "expected"], rows)
    if expected.compiled:
        print("Times are from eager rates of this machine; compiled episodes take about half to two thirds of that.")


def _expert_rows(experts: ExpertPlan | None) -> list[list[str]]:
    if experts is None:
        return []
    taken = "time unknown, the data are not here" if experts.seconds is None else duration(experts.seconds)
    made = f"{experts.missing} to be made, {taken}" if experts.missing else "all there"
    return [[f"{experts.count} experts, epochs 0 to {experts.epochs}", f"{size(experts.bytes)} on disk; {made}"]]


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a shipped name or the path of a YAML file")
    parser.add_argument("--seeds", type=_positive, metavar="N", help="run N seeds, from --seed on")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to; absent: runs/RECIPE/NNN, the next free")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the run in this folder")
    parser.add_argument("--smoke", action="store_true", help="does it run at all? toy size, random images, no result")
    _common(parser)


def _run(options: argparse.Namespace, keys: Values) -> None:
    device, display = _device(options.device), Display()
    if options.resume:
        if options.recipe or options.out or options.seeds or keys or options.smoke:
            raise UserError("--resume takes everything from the folder: give no RECIPE, --out, --seeds, --smoke or key")
        top = options.resume
        jobs = [runs.reopen(folder, device, display) for folder in sorted(top.glob("seed*"), key=_seed_number) or [top]]
    else:
        if not options.recipe:
            raise UserError(f"run needs a RECIPE, as in: condensate run {DEFAULT_RECIPE}; list: condensate recipes")
        recipe, changes = _recipe(options.recipe, keys)
        session = Session(device, display, changes, options.smoke)
        if options.out:
            runs.check_free(options.out)
        first = runs.prepare(recipe, session)  # whatever is wrong shows before anything is written
        top = options.out or runs.new_folder(recipe.name)
        seeds = range(recipe["seed"], recipe["seed"] + (options.seeds or 1))
        folders = [top / f"seed{seed}" for seed in seeds] if options.seeds else [top]
        jobs = [first.at(folder, seed) for folder, seed in zip(folders, seeds, strict=True)]
    display.say(f"run folder: {top}")
    results = [job.run() for job in jobs]
    _show_results(jobs[0].recipe.name, results)
    print(f"pictures: {jobs[0].folder / 'images.png'}")


def _seed_number(folder: Path) -> int:
    number = folder.name.removeprefix("seed")
    return int(number) if number.lstrip("-").isdigit() else 0


def _show_results(title: str, results: Sequence[dict[str, Values]]) -> None:
    """The rows of a run, over its seeds."""
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
    show_table(title, columns, rows)
    if results[0] and next(iter(results[0].values()))["smoke"]:
        print("a smoke run: it ran; the numbers mean nothing")
    print("± is the sample standard deviation over n; row full counts its bytes as uint8")


def _experts_options(parser: argparse.ArgumentParser) -> None:
    _show_options(parser)
    parser.add_argument("--store", metavar="DIR", help="folder of all expert stores; absent: in condensate's cache")
    _common(parser)


def _experts(options: argparse.Namespace, keys: Values) -> None:
    if options.store is not None:
        keys = merge(keys, {"experts": {"store": options.store}})
    device, display = _device(options.device), Display()
    name, values, about = find(options.recipe)
    if complete(name, values, about).experts is None:
        raise UserError(f"{name} matches no expert trajectories; those that do: {', '.join(_with_experts()[:6])} ...")
    recipe, _ = _recipe(options.recipe, keys)
    data = assemble.image_data(recipe, device)
    store = assemble.experts(recipe, data)
    store.check_kind()
    missing = len(store.missing())
    with display.work("experts", len(store), len(store) - missing) as step:
        assemble.make_experts(recipe, data, step)
    kept = sum(file.stat().st_size for file in store.folder.glob("expert-*.safetensors"))
    made = f"{missing} made, " if missing else "all there before, "
    print(f"{len(store)} experts ({made}epochs 0 to {store.epochs}, {size(kept)}) in {store.folder}")


def _with_experts() -> list[str]:
    return [name for name in shipped() if find(name)[1].get("objective", {}).get("name") == "mtt"]


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="a synthetic.safetensors, or the run folder that holds it"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the scores to this JSON file, too")
    _common(parser)


def _evaluate(options: argparse.Namespace, keys: Values) -> None:
    device, display = _device(options.device), Display()
    if options.out and options.out.exists():
        raise UserError(f"{options.out} exists; name another file with --out")
    synthetic = load(options.path).to(device)
    about = synthetic.about
    normalisation = {"mean": list(synthetic.mean), "std": list(synthetic.std), "zca": False}
    name, values = about.get("recipe", "artefact"), merge(about.get("values", {}), {"data": normalisation})
    _check_preprocessing(synthetic, keys.get("data", {}))
    recipe = complete(name, merge(values, _as_lists(keys, complete(name, values).values)))
    if synthetic.whitening is not None:  # its own is used: none is fitted to the data
        recipe = recipe.with_values(data=normalisation)
    data = assemble.image_data(recipe, device)
    if data.shape != synthetic.parameterization.shape or len(data.classes) != len(synthetic.classes):
        raise UserError(
            f"the set has images {synthetic.parameterization.shape} of {len(synthetic.classes)} classes, "
            f"the data {data.shape} of {len(data.classes)}; name the data it was made of with --data.path"
        )
    if set(data.classes) == set(synthetic.classes) and data.classes != synthetic.classes:
        raise UserError(f"the data have the set's classes in another order: {data.classes} against {synthetic.classes}")
    if set(data.classes) != set(synthetic.classes):
        _note("the data's class names are not those of the set; labels are taken to mean the same")
    scores = score(recipe, synthetic, data, Streams(recipe["seed"], device), display)
    rows = [[s.network, str(s.epochs), percent(s.mean, s.std), str(len(s.accuracies))] for s in scores]
    show_table(str(options.path), ["network", "epochs", "accuracy %", "n"], rows)
    if options.out:
        with replacing(options.out) as part:
            result = {"evaluation": [as_json(each) for each in scores], "seed": recipe["seed"]}
            part.write_text(json.dumps(result | environment(device), indent=1) + "\n")


def _check_preprocessing(synthetic: SyntheticDataset, given: Values) -> None:
    """Refuse keys under which networks would see test images otherwise than the set's."""
    if synthetic.whitening is None and given.get("zca"):
        raise UserError("the set's images are not whitened, and test images must be seen as they are: drop --data.zca")
    other = [key for key in ("mean", "std") if given.get(key) is not None]
    other += ["zca"] if given.get("zca") is False else []
    if synthetic.whitening is not None and other:
        raise UserError(
            "the set's images are whitened, and test images are whitened alike whatever the data: "
            f"drop {' and '.join(f'--data.{key}' for key in other)}"
        )


def _overview() -> str:
    lines = [f"  {name:10} {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: condensate COMMAND ...",
            "",
            "Dataset condensation: a large image data set goes in, a tiny synthetic one comes out.",
            "",
            *lines,
            "",
            "condensate COMMAND --help lists all a command takes; condensate --version says the version.",
        ]
    )


def _note(message: Warning | str, *rest: Any, **more: Any) -> None:
    print(f"note: {message}", file=sys.stderr)


COMMANDS = {
    "recipes": Command(
        "Count the shipped recipes, or list those of a name, with source and cost.",
        _recipes_options,
        _recipes,
        keys=False,
    ),
    "show": Command("Print a recipe in full, as YAML.", _show_options, _show),
    "plan": Command("Say what a recipe will store and take, without an episode of it.", _plan_options, _plan),
    "run": Command("Condense, save, train networks on the result and score them.", _run_options, _run),
    "experts": Command(
        "Train the expert trajectories that a recipe matches, or finish a store.", _experts_options, _experts
    ),
    "evaluate": Command("Train networks on a saved synthetic set and score them.", _evaluate_options, _evaluate),
}
