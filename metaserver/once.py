"""At most once: a repeated request gets the first answer.

A client that lost an answer asks again with the same request id. The answer was stored in the
transaction that did the work, so either both are there or neither. A request that was refused
changed nothing and stored nothing: it is simply judged again.
"""

from __future__ import annotations

from collections.abc import Callable

from . import keys, records
from .kv.interface import Transaction

PRUNE_REQUESTS_MAX = 1000  # rows looked at in one transaction


def once(
    txn: Transaction, client: int, request: int, now_ns: int, fn: Callable[[], bytes]
) -> bytes:
    """``fn()``, unless this request was answered before: then that answer. ``request`` 0: always.

    ``fn`` works through ``txn`` and returns its answer encoded.
    """
    if request == 0:
        return fn()
    row = keys.of(keys.REQUEST, client, request)
    known = txn.get(row)
    if known is not None:
        return records.decode_answer(known)[1]
    answer = fn()
    txn.set(row, records.encode_answer(now_ns, answer))
    return answer


def prune_requests(
    txn: Transaction, before_ns: int, after: bytes = b"", limit: int = PRUNE_REQUESTS_MAX
) -> bytes:
    """Forget answers given before ``before_ns``, ``limit`` rows at a time.

    Returns where to go on (hand it in as ``after``); b"" at the end of a round.
    """
    begin, end = keys.range_of(keys.REQUEST)
    # An answer is written once, so nothing seen here can change under this transaction.
    rows = txn.range(after or begin, end, limit, snapshot=True)
    for key, value in rows:
        if records.decode_answer(value)[0] < before_ns:
            txn.clear(key)
    return rows[-1][0] + b"\0" if len(rows) == limit else b""
