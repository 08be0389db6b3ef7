"""The packaged model's decoder beside transformers, for docs/performance.md: `sensorium bench --transformers`."""

import sys

from sensorium.cli import main

sys.exit(main(["bench", "--transformers", *sys.argv[1:]]))
