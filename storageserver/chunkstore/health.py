"""Whether the disk still works. One error ends a store: what follows it could not be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fs3.errors import Code, Fs3Error


class Health:
    """``failed`` is None, or for good the first error that the disk of ``root`` gave."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.failed: str | None = None

    def fail(self, error: OSError) -> None:
        """The disk has failed."""
        if self.failed is None:
            self.failed = f"{self._root}: {error}"

    def check(self) -> None:
        """Raise DISK if it has failed."""
        if self.failed is not None:
            raise Fs3Error(Code.DISK, self.failed)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn the disk's errors into the store's failure."""
        try:
            yield
        except Fs3Error:
            raise
        except OSError as error:
            self.fail(error)
            raise Fs3Error(Code.DISK, f"{self._root}: {error}") from error
