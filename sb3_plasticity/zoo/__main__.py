"""``python -m sb3_plasticity.zoo <train|enjoy|plots|record_video|benchmark> ...``."""

import sys

from sb3_plasticity.zoo.commands import ZOO, main

if __name__ == "__main__":
    sys.exit(main(ZOO, "python -m sb3_plasticity.zoo"))
