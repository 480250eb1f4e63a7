"""`python -m gradoscope` is the same as `gradoscope`."""

import sys

from gradoscope.cli import main

if __name__ == "__main__":
    sys.exit(main())
