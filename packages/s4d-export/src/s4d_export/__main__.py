"""``python -m s4d_export`` is ``s4d-export``."""

import sys

from .cli import main

sys.exit(main())
