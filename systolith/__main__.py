"""`python -m systolith` and the command `systolith`."""

import sys

from systolith.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
