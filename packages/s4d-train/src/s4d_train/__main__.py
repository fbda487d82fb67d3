"""`python -m s4d_train`, the form that torchrun takes: `torchrun -m s4d_train fit ...`."""

import sys

from .cli import main

sys.exit(main())
