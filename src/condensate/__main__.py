"""The command line as a program: ``condensate``, or ``python -m condensate``, which is how torchrun starts it."""

import gc
import sys

from condensate.collecting import importing

with importing():
    from condensate import cli


def main() -> int:
    """Run the command line. What was imported is kept out of all later passes of the garbage collector."""
    gc.freeze()
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
