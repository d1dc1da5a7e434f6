"""Operations that an objective asks for beside its programs: on a GPU each is a launch, and takes the host time."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from condensate import Compute


class Launches(TorchDispatchMode):
    """Counts operations, views and those within programs apart."""

    def __init__(self) -> None:
        super().__init__()
        self.beside, self.programs, self._within = 0, 0, False

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        self.beside += not self._within and not function.is_view
        return function(*given, **(named or {}))

    def compute(self, **options: Any) -> Compute:
        """A way to compute whose programs are told apart."""
        launches = self

        class Watched(Compute):
            def program(self, function: Callable[..., Any]) -> Callable[..., Any]:
                def run(*given: Any) -> Any:
                    launches.programs, launches._within = launches.programs + 1, True
                    try:
                        return function(*given)
                    finally:
                        launches._within = False

                return run

        return Watched(**options)
