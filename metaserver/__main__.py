"""``python -m fs3.metaserver`` is the command ``fs3-metaserver``."""

from __future__ import annotations

import sys

from .app import main

sys.exit(main())
