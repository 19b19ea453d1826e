"""``python -m tests.sim --seeds A:B`` runs a range; ``--seed N --trace`` tells one story.

``--mutants`` says which seed finds each planted bug.
"""

from __future__ import annotations

import argparse
import sys
import time
from multiprocessing import Pool

from .mutants import MUTANTS, first_seed
from .simulation import Result, simulate


def main() -> int:
    """0 if every seed kept every promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", default="0:100", help="a range A:B, B not included")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--trace", action="store_true", help="tell the story of the seed")
    parser.add_argument("--mutants", action="store_true", help="find the planted bugs")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    if chosen.mutants:
        return _find(chosen.processes)
    if chosen.seed is not None:
        result = simulate(chosen.seed, tell=chosen.trace)
        for line in result.story:
            print(line)
        return _report([result])
    first, last = (int(part) for part in chosen.seeds.split(":"))
    began = time.perf_counter()
    with Pool(chosen.processes) as pool:
        results = pool.imap_unordered(simulate, range(first, last), chunksize=8)
        status = _report(results)
    print(f"{last - first} seeds in {time.perf_counter() - began:.0f} s")
    return status


def _find(processes: int) -> int:
    with Pool(processes) as pool:
        found = dict(zip(MUTANTS, pool.imap(first_seed, MUTANTS), strict=True))
    for name, seed in found.items():
        print(f'    "{name}": {seed},')
    return 1 if None in found.values() else 0


def _report(results) -> int:
    failed = events = operations = undecided = 0
    for result in results:
        events += result.events
        operations += result.operations
        undecided += result.undecided
        failed += _tell_problem(result)
    print(f"{failed} failed; {operations} operations, {events} events, {undecided} undecided")
    return 1 if failed else 0


def _tell_problem(result: Result) -> bool:
    if result.problem is not None:
        print(f"seed {result.seed}: {result.problem}", flush=True)
    return result.problem is not None


if __name__ == "__main__":
    sys.exit(main())
