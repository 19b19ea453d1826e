"""What a request of a client has under way: the memory that it has lent, and where replies go."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fs3 import dataplane
from fs3.frames import Buffer
from fs3.transport.rdma.loans import Loan

Expected = Callable[[Buffer], bytes]
"""Of a request's head, the head of a complete reply to it: where would its body go?"""


def _expected_reads(head: Buffer) -> bytes:
    items = np.frombuffer(head, dataplane.READ_ITEM)
    results = np.zeros(len(items), dataplane.READ_RESULT)
    results["length"] = items["length"]
    return results.tobytes()


EXPECTED: dict[int, Expected] = {dataplane.READ_BATCH: _expected_reads}


class Flight(NamedTuple):
    """Memory that a request has lent to the server until it is answered."""

    body: Loan | None
    room: Loan | None

    def close(self) -> None:
        for loan in self:
            if loan is not None:
                loan.close()
