"""The command line as a program: ``condensate``, or ``python -m condensate``, which is how torchrun starts it."""

import gc
import sys

from condensate.collecting import nothing_collected

with nothing_collected():
    from condensate.cli import main
gc.freeze()  # what was imported is looked through for garbage no more, nor when the process ends

if __name__ == "__main__":
    sys.exit(main())
