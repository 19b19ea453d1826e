"""``python -m tests.chaos [--minutes M] [--seed N]``: a storm of faults, as long as you like."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the simulator's checker is in tests/sim

from .namespaces import why_not
from .networked_cluster import NetworkedCluster
from .storm import Storm


def main() -> int:
    """0 if every promise was kept; a broken one ends it at once, with the daemons' logs."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    chosen = parser.parse_args()
    if reason := why_not():
        print(reason)
        return 2
    until_s = time.monotonic() + chosen.minutes * 60
    print(f"seed {chosen.seed}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="fs3-chaos-") as directory,
        NetworkedCluster(Path(directory) / "data") as cluster,
    ):
        mountpoints = cluster.mount("client-2"), cluster.mount("client-3")
        storm, number = Storm(cluster, mountpoints, chosen.seed), 0
        while time.monotonic() < until_s:
            number += 1
            print(f"round {number}: {storm.round(number)}", flush=True)
    print(f"{number} rounds, every promise kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
