"""`python -m systolith` and the command `systolith`."""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code; an interrupt while the parts are loaded is one like any other."""
    try:
        from systolith import cli
    except KeyboardInterrupt:
        return 130
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
