"""The names that users import, and what importing does."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import condensate


def test_names__all_are_there_and_no_more_is_promised():
    public = [name for name in vars(condensate) if not name.startswith("_")]
    assert sorted(condensate.__all__) == condensate.__all__
    assert all(hasattr(condensate, name) for name in condensate.__all__)
    modules = {name for name in public if type(vars(condensate)[name]).__name__ == "module"}
    assert set(public) - modules == set(condensate.__all__)


def test_names__every_public_object_says_what_it_is():
    assert all((getattr(condensate, name).__doc__ or "").strip() for name in condensate.__all__)


def test_import__changes_no_environment_seed_threads_or_flags():
    program = """
import os, random, torch, numpy
def state():
    return (dict(os.environ), random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist(),
            torch.get_num_threads(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision())
before = state()
import condensate
assert state() == before
"""
    subprocess.run([sys.executable, "-c", program], check=True, env=dict(os.environ))


def test_import__loads_no_data_library():
    program = "import sys, condensate.cli; assert not {'datasets', 'pyarrow', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_import__looks_for_no_garbage_meanwhile__nor_do_commands_later():
    program = """
import gc
found = []  # by each pass
gc.callbacks.append(lambda phase, about: found.append(about["collected"]) if phase == "stop" else None)
import condensate, condensate.__main__
assert len(found) < 25, f"{len(found)} passes, where PyTorch alone has 400"
assert max(found, default=0) < 1000, "what PyTorch makes was looked through"
assert gc.isenabled() and not gc.get_freeze_count()
condensate.__main__.cli.main = lambda: gc.get_freeze_count()
assert condensate.__main__.main() > 100_000
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_messages__to_install_what_is_missing__name_what_the_extras_name():
    sources = Path(condensate.__file__).parent.rglob("*.py")
    said = {wanted for file in sources for wanted in re.findall(r"pip install '([^']+)'", file.read_text())}
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert said == {*project["optional-dependencies"]["hub"], *project["optional-dependencies"]["privacy"]}
