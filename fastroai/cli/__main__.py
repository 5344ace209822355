"""`python -m fastroai.cli`."""

import sys

from . import main

sys.exit(main())
