"""What auto comes to."""

import math
from typing import Any

import pytest
import torch

from condensate import Compute, UserError
from condensate.assemble import expert_compute, training_compute
from condensate.compute import (
    WORTH_COMPILING,
    WORTH_TILING,
    ComputeOptions,
    parts,
)
from condensate.networks import outline
from condensate.settling import (
    check_training,
    compute,
    condensing_operations,
    settle_compute,
    settle_training,
    training_way,
    why_compiled,
    why_training_compiled,
)
from condensate.sheets import resolve

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WORTH, TILING = WORTH_COMPILING["cpu"], WORTH_TILING
AVX2 = {"avx2": True, "avx512_f": False}


@pytest.mark.parametrize(
    ("asked", "operations", "compilers", "compiled"),
    [
        ("auto", 0.0, ("g++",), False),
        ("auto", 0.999 * WORTH, ("g++",), False),
        ("auto", WORTH, ("g++",), True),
        ("auto", 1e30, ("gcc", "clang", "clang++", "c++"), False),  # PyTorch takes g++ alone
        ("auto", 1e30, (), False),
        ("always", 0.0, ("g++",), True),
        ("never", 1e30, ("g++",), False),
        ("never", 1e30, (), False),
    ],
)
def test_compile__auto_needs_a_long_run_and_a_compiler(
    machine: Any, asked: Any, operations: float, compilers: tuple[str, ...], compiled: bool
):
    machine(compilers)
    assert ComputeOptions(compile=asked).resolve(CPU, operations).compiled == compiled


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_compile__always_without_a_compiler__is_refused(machine: Any, device: torch.device):
    machine(())
    with pytest.raises(UserError, match=r"compile is always, but .* compiler.*install g.*--compute.compile never"):
        ComputeOptions(compile="always", precision="float32").resolve(device, 0.0)


def test_why__no_compiler__says_which(machine: Any):
    machine(())
    assert str(ComputeOptions().why(CPU, 1e30)).endswith(
        "torch.compile needs a C++ compiler, and g++ is not found; install g++"
    )


def test_settled__scoring_that_cannot_be_compiled__refused_before_a_run_condenses(machine: Any):
    machine(())
    with pytest.raises(UserError, match=r"evaluate\.compile is always.*--evaluate\.compile never"):
        check_training(resolve("digits-dm").with_values(evaluate={"compile": "always"}), CPU)
    check_training(resolve("digits-dm"), CPU)


@pytest.mark.parametrize(
    ("compilers", "images", "said"),
    [(("g++",), 800, "compiled: the work"), ((), 800, "not compiled, which takes"), (("g++",), 1, None)],
)
def test_why_training_compiled__says_what_auto_decides_but_of_short_work(
    machine: Any, compilers: tuple[str, ...], images: int, said: str | None
):
    machine(compilers)
    found = why_training_compiled(resolve("cifar10-dm-ipc1"), (3, 32, 32), 10, images, CPU)
    assert found is None if said is None else str(found).startswith(said)
    asked = resolve("cifar10-dm-ipc1").with_values(evaluate={"compile": "never"})
    assert why_training_compiled(asked, (3, 32, 32), 10, images, CPU) is None


@pytest.mark.parametrize(
    ("shape", "images", "together"),
    [
        ((1, 8, 8), 20, 20),
        ((3, 32, 32), 100, 20),
        ((3, 32, 32), 800, 16),
        ((3, 64, 64), 800, 4),
        ((3, 128, 128), 800, 1),
    ],
)
def test_together__absent_on_a_gpu__as_many_as_there_is_room_for(
    machine: Any, shape: tuple[int, int, int], images: int, together: int
):
    settled = settle_training(resolve("cifar10-dm-ipc1"), shape, 10, images, CUDA)
    assert settled.evaluate.together == together
    assert settle_training(resolve("cifar10-dm-ipc1"), shape, 10, images, CPU).evaluate.together == 1


@pytest.mark.parametrize(
    ("asked", "capabilities", "precision"),
    [
        ("float32", {"avx512_bf16": True}, torch.float32),
        ("bfloat16", {}, torch.bfloat16),
        ("auto", {}, torch.float32),
        ("auto", {"avx2": True, "avx512_bf16": False}, torch.float32),
        ("auto", {"avx512_bf16": True}, torch.bfloat16),
        ("auto", {"amx_bf16": True}, torch.bfloat16),
        ("auto", {"bf16": True}, torch.bfloat16),
    ],
    ids=str,
)
def test_precision__auto_is_bfloat16_where_the_processor_has_it(
    machine: Any, asked: Any, capabilities: dict[str, bool], precision: torch.dtype
):
    machine(**capabilities)
    assert ComputeOptions(precision=asked).resolve(CPU, 0.0).precision == precision


@pytest.mark.parametrize(
    ("asked", "capabilities", "work", "tiled"),
    [
        ({}, AVX2, 2 * TILING, True),
        ({}, AVX2, 1.9 * TILING, False),  # too short for two layers
        ({}, {}, 2 * TILING, False),  # not measured there
        ({}, AVX2 | {"avx512_f": True}, 2 * TILING, False),
        ({}, AVX2 | {"bf16": True}, 2 * TILING, False),  # which bfloat16 takes
        ({"precision": "float32"}, AVX2 | {"bf16": True}, 2 * TILING, True),
        ({"precision": "float32"}, AVX2, 2 * TILING, True),
        ({"compile": "never"}, AVX2, 2 * TILING, False),
        ({"tiles": "never"}, AVX2, 2 * TILING, False),
        ({"tiles": "always"}, {}, 0.0, True),
        ({"tiles": "always", "compile": "auto"}, AVX2, 0.0, False),  # too short to be compiled
    ],
    ids=str,
)
def test_tiles__auto_where_it_is_known_to_be_faster_and_won_back(
    machine: Any, asked: dict[str, Any], capabilities: dict[str, bool], work: float, tiled: bool
):
    machine(**capabilities)
    options = ComputeOptions(**{"compile": "always"} | asked)
    resolved = options.resolve(CPU, work, tiles=2)
    assert resolved.tiled == tiled
    assert not options.resolve(CPU, work, tiles=0).tiled  # no convolution is wide enough
    if options.tiles != "always":
        assert not options.resolve(CPU, work).tiled
        assert not options.resolve(CUDA, work, tiles=2).tiled


@pytest.mark.parametrize(
    ("asked", "device", "tiles", "why"),
    [
        ({"compile": "never", "precision": "float32"}, CPU, 2, "evaluate.compile is never:"),
        ({}, CPU, 2, "evaluate.precision auto is bfloat16:"),
        ({"precision": "float32"}, CUDA, 2, "the device is cuda:"),
        ({"precision": "float32"}, CPU, None, "evaluate.together trains several at once:"),
        ({"precision": "bfloat16"}, CPU, 2, "evaluate.precision is bfloat16"),
        ({"compile": "never", "precision": "bfloat16"}, CPU, 2, "evaluate.compile is never, evaluate.precision is bfl"),
    ],
    ids=str,
)
def test_tiles__always_where_nothing_can_be_on_any__says_why(
    machine: Any, asked: Any, device: Any, tiles: Any, why: str
):
    machine(avx512_bf16=True)
    with pytest.raises(UserError, match=rf"evaluate.tiles is always, but {why}.* tiles are .* at auto"):
        ComputeOptions(**asked, tiles="always").resolve(device, 0.0, tiles=tiles, section="evaluate")


def test_resolve__unknown_words__names_the_key(machine: Any):
    for key in ("compile", "precision", "tiles"):
        with pytest.raises(UserError, match=f"evaluate.{key}"):
            ComputeOptions(**{key: "tiled"}).resolve(CPU, 0.0, section="evaluate")


@pytest.mark.parametrize("name", ["cifar10-lodm-ipc1", "cifar10-lodc-ipc1", "cifar10-lomtt-ipc1"])
def test_settle_compute__tiles_are_settled_and_stay(machine: Any, name: str):
    machine(**AVX2)
    recipe = settle_compute(resolve(name, {"compute": {"compile": "always"}}), (3, 32, 32), 10, 80, CPU, 1000)
    assert recipe["compute"]["precision"] == "float32"
    assert recipe["compute"]["tiles"] == "always"
    machine(avx512_bf16=True)  # another one goes on with it
    again = settle_compute(recipe, (3, 32, 32), 10, 80, CPU, 1000)
    assert again["compute"] == recipe["compute"]
    assert compute(again, (3, 32, 32), CPU).tiled


@pytest.mark.parametrize(
    ("asked", "tiled"),
    [
        ({}, True),
        ({"tiles": "never"}, False),
        ({"together": 2}, False),
        ({"repeats": 1, "epochs": 1}, False),  # too short
        ({"repeats": 1, "epochs": 1, "tiles": "always", "compile": "always"}, True),
        ({"repeats": 1, "epochs": 1, "tiles": "always"}, False),  # too short to be compiled
    ],
    ids=str,
)
def test_settle_training__on_tiles_where_compiled_one_by_one(machine: Any, asked: dict[str, Any], tiled: bool):
    machine(**AVX2)
    recipe = resolve("cifar10-dm-ipc1", {"evaluate": asked})
    check_training(recipe, CPU)
    found = settle_training(recipe, (3, 32, 32), 10, 10, CPU)
    assert found.evaluate.tiles == ("always" if tiled else "never")
    assert training_way(found)["compute"].tiled == tiled


def test_why__says_that_convolutions_go_on_tiles(machine: Any):
    machine(**AVX2)
    for tiles, said in (
        ("auto", "win the compilation back, wide convolutions on tiles"),
        ("never", "compilation back"),
    ):
        recipe = resolve("cifar10-dm-ipc1", {"compute": {"tiles": tiles}, "evaluate": {"tiles": tiles}})
        for why in (why_compiled, why_training_compiled):
            assert str(why(recipe, (3, 32, 32), 10, 80, CPU)).endswith(said)


@pytest.mark.parametrize(("name", "times"), [("mnist-lodm-ipc1", 1), ("mnist-lodc-ipc1", 3), ("mnist-lomtt-ipc1", 3)])
def test_settle_compute__gradients_of_gradients_on_tiles_from_more_work_on(machine: Any, name: str, times: int):
    """For they take longer to be compiled so; of two layers each."""
    machine(**AVX2)
    shape, classes, images = (1, 28, 28), 10, 70
    each = condensing_operations(resolve(name, {"condense": {"episodes": 1}}), shape, classes, images)
    enough = math.ceil(2 * times * TILING / each)
    for episodes, tiles in ((enough - 1, "never"), (enough, "always")):
        recipe = resolve(name, {"compute": {"compile": "always"}, "condense": {"episodes": episodes}})
        assert settle_compute(recipe, shape, classes, images, CPU, 1000)["compute"]["tiles"] == tiles


def test_training_compute__on_tiles_where_the_recipe_does_not_forbid_it(machine: Any):
    machine(**AVX2)
    shape = (3, 32, 32)
    for asked, tiled in (({}, True), ({"tiles": "never"}, False), ({"compile": "never"}, False)):
        recipe = resolve("cifar10-lomtt-ipc1", {"compute": asked})
        found = training_compute(recipe["compute"], outline("convnet", shape, 10), shape, 50_000_000, CPU)
        assert (found.tiled, found.precision) == (tiled, torch.float32)


@pytest.mark.parametrize(
    ("asked", "count", "settled"),
    [
        ({}, 100, "tiles"),
        ({}, 1, "never"),
        ({"tiles": "never"}, 100, "always"),
        ({"compile": "never"}, 100, "never"),
        ({"compile": "never", "experts": "always"}, 1, "always"),
        ({"experts": "never"}, 100, "never"),
    ],
    ids=str,
)
def test_settle_compute__experts__by_their_own_work_once(machine: Any, asked: dict[str, str], count: int, settled: str):
    """Of one episode condensing is not worth it, of a thousand it is; experts do not depend on it."""
    machine(**AVX2)
    shape = (3, 32, 32)
    for episodes in (1, 1000):
        changes = {"compute": asked, "condense": {"episodes": episodes}, "experts": {"count": count, "epochs": 5}}
        changes |= {"objective": {"max_start_epoch": 1, "expert_epochs": 1}}
        chosen = settle_compute(resolve("cifar10-lomtt-ipc1", changes), shape, 10, 80, CPU, 5_000)
        assert chosen["compute"]["experts"] == settled
        assert settle_compute(chosen, shape, 10, 80, CPU, 1)["compute"]["experts"] == settled
        how = expert_compute(chosen, shape, 10, 1, CPU)
        assert (how.compiled, how.tiled) == (settled != "never", settled == "tiles")
    assert settle_compute(resolve("cifar10-dm-ipc1"), shape, 10, 10, CPU, 50_000)["compute"]["experts"] == "auto"


def test_expert_compute__cannot_be_as_asked__names_its_own_key(machine: Any):
    recipe = resolve("cifar10-lomtt-ipc1", {"compute": {"compile": "never", "experts": "tiles"}})
    with pytest.raises(
        UserError, match=r"compute\.experts is tiles, which are for a CPU, not cuda: --compute\.experts al"
    ):
        expert_compute(recipe, (3, 32, 32), 10, 1000, CUDA)
    machine(())
    with pytest.raises(UserError, match=r"compute\.experts is tiles, but .*or do without: --compute\.experts never"):
        expert_compute(recipe, (3, 32, 32), 10, 1000, CPU)
    with pytest.raises(UserError, match=r"compute\.experts needs an objective that matches experts: mtt"):
        resolve("cifar10-dm-ipc1", {"compute": {"experts": "always"}})
    with pytest.raises(UserError, match=r"unknown compute\.experts 'tile'"):
        ComputeOptions(experts="tile").resolve(CPU, 0.0)  # type: ignore[arg-type]


def test_check_training__tiles_always_where_nothing_can_be__refused(machine: Any):
    for asked in ({"compile": "never"}, {"together": 2}, {"precision": "bfloat16"}):
        with pytest.raises(UserError, match=r"evaluate\.tiles is always, but"):
            check_training(resolve("cifar10-dm-ipc1", {"evaluate": {"tiles": "always"} | asked}), CPU)


@pytest.mark.parametrize("chunk", [0, -64])
def test_chunk__below_one_is_refused(chunk: int):
    with pytest.raises(UserError, match=rf"compute\.chunk must be at least 1, got {chunk}"):
        ComputeOptions(chunk=chunk).resolve(CPU, 0.0)


@pytest.mark.parametrize(
    ("device", "pixels", "chunk"),
    [
        ("cpu", 32 * 32, 64),
        ("cpu", 8 * 8, 64),
        ("cuda", 32 * 32, 4096),
        ("cuda", 128 * 128, 256),
        ("cuda", 512 * 512, 64),
    ],
)
def test_chunk__absent__few_on_a_cpu_and_many_on_a_gpu(machine: Any, device: str, pixels: int, chunk: int):
    asked = ComputeOptions(compile="never", precision="float32")
    assert asked.resolve(torch.device(device), 0.0, pixels).chunk == chunk


@pytest.mark.parametrize(
    ("asked", "side", "precision", "at_once"),
    [
        ({}, 32, "float32", 32),
        ({}, 32, "bfloat16", 64),
        ({}, 8, "float32", 64),
        ({}, 64, "bfloat16", 16),
        ({}, 128, "float32", 2),
        ({}, 512, "float32", 1),
        ({"chunk": 16}, 32, "float32", 16),
        ({"chunk": 4000}, 32, "float32", 32),
        ({"compile": "never"}, 32, "float32", 64),
    ],
)
def test_pieces__compiled_on_a_cpu__suit_its_caches_within_a_chunk(
    machine: Any, asked: dict[str, Any], side: int, precision: Any, at_once: int
):
    options = ComputeOptions(**({"compile": "always", "precision": precision} | asked))
    assert options.resolve(CPU, 0.0, side * side).at_once == at_once


def test_pieces__on_a_gpu__are_chunks(machine: Any):
    assert ComputeOptions("always", "float32").resolve(CUDA, 0.0, 32 * 32).at_once == 4096


@pytest.mark.parametrize(
    ("count", "chunk", "number"),
    [(0, 64, 1), (1, 64, 1), (64, 64, 1), (65, 64, 2), (80, 32, 4), (256, 41, 8), (2560, 64, 40), (97, 32, 4)],
)
def test_parts__equal_ones_where_they_are_not_many_more(count: int, chunk: int, number: int):
    assert parts(count, chunk) == number
    pieces = Compute(chunk=chunk).pieces(torch.arange(count))
    assert torch.equal(torch.cat(pieces), torch.arange(count))
    assert max(map(len, pieces)) <= chunk


def test_chunk__is_kept(machine: Any):
    assert ComputeOptions(chunk=1).resolve(CPU, 0.0).chunk == 1
    assert ComputeOptions(chunk=100).resolve(CPU, 1e30) == Compute(True, torch.float32, 100, 32)


@pytest.mark.parametrize("options", [{"precision": "float16"}, {"compile": "yes"}], ids=str)
def test_unknown_name__is_refused(options: dict[str, Any]):
    with pytest.raises(UserError, match="unknown"):
        ComputeOptions(**options).resolve(CPU, 1e30)


def test_program__eager_is_the_function_itself():
    assert Compute().program(len) is len


def test_program__compiled_goes_through_torch_compile_for_fixed_shapes(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("torch.compile", lambda function, **options: asked.append((function, options)) or max)
    assert Compute(compiled=True).program(len) is max
    assert asked == [(len, {"dynamic": False, "fullgraph": True})]


def test_memory_format__is_channels_last_for_compiled_programs_only():
    assert Compute(compiled=True).memory_format == torch.channels_last
    assert Compute(compiled=False).memory_format == torch.contiguous_format


def test_defaults__are_eager_float32():
    assert Compute() == Compute(False, torch.float32, 64)
    assert ComputeOptions() == ComputeOptions("auto", "auto", "auto", None)


def test_why__says_what_auto_decides(machine: Any):
    machine(("g++",))
    assert "too short" in (ComputeOptions().why(CPU, 0.5 * WORTH) or "")
    assert (ComputeOptions().why(CPU, WORTH) or "").startswith("compiled")
    machine(())
    assert "install g++" in (ComputeOptions().why(CPU, WORTH) or "")
    assert ComputeOptions(compile="never").why(CPU, WORTH) is None
