"""``python -m robustode``."""

import sys

from .bench.cli import main

sys.exit(main())
