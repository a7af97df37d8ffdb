"""`python launch/dev_cluster ...`, which needs nothing installed, and `python -m dev_cluster ...`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this folder there, or the current one; the package is found in the folder above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from dev_cluster.command import main

    sys.exit(main(sys.argv[1:]))
