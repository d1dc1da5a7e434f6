"""Our ways of a piece of work in a process of their own, which keeps freed memory as our programs do.

Published loops leave memory to the C library as it comes, so both cannot be measured in one process; they take turns.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from subprocess import PIPE, Popen
from typing import Any

import torch

from benchmarks.measure import Way, Work, peak_bytes, shares, show_fused
from benchmarks.works import WORKS, Bench
from condensate.allocation import keep_freed_memory

ANSWER = "answer: "


class Apart:
    """That process.

    Args:
        name: Of the piece of work.
        bench: What all pieces of work share.
        profiled: Whether it will be asked for shares.
    """

    def __init__(self, name: str, bench: Bench, profiled: bool = False) -> None:
        given = [name, str(bench.device), bench.data, bench.quick, profiled]
        command = [sys.executable, "-m", "benchmarks.apart", json.dumps(given)]
        self.process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)
        self._answered("our ways")

    def __enter__(self) -> "Apart":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def ask(self, what: str, way: str, *given: Any) -> Any:
        """Have one way run, or looked at; what was found.

        Raises:
            RuntimeError: The process has ended.
        """
        print(json.dumps([what, way, *given]), file=self.process.stdin, flush=True)
        return self._answered(way)

    def _answered(self, way: str) -> Any:
        """What it says next."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        self.process.communicate()  # closes what led there
        raise RuntimeError(f"the process that measures {way} has ended")

    def ways(self, work: Work) -> Work:
        """The work with our ways done there, the published ones here."""

        def there(name: str, way: Way) -> Way:
            return replace(way, run=partial(self.ask, "run", name), look=partial(self.look, name))

        ours = {name: there(name, way) for name, way in work.ways.items() if not name.startswith("published")}
        return replace(work, ways=work.ways | ours)

    def look(self, way: str, what: str, *given: Any) -> Any:
        """See ``measure.Way``."""
        return self.ask(what, way, *given)


def answer(work: Work, device: torch.device, asked: Sequence[Any]) -> Any:
    """What the process does when it is asked."""
    what, way, *given = asked
    run = work.ways[way].run
    if what == "run":
        run()
        return None
    return peak_bytes(run, device, kept=True) if what == "peak" else shares(run, device, *given)


def main() -> None:
    """Answer what is asked, line by line."""
    name, device, data, quick, profiled = json.loads(sys.argv[1])
    keep_freed_memory()
    if profiled:
        show_fused()
    bench = Bench(torch.device(device), data, quick)
    work = WORKS[name](bench)
    print(f"{ANSWER}null", flush=True)  # all is at hand
    for line in sys.stdin:
        print(ANSWER + json.dumps(answer(work, bench.device, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
