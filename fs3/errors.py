"""Raising the failures of the table in fs3/core/codes.py.

    Fs3Error(OSError)        every failure a caller of fs3 can see
      code: Code             what happened, stable for ever
      detail: str            what was wrong, with the value, and what is allowed

``Fs3Error`` is an ``OSError``: ``errno`` is set, and Python code that catches
``FileNotFoundError`` or ``PermissionError`` catches ours.
"""

from __future__ import annotations

from fs3.core.codes import TABLE, Code, Retry, Row, code_of

__all__ = ["TABLE", "Code", "Fs3Error", "Retry", "Row", "code_of"]


class Fs3Error(OSError):
    """A failure with its code; ``errno`` comes from the table, ``detail`` names the culprit.

    ``Fs3Error(Code.NOT_FOUND, "/a: no such entry")`` is an instance of ``FileNotFoundError`` too:
    for errnos that Python has a class for, a subclass of both is made on first use.
    """

    code: Code
    detail: str

    def __new__(cls, code: Code, detail: str) -> Fs3Error:
        errno = TABLE[code].errno
        return OSError.__new__(_with_builtin(cls, errno), errno, detail)

    def __init__(self, code: Code, detail: str) -> None:
        self.code = code
        self.detail = detail

    @property
    def retry(self) -> Retry:
        """What the caller may do about it."""
        return TABLE[self.code].retry

    def __str__(self) -> str:
        return f"{self.code.name}: {self.detail}"

    def __reduce__(self) -> tuple[type[Fs3Error], tuple[Code, str]]:
        return Fs3Error, (self.code, self.detail)


_subclasses: dict[tuple[type[Fs3Error], int], type[Fs3Error]] = {}


def _with_builtin(cls: type[Fs3Error], errno: int) -> type[Fs3Error]:
    """``cls`` itself, or its subclass that is also Python's own exception for ``errno``."""
    key = (cls, errno)
    if key not in _subclasses:
        builtin = type(OSError(errno, ""))
        made = cls if builtin is OSError else type(cls.__name__, (cls, builtin), {})
        _subclasses[key] = made
    return _subclasses[key]
