"""``python -m fs3.storageserver`` is ``fs3-storageserver``."""

import sys

from .app import main

sys.exit(main())
