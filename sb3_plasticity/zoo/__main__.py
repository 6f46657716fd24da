"""``python -m sb3_plasticity.zoo <train|enjoy|plots|record_video|benchmark> ...``."""

import sys

from sb3_plasticity.cli import main

if __name__ == "__main__":
    sys.exit(main(zoo_only=True))
