"""``python -m rga_reid.commands COMMAND ...``: the command line without an installed script."""

import sys

from rga_reid.commands import main

if __name__ == "__main__":
    sys.exit(main())
