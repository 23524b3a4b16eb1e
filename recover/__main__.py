"""``python -m recover``."""

import sys

from recover.cli import main

if __name__ == "__main__":
    sys.exit(main())
