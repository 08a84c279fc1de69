"""Run ``python -m itwinai_drought COMMAND ...``, which is the same as ``itwinai drought COMMAND ...``."""

import sys

from itwinai_drought.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
