"""Where the command `emosteer` begins: what ends it while it still imports is no failure either."""

from __future__ import annotations

import sys

from emosteer.endings import INTERRUPTED


def main() -> None:
    """Entry point of the command."""
    try:
        from emosteer.main import main as run
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
