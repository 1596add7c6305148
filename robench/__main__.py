"""``python -m robench``: the command line."""

import os
import sys

# Python puts the working folder first; a file there must not stand in for an installed module.
if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    sys.path.append(sys.path.pop(0))

from robench.cli.main import main

if __name__ == "__main__":
    main()
