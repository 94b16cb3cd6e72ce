"""``python -m robustode``."""

import sys

# Absolute, since a type checker that is run in this folder may read this file as a module of its own.
from robustode.bench.cli.main import main

sys.exit(main())
