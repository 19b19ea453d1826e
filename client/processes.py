"""Processes named on disk: who they are, are they alive, stop them and nobody else.

A pid alone names nobody: it is reused. A record therefore carries the boot id and the start time
from /proc/PID/stat, and signals go through a pidfd that was opened before the start time was
compared, so that the process which is signalled is the one which was recorded.

Invariant: a record is written by the process itself before it does anything else (``spawn``, or
first thing in its own main). So whoever dies in between, starter or started, no daemon runs without
its record.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fs3.errors import Code, Fs3Error

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STATE_FIELD, _START_FIELD = 0, 19  # of /proc/PID/stat, counted after the command's name


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process that once ran, and perhaps still does."""

    pid: int
    start_ticks: int  # clock ticks from boot to its start
    boot_id: str

    @contextmanager
    def _pidfd(self) -> Iterator[int | None]:
        """A descriptor of this very process, or None if it is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            yield descriptor if _running_since(self.pid) == self.start_ticks else None
        finally:
            os.close(descriptor)

    def is_alive(self) -> bool:
        """Whether it still runs; one that only waits to be reaped does not."""
        return self.boot_id == _boot_id() and _running_since(self.pid) == self.start_ticks

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; False if the process is gone. Fs3Error ACCESS if it is another user's."""
        if self.boot_id != _boot_id():
            return False
        with self._pidfd() as descriptor:
            if descriptor is None:
                return False
            try:
                signal.pidfd_send_signal(descriptor, number)
            except ProcessLookupError:
                return False
            except PermissionError as error:
                what = f"process {self.pid} is another user's; only that one and root may end it"
                raise Fs3Error(Code.ACCESS, what) from error
            return True

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait until it has ended; False if it still runs after ``timeout_s``."""
        if self.boot_id != _boot_id():
            return True
        with self._pidfd() as descriptor:
            if descriptor is None:
                return True
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            return bool(poller.poll(max(0.0, timeout_s) * 1000))

    def age_ms(self) -> int:
        """How long ago it started, to the clock tick."""
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        return now_ms - self.start_ticks * 1000 // ticks_per_s

    def command_line(self) -> str:
        """What it was started as, for messages; empty if it is gone."""
        try:
            raw = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return ""
        return raw.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _running_since(pid: int) -> int | None:
    """Start time of ``pid`` in clock ticks; None if there is none, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name may hold spaces and parentheses; what follows the last one is plain.
    fields = stat.rpartition(")")[2].split()
    return None if fields[_STATE_FIELD] in "ZX" else int(fields[_START_FIELD])


def this_process() -> ProcessRecord:
    """The record of the caller."""
    start = _running_since(os.getpid())
    assert start is not None, "a running process has an entry in /proc"
    return ProcessRecord(os.getpid(), start, _boot_id())


def write_record(path: Path) -> None:
    """Record the calling process in ``path``, atomically."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        scratch.write_text(json.dumps(asdict(this_process())) + "\n")
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)  # no space left, perhaps: who tries again has another pid
        raise


def read_record(path: Path) -> ProcessRecord | None:
    """The process recorded in ``path``; None if there is no (legible) record."""
    try:
        fields = json.loads(path.read_text())
        return ProcessRecord(int(fields["pid"]), int(fields["start_ticks"]), fields["boot_id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def living(path: Path) -> ProcessRecord | None:
    """The process recorded in ``path``, if it runs."""
    record = read_record(path)
    return record if record is not None and record.is_alive() else None


def spawn(
    command: Sequence[str],
    *,
    record: Path,
    log: Path,
    environ: Mapping[str, str],
    directory: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, its output appended to ``log``.

    It writes ``record`` (an absolute path) before it runs ``command``. The caller must have a
    single thread: Python runs between fork and exec. Locks that the caller holds by ``flock`` are
    shared by the child until it has written the record and execs.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=directory,
            env=dict(environ),
            start_new_session=True,
            preexec_fn=lambda: _become(record),
        )


def _become(record: Path) -> None:
    """In the child, before it execs."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the starter may wait for signals with a mask
    write_record(record)


def stop(records: Sequence[Path], grace_s: float) -> list[str]:
    """End the processes recorded in these files, all at once, and remove the files.

    SIGTERM, up to ``grace_s`` together, then SIGKILL. Returns the commands that had to be killed.
    Raises TimeoutError if one survives even that (it hangs in the kernel).
    """
    processes = {path: process for path in records if (process := living(path)) is not None}
    for process in processes.values():
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)  # a stopped process would never see the SIGTERM
    deadline = time.monotonic() + grace_s
    killed = []
    for process in processes.values():
        if process.wait_gone(deadline - time.monotonic()):
            continue
        killed.append(process.command_line())
        process.signal(signal.SIGKILL)
        if not process.wait_gone(10):
            raise TimeoutError(f"process {process.pid} does not end, not even by SIGKILL")
    for path in records:
        path.unlink(missing_ok=True)
    return killed


_READY = b"\0"


def detach(record: Path, log: Path) -> Callable[[], None]:
    """Go on in a child process of a session of its own, recorded, its output appended to ``log``.

    The caller's process stays until the child calls what is returned here, then exits with 0; or
    until the child has ended without having done so, then with 1, saying what the child logged
    last. Call it before any thread is started.
    """
    reader, writer = os.pipe()
    log_start_bytes = log.stat().st_size if log.exists() else 0
    child = os.fork()
    if child:
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        if answer != _READY:
            # Its descriptors are closed before it is gone: whoever starts another would meet it.
            with suppress(ChildProcessError):  # none to be waited for if SIGCHLD is ignored
                os.waitpid(child, 0)
            sys.stderr.write(_tail(log, log_start_bytes))
            sys.stderr.flush()
        os._exit(0 if answer == _READY else 1)
    os.close(reader)
    os.setsid()
    write_record(record)
    with log.open("ab") as output, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)

    def ready() -> None:
        os.write(writer, _READY)
        os.close(writer)

    return ready


def _tail(log: Path, start_bytes: int) -> str:
    """What was logged since ``start_bytes``, the last few KiB of it."""
    with log.open("rb") as file:
        file.seek(max(start_bytes, file.seek(0, os.SEEK_END) - 4096))
        return file.read().decode(errors="replace")
