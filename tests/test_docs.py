"""What README and examples say is run as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from condensate import cli
from condensate.commands.base import DEFAULT_RECIPE, read_recipe
from condensate.recipe import merge
from condensate.schema import complete
from condensate.sheets import find, shipped

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CHANGELOG.md"]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page that name this language."""
    fenced = page.read_text().split("```")[1::2]
    return [block.split("\n", 1)[1] for block in fenced if block.split("\n", 1)[0] == language]


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in blocks(page, "") + blocks(page, "sh"):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, line.split("#")[0].strip()) for line in lines if line.startswith("condensate ")]
    return found


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return "".join(text.split("```")[::2])


def anchors(text: str) -> set[str]:
    """What a link into a page can name, as GitHub has it: its headings and the ids written in it."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *#* *$", prose(text), re.MULTILINE):
        said = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # of a link its text
        slug, number = re.sub(r"[^\w\- ]", "", said.lower()).replace(" ", "-"), 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found[name] = number
    return {*found, *re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)}


def links(text: str) -> list[str]:
    """Where the links of a page go that stay in this repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(text)))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def dead(page: Path) -> list[str]:
    """The links of a page to a file or a heading that is not there."""
    found = []
    for link in links(page.read_text()):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            found.append(link)
    return found


def test_readme__python_block__runs(tmp_path):
    (block,) = blocks(ROOT / "README.md", "python")
    assert 10 <= len([line for line in block.splitlines() if line.strip()]) <= 20
    program = "import torch\ntorch.set_num_threads(1)\n" + block.replace("episodes=200", "episodes=20")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    accuracy = float(re.search(r"accuracy (\d+\.\d) %", done.stdout).group(1))
    assert accuracy > 50


def test_guide__python_blocks__run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "digits-lodm", "--smoke", "--out", "runs/digits-lodm/001"]) == 0
    program = "\n".join(blocks(ROOT / "docs" / "guide.md", "python"))
    said = "assert torch.equal(images, synthetic.images().detach()) and labels.tolist() == synthetic.labels.tolist()"
    subprocess.run([sys.executable, "-c", f"{program}\n{said}"], check=True)
    assert len(list(tmp_path.glob("pictures/[01]/*.png"))) == 4


def test_privacy__python_block__gives_what_it_says():
    pytest.importorskip("opacus")
    (block,) = blocks(ROOT / "docs" / "differential-privacy.md", "python")
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=True)
    assert f"# {done.stdout.split()[1]}, of digits-lodm-private" in block


def test_readme__make_verbs__exist():
    verbs = re.findall(
        r"(?:^|`)make (?:-j2 )?([a-z][a-z-]*)", "\n".join(page.read_text() for page in PAGES), re.MULTILINE
    )
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= set(verbs)
    assert all(f"\n{verb}:" in makefile for verb in verbs)


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands__are_understood(page, line):
    """Recipe and keys of every command line in the docs are known, without running it."""
    words = shlex.split(line)[1:]
    command = cli.COMMANDS[words[0]]
    own, keys = cli._separate(words[1:]) if command.keys else (words[1:], {})
    parser = cli._Parser()
    command.options(parser)
    options = parser.parse_args(own)
    name = getattr(options, "recipe", None)
    if name in shipped():
        read_recipe(name, keys)
    else:
        assert name is None or name in ("RECIPE", "NAME")
        complete("any", merge(find(DEFAULT_RECIPE)[1], keys))


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links__lead_somewhere(page):
    assert dead(page) == []


def test_links__dead_ones_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        '# One\n## A `b`, c_d: [e](#x)\n## One\n```\n# no heading\n[no](link)\n```\n`[no](link)` <a id="own">\n'
        "[1](#one) [2](#one-1) [3](#a-b-c_d-e) [4](#own) [5](page.md#one) [6](https://else.where/#x)\n"
        "[7](#one-2) [8](#no-heading) [9](page.md#two) [10](lost.md)"
    )
    assert dead(page) == ["#x", "#one-2", "#no-heading", "page.md#two", "lost.md"]


def test_commands__there_are_some():
    assert len(commands()) >= 5


def test_example__own_arrays(tmp_path):
    program = [sys.executable, str(ROOT / "examples" / "own_arrays.py")]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "6 images, accuracy" in done.stdout


def test_example__own_objective(tmp_path):
    program = [sys.executable, str(ROOT / "examples" / "own_objective.py")]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=True)
    first, last, accuracy = map(int, re.search(r"loss (\d+) to (\d+), accuracy (\d+) %", done.stdout).groups())
    assert first > 10 * last
    assert accuracy > 40


def test_example__several_processes(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = [*launcher, str(ROOT / "examples" / "several_processes.py"), "1", "8", "1"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count("80 images condensed; processes: 2") == 1


def test_example__own_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "digits-lodm", "--smoke", "--out", "here"]) == 0
    program = [sys.executable, str(ROOT / "examples" / "own_loop.py"), "here"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert "4 synthetic images of 2 classes" in done.stdout


def test_example__without_condensate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "digits-lodm", "--smoke", "--out", "here"]) == 0
    program = (ROOT / "examples" / "without_condensate.py").read_text()
    assert "import condensate" not in program
    said = "; import torch; assert torch.equal(images, condensate.load('here').images().detach())"
    program = f"{program}\nimport condensate{said}"
    done = subprocess.run(
        [sys.executable, "-c", program, "here/synthetic.safetensors"], capture_output=True, text=True, check=True
    )
    assert "4 images of 2 classes, loss" in done.stdout


def test_example__own_stream(tmp_path):
    program = [sys.executable, str(ROOT / "examples" / "own_stream.py")]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=True)
    last = re.search(r"10 classes, 20 images, 2560 bytes: accuracy (\d+) %", done.stdout)
    assert int(last.group(1)) > 50


def test_example__own_replay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = ["--condense.episodes", "1", "--evaluate.repeats", "1", "--evaluate.epochs", "1", "--network.width", "8"]
    keys += ["--continual.orders", "1", "--compare", "null"]
    assert cli.main(["continual", "digits-continual-lodm-5steps", "--out", "here", *keys]) == 0
    step = "here/order0/digits-continual-lodm-5steps/step2"
    program = [sys.executable, str(ROOT / "examples" / "own_replay.py"), step]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert re.search(r"^8 images remembered of 4 classes, \d+ new ones of 6$", done.stdout, re.MULTILINE)
