"""`python -m prewarm`, the same as `prewarm`."""

import sys

from prewarm.cli import main

if __name__ == "__main__":
    sys.exit(main())
