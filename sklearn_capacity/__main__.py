"""Run the command line: ``python -m sklearn_capacity COMMAND``, the same as ``sklearn-capacity COMMAND``."""

import sys

from sklearn_capacity.command_line import main

if __name__ == "__main__":
    sys.exit(main())
