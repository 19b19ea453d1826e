"""For all tests: how long an example takes decides nothing, since test machines are loaded.

Nor does gRPC in a process that forks: its handlers, which would prepare the child for calls that no
child of a test makes, run in whatever state another test has left it.
"""

from __future__ import annotations

import importlib.util
import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# The environments of other projects (tests/adapters) have no hypothesis.
if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "fs3",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
        derandomize=bool(os.environ.get("CI")),  # the same examples for the same code
    )
    settings.load_profile("fs3")
