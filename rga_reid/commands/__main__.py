"""``python -m rga_reid.commands COMMAND ...``: the command line with no script beside it."""

import sys

from rga_reid.commands import main

if __name__ == "__main__":
    sys.exit(main())
