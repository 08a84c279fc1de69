"""What the doctor starts its child processes with: ``python -m itwinai.cli.doctor``."""

import sys

from itwinai.cli.doctor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
