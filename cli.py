"""Run ``rga-reid`` from a checkout: ``python cli.py COMMAND ...``."""

import sys

from rga_reid.commands import main

if __name__ == "__main__":
    sys.exit(main())
