"""A client that reads and writes on and on stays as large as it was."""

from __future__ import annotations

import subprocess
import sys

import pytest
from running_cluster import RunningCluster

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(600)]

GROWTH_BYTES_MAX = 64 << 20
# In a process of its own: what pytest has allocated and freed would hide what a client keeps.
READER = """
import mmap, os, random, sys
import fs3

MIB = 1 << 20
FILE_BYTES = 64 * MIB


def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * mmap.PAGESIZE


chance = random.Random(1)
buffer = memoryview(bytearray(MIB))
with fs3.connect(sys.argv[1]) as client:
    client.write("/memory", chance.randbytes(MIB) * (FILE_BYTES // MIB))
    with client.open("/memory", "rb+", buffering=0) as file:
        before = resident_bytes()
        for turn in range(int(sys.argv[2])):
            if turn % 4 == 0:
                file.readinto_at(buffer, chance.randrange(FILE_BYTES - MIB))
            elif turn % 4 == 1:
                client.read_batch([(file, chance.randrange(FILE_BYTES - MIB), buffer)])
            elif not file.readinto(buffer):
                file.seek(0)
            if turn % 40 == 0:
                file.pwrite(buffer[: 300_000], chance.randrange(FILE_BYTES - MIB))
        print(resident_bytes() - before)
"""


def test_ten_thousand_reads_of_a_mib_do_not_make_a_client_grow(cluster: RunningCluster):
    command = [sys.executable, "-c", READER, str(cluster.dir), "10000"]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < GROWTH_BYTES_MAX
