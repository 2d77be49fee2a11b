"""``python -m scst.cli``: the command ``scst``."""

import sys

from scst.cli.console import main

if __name__ == "__main__":
    sys.exit(main())
