"""python -m minippo: see `minippo.cli`."""

import sys

from minippo.cli import main

sys.exit(main())
