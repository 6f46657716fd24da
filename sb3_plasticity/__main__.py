"""``python -m sb3_plasticity``: the command ``sb3-plasticity``."""

import sys

from sb3_plasticity.cli import main

if __name__ == "__main__":
    sys.exit(main())
