"""``python cli.py COMMAND ...`` from a checkout: the same program as the installed ``rga-reid``."""

import sys

from rga_reid.commands import main

if __name__ == "__main__":
    sys.exit(main())
