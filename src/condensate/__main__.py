"""The command line as a program: ``condensate``, or ``python -m condensate``, which is how torchrun starts it."""

import gc
import sys

from condensate.allocation import keep_freed_memory
from condensate.collecting import importing

with importing():
    from condensate import cli


def main() -> int:
    """Run the command line, with settings that a whole process has.

    What was imported is kept out of all later passes of the garbage collector, and freed memory for what comes next.
    """
    gc.freeze()
    keep_freed_memory()
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
