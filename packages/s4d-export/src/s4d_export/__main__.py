"""``python -m s4d_export`` is ``s4d-export``."""

import sys

from .cli.program import main

sys.exit(main())
