"""``python -m contrastive``: the same as the ``contrastive`` command."""

import sys

from contrastive.cli import main

if __name__ == "__main__":
    sys.exit(main())
