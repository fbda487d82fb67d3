"""``python -m s4d_runtime`` is ``s4d-run``."""

import sys

from .cli import main

sys.exit(main())
