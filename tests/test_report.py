"""The report: one file of its own that says what the run folders say, finished or not."""

import base64
import io
import json
import shlex
from html.parser import HTMLParser
from shutil import copytree, rmtree

import pytest
from PIL import Image

from condensate import UserError, cli
from condensate.report import MOST_POINTS, _losses, read, save_report

KEYS = [
    "--network.width", "8", "--network.depth", "1", "--objective.batch_real", "8", "--condense.episodes", "3",
    "--evaluate.repeats", "2", "--evaluate.epochs", "1", "--evaluate.epochs_full", "1", "--augment.ops", "crop,scale",
    "--compare", "digits-dm,random,full",
]  # fmt: skip


OWN = "data: {name: digits}\nbudget: {ipc: 1}\nnetwork: {depth: 1}\ncondense: {episodes: 1}\n"


class Page(HTMLParser):
    """Tables, pictures, words, tags that are open, and what it asks others for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.pictures: list[bytes] = []
        self.asked: list[str] = []
        self.words, self.open = "", list[str]()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        source = values.get("src", "")
        if source.startswith("data:image/png;base64,"):
            self.pictures.append(base64.b64decode(source.split(",", 1)[1]))
        self.asked += [value for key, value in attrs if key in ("src", "href") and not value.startswith("data:")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def shown(path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open
    assert not page.asked
    for picture in page.pictures:
        Image.open(io.BytesIO(picture)).verify()
    return page


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "two seeds"
    assert cli.main(["run", "digits-lodm", *KEYS, "--seeds", "2", "--seed", "3", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def again(finished, tmp_path):
    """A copy of the run that may be broken."""
    return copytree(finished, tmp_path / "copy")


def test_report__of_seeds__every_row_with_its_numbers_and_pictures(finished, tmp_path):
    save_report([finished], tmp_path / "report.html")
    page = shown(tmp_path / "report.html")
    for row in ("digits-lodm", "digits-dm", "random", "full"):
        below = "." if row == "digits-lodm" else f"compare/{row}"
        files = [finished / seed / below / "result.json" for seed in ("seed3", "seed4")]
        means = [json.loads(file.read_text())["evaluation"][0]["mean"] for file in files]
        assert any(cell.startswith(f"{50 * sum(means):.1f} ± ") for cell in page.cells), row
    assert len(page.pictures) == 5  # accuracy, images of three rows, losses
    assert (finished / "seed3" / "images.png").read_bytes() in page.pictures
    assert "Not finished" not in page.words


def again_at(part, folder, **places: str) -> str:
    """The SHA-256 of the set that the words of a part make."""
    program, command, *words = shlex.split(" ".join(part.words))
    assert program == "condensate"
    words = [places.get(word, word) for word in words]
    assert cli.main([command, *words, "--out", str(folder)]) == 0
    return json.loads((folder / "result.json").read_text())["artefact_sha256"]


def test_report__words__make_the_same_set(finished, tmp_path):
    made = {seed: json.loads((finished / f"seed{seed}" / "result.json").read_text()) for seed in (3, 4)}
    assert "--seeds 2" in read(finished).words
    assert "--seed 3" in read(finished).words
    part = read(finished / "seed4")
    assert "--seeds 2" not in part.words
    assert again_at(part, tmp_path / "again") == made[4]["artefact_sha256"] != made[3]["artefact_sha256"]


def test_report__words__of_a_recipe_of_the_users(tmp_path):
    (tmp_path / "co$t_{ é.yaml").write_text(OWN)
    keys = ["--network.width", "8", "--objective.batch_real", "4", "--evaluate.repeats", "1", "--evaluate.epochs", "1"]
    assert cli.main(["run", str(tmp_path / "co$t_{ é.yaml"), *keys, "--out", str(tmp_path / "run")]) == 0
    part = read(tmp_path / "run")
    save_report([tmp_path / "run"], tmp_path / "report.html")
    shown(tmp_path / "report.html")
    assert "the recipe below saved as co$t_{ é.yaml" in part.beside
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "co$t_{ é.yaml").write_text(part.recipe)
    sha = json.loads((tmp_path / "run" / "result.json").read_text())["artefact_sha256"]
    below = {"co$t_{ é.yaml": str(tmp_path / "below" / "co$t_{ é.yaml")}
    assert again_at(part, tmp_path / "again", **below) == sha


def test_report__tells_no_place_of_data(finished, again):
    file = again / "seed3" / "environment.json"
    begun = json.loads(file.read_text())
    stream = {"then": [{"name": "folder", "path": "/home/me/secret"}]}
    overrides = begun["overrides"] | {"data": {"path": "/home/me/secret"}, "continual": stream}
    file.write_text(json.dumps(begun | {"overrides": overrides}))
    recipe = again / "seed3" / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "continual:\n  then: [{name: folder, path: /home/me/secret}]\n")
    assert "secret" not in str(read(again))
    assert "--data.path DIR" in read(again).words


def test_report__not_finished__says_how_far_and_shows_what_is_there(again, tmp_path):
    row = again / "seed4" / "compare" / "digits-dm"
    (row / "result.json").unlink()
    (again / "seed4" / "compare" / "random" / "result.json").unlink()
    (row / "synthetic.safetensors").unlink()
    (row / "log.jsonl").write_text('{"episode": 0, "loss": 1.0, "seconds": 1}\n{"epis')
    save_report([again], tmp_path / "report.html")
    page = shown(tmp_path / "report.html")
    assert f"digits-dm, {row}: 1 episode logged" in page.words
    assert f"random, {row.with_name('random')}: its set is saved, not scored yet" in page.words
    assert f"condensate run --resume {again}" in page.words
    assert "digits-lodm" in page.cells
    assert "random" not in page.cells


def test_report__nothing_done_yet__says_so(again, tmp_path):
    for file in again.rglob("*"):
        if file.is_file() and file.name not in ("environment.json", "recipe.yaml"):
            file.unlink()
    rmtree(again / "seed4")
    part = read(again)
    assert len(part.missing) == 5  # and how to go on
    assert part.missing[0].endswith("nothing done yet")
    assert (part.summary, part.pictures) == (None, [])


def test_report__several_folders__side_by_side_and_names_escaped(finished, tmp_path):
    other = copytree(finished / "seed3", tmp_path / "<b>&c")
    save_report([finished, other], tmp_path / "report.html")
    page = shown(tmp_path / "report.html")
    assert page.words.count(str(other)) >= 2
    assert "<b>&c" not in (tmp_path / "report.html").read_text()
    assert "2 seeds, 4 networks" in page.words


def test_report__one_seed_is_not_finished__the_others_are_shown(again):
    (again / "seed3" / "result.json").unlink()
    scored = again / "seed3" / "checkpoints" / "evaluate.json"
    scored.parent.mkdir()
    scored.write_text('{"convnet": [0.5]}')
    part = read(again)
    assert "digits-lodm" in [row[0] for row in part.summary.tables[0].rows]
    assert any("networks scored: 1 of 2 convnet" in line for line in part.missing)
    assert any("shown are 1 of 2 seeds" in line for line in part.missing)
    assert part.headline[-1] == "2 networks"


def test_report__smoke__no_headline(tmp_path):
    assert cli.main(["run", "digits-lodm", "--smoke", "--out", str(tmp_path / "run")]) == 0
    part = read(tmp_path / "run")
    assert part.headline is None
    assert part.about["data"] == "random images, a smoke run"
    assert "--smoke" in part.words


def test_report__seeds_in_order(again):
    (again / "seed4").rename(again / "seed10")
    copytree(again / "seed3", again / "seed-1")
    assert [line.split(",")[-1].strip() for line in [part.title for part in read(again).pictures] if "," in line] == [
        "seed-1"
    ] * 3


def test_command__one_folder__lies_in_it(again, capsys):
    assert cli.main(["report", str(again)]) == 0
    assert capsys.readouterr().out == f"report: {again / 'report.html'}\n"
    shown(again / "report.html")
    assert cli.main(["run", "--resume", str(again)]) == 0  # the run goes on beside it


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{copy}", "{copy}"], "say where the report of 2 folders goes, as in --out report.html"),
        (["{copy}/seed3/compare/random"], "is a row of the run in {copy}/seed3: name that"),
        (["{copy}", "--out", "{copy}/seed3/result.json"], "name one that ends in .html"),
        (["{copy}/compare"], "holds no run; name the folder that condensate run, continual or privacy gave"),
        (["{copy}", "--out", "{copy}"], "is a folder; name a file, as in --out"),
        ([], "the following arguments are required: FOLDER"),
    ],
)
def test_command__mistakes(words, message, again, capsys):
    assert cli.main(["report", *(word.format(copy=again) for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(copy=again) in line


@pytest.mark.parametrize("name", ["result.json", "log.jsonl", "environment.json"])
def test_report__damaged_file__named_and_nothing_written(name, again, tmp_path):
    (again / "seed3" / name).write_text('{"a": \n')
    with pytest.raises(UserError, match=f"{name} is damaged"):
        save_report([again], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_report__of_another_version__named(again):
    file = again / "seed3" / "environment.json"
    file.write_text(json.dumps({"recipe": "digits-lodm"}))
    with pytest.raises(UserError, match="is damaged, or of another version of condensate: KeyError"):
        read(again)


def test_losses__many__means_of_blocks():
    log = [{"episode": number, "loss": float(number % 2)} for number in range(4 * MOST_POINTS - 2)]
    episodes, losses = _losses(log)
    assert len(episodes) == MOST_POINTS
    assert (episodes[0], set(losses)) == (1.5, {0.5})
    assert _losses([]) is None
