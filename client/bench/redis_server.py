"""A Redis of the bench's own, beside fs3: the Debian package's server, redis-py as its client."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fs3.client.ports import PortReservation
from fs3.errors import Code, Fs3Error

_START_S = 10.0


@contextmanager
def redis_server() -> Iterator[Any]:
    """A client of a server in memory, without persistence; both end with the block.

    Fs3Error NOT_FOUND if the server or its Python client is not installed.
    """
    program = shutil.which("redis-server")
    try:
        import redis
    except ImportError:
        detail = 'redis-py is not installed: pip install "fs3[bench]"'
        raise Fs3Error(Code.NOT_FOUND, detail) from None
    if program is None:
        detail = "redis-server is not installed: apt-get install redis-server"
        raise Fs3Error(Code.NOT_FOUND, detail)
    reservation = PortReservation(1)
    (port,) = reservation.ports
    reservation.release()
    with tempfile.TemporaryDirectory() as directory:
        flags = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        server = subprocess.Popen([program, *flags, "--dir", directory], stdout=subprocess.DEVNULL)
        try:
            client = redis.Redis(port=port)
            _wait(client, redis.RedisError)
            yield client
            client.close()
        finally:
            server.terminate()
            server.wait()


def _wait(client: Any, error: type[Exception]) -> None:  # noqa: ANN401
    deadline_s = time.monotonic() + _START_S
    while True:
        try:
            client.ping()
        except error as failure:
            if time.monotonic() > deadline_s:
                detail = f"redis-server does not answer: {failure}"
                raise Fs3Error(Code.UNREACHABLE, detail) from failure
            time.sleep(0.05)
        else:
            return
