"""``python -m restorevar`` is the ``restorevar`` command."""

import sys

from restorevar.cli import main

if __name__ == "__main__":
    sys.exit(main())
