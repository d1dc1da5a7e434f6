"""The command line as ``python -m condensate``, which is how torchrun starts it."""

import sys

from condensate.cli import main

sys.exit(main())
