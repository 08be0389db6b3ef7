"""The engine's own cost per step, for docs/performance.md: `sensorium bench --engine-step`."""

import sys

from sensorium.cli import main

sys.exit(main(["bench", "--engine-step", *sys.argv[1:]]))
