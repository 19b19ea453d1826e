"""From a request to a reply: errors, listings that overflow, and locks that wait."""

from __future__ import annotations

import errno
import threading
from types import SimpleNamespace

import pytest

from fs3.client.filesystem_interface import (
    MISSING,
    Attributes,
    Cancellation,
    Controlled,
    Entry,
    Listed,
    permissions_without_privileges,
)
from fs3.client.fuse import kernel
from fs3.client.fuse import kernel_structs as k
from fs3.client.fuse.negotiation import FrontOptions
from fs3.client.fuse.operations import Operations
from fs3.client.fuse.waits import Waits
from fs3.core.layout import Layout
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import Dentry, FileKind, Inode


def ask(filesystem, opcode, body=b"", send=None, invalidate=None):
    length = k.IN_HEADER.size + len(body)
    view = memoryview(k.IN_HEADER.pack(length, opcode, 7, 1, 10, 20, 30, 0, 0) + body)
    operations = Operations(filesystem, FrontOptions(), send, invalidate)
    reply = operations.answer(kernel.decode_header(view), view)
    if reply is None and invalidate is not None:
        operations.close()
    return reply


def inode(number):
    return Inode(
        inode=InodeId(number),
        kind=FileKind.FILE,
        permissions=0o644,
        uid=0,
        gid=0,
        links=1,
        length_bytes=0,
        atime_ns=0,
        mtime_ns=0,
        ctime_ns=0,
        layout=Layout(1 << 20, 1),
    )


def raiser(error):
    def method(*_):
        raise error

    return method


def test_error_of_the_file_system_becomes_its_errno():
    full = SimpleNamespace(lookup=raiser(Fs3Error(Code.NO_SPACE, "full")))
    assert ask(full, k.Opcode.LOOKUP, b"a\0") == errno.ENOSPC


def test_any_other_exception_is_logged_and_becomes_eio(caplog):
    broken = SimpleNamespace(lookup=raiser(ZeroDivisionError("bug")))
    assert ask(broken, k.Opcode.LOOKUP, b"a\0") == errno.EIO
    assert "fuse_request_failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_malformed_request_is_eproto_and_unknown_ones_enosys(caplog):
    assert ask(None, k.Opcode.LOOKUP, b"no end") == errno.EPROTO
    assert "fuse_request_malformed" in caplog.text
    for opcode in (k.Opcode.ACCESS, k.Opcode.POLL, 37, 51, 4096):
        assert ask(None, opcode) == errno.ENOSYS
    assert ask(None, k.Opcode.IOCTL) == errno.EPROTO
    assert ask(None, k.Opcode.DESTROY) == 0


def ioctl(command, argument=b"", flags=0, out_size=0):
    return k.IOCTL_IN.pack(5, flags, command, 0, len(argument), out_size) + argument


def test_an_ioctl_gets_its_answer_cut_to_the_room_there_is():
    filesystem = SimpleNamespace(control=lambda *_: Controlled(b"answer"))
    assert ask(filesystem, k.Opcode.IOCTL, ioctl(1, out_size=3)) == bytes(16) + b"ans"


def test_an_unknown_ioctl_and_one_on_a_directory_are_enotty():
    filesystem = SimpleNamespace(control=lambda *_: None)
    assert ask(filesystem, k.Opcode.IOCTL, ioctl(1)) == errno.ENOTTY
    assert ask(None, k.Opcode.IOCTL, ioctl(1, flags=k.IOCTL_DIRECTORY)) == errno.ENOTTY


def test_an_ioctl_that_made_pages_stale_is_answered_when_the_kernel_has_forgotten_them():
    events = []
    filesystem = SimpleNamespace(control=lambda *arguments: Controlled(stale=True))
    assert (
        ask(
            filesystem,
            k.Opcode.IOCTL,
            ioctl(1),
            send=lambda *answer: events.append(answer),
            invalidate=lambda node: events.append(node),
        )
        is None
    )
    assert events == [1, (7, bytes(16))]


def test_missing_name_is_enoent_unless_it_may_be_remembered():
    missing = SimpleNamespace(lookup=lambda *_: MISSING)
    remembered = SimpleNamespace(lookup=lambda *_: Entry(None, 5.0, 0.0))
    assert ask(missing, k.Opcode.LOOKUP, b"a\0") == errno.ENOENT
    assert k.ENTRY_OUT.unpack(ask(remembered, k.Opcode.LOOKUP, b"a\0"))[:3] == (0, 0, 5)


def test_caller_is_who_the_kernel_says():
    seen = []
    filesystem = SimpleNamespace(lookup=lambda *arguments: seen.append(arguments) or MISSING)
    ask(filesystem, k.Opcode.LOOKUP, b"a\0")
    assert [(parent, name, who.uid, who.gid) for parent, name, who in seen] == [(1, "a", 10, 20)]


def test_listing_gives_back_the_entry_that_did_not_fit():
    forgotten, taken = [], []

    def readdir(handle, after, plus):
        for number in range(after + 1, 100):
            taken.append(number)
            entry = Entry(inode(1000 + number), 1.0, 1.0)
            name = f"name-{number}"
            dentry = Dentry(name=name, inode=InodeId(1000 + number), kind=FileKind.FILE)
            yield Listed(number, dentry, entry)

    filesystem = SimpleNamespace(
        readdir=readdir,
        getattr=lambda *_: Attributes(inode(1), 0.0),
        forget=lambda *arguments: forgotten.append(arguments),
    )
    body = k.READ_IN.pack(5, 0, 1000, 0, 0, 0)
    reply = ask(filesystem, k.Opcode.READDIRPLUS, body)
    assert len(reply) <= 1000
    assert forgotten == [(1000 + taken[-1], 1)]
    assert reply.count(b"name-") == len(taken) - 1


def test_xattr_too_long_for_the_room_is_erange():
    filesystem = SimpleNamespace(getxattr=lambda *_: b"12345")
    sized = [
        ask(filesystem, k.Opcode.GETXATTR, k.GETXATTR_IN.pack(room) + b"user.a\0")
        for room in (0, 4, 5)
    ]
    assert sized == [k.GETXATTR_OUT.pack(5), errno.ERANGE, b"12345"]


def test_lock_that_must_wait_answers_later_and_an_interrupt_ends_it():
    waiting, sent = threading.Event(), []
    replied = threading.Event()

    def setlk(node, owner, lock, flock, wait):
        if wait is None:
            return False
        gone = threading.Event()
        wait.on_cancel(gone.set)
        waiting.set()
        assert gone.wait(30)
        return False

    def send(*reply):
        sent.append(reply)
        replied.set()

    operations = Operations(SimpleNamespace(setlk=setlk), FrontOptions(), send, lambda _: None)

    def answer(opcode, unique, body):
        header = k.IN_HEADER.pack(40 + len(body), opcode, unique, 1, 0, 0, 0, 0, 0)
        view = memoryview(header + body)
        return operations.answer(kernel.decode_header(view), view)

    lock = k.LK_IN.pack(1, 2, 0, 10, 1, 30, 0)
    assert answer(k.Opcode.SETLK, 5, lock) == errno.EAGAIN
    assert answer(k.Opcode.SETLKW, 6, lock) is None
    assert waiting.wait(30)
    assert answer(k.Opcode.INTERRUPT, 8, k.INTERRUPT_IN.pack(6)) is None
    assert replied.wait(30)
    operations.close()
    assert sent == [(6, errno.EINTR)]


def test_interrupt_that_comes_before_its_lock_request_cancels_it():
    waits, seen = Waits(), []
    waits.interrupt(5)
    assert waits.start(5, lambda cancellation: seen.append(cancellation.cancelled))
    waits.close()
    assert seen == [True]
    assert not waits.start(6, seen.append)


def test_a_wait_for_which_there_is_no_thread_is_refused_and_the_mount_can_end(monkeypatch):
    """What is not written yet is written when the mount ends: nothing may stop that."""

    def start(self):
        raise RuntimeError("can't start new thread")

    waits = Waits()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        assert not waits.start(1, lambda _: None)
    waits.close()


def test_cancellation_tells_late_listeners_at_once():
    cancellation, calls = Cancellation(), []
    cancellation.on_cancel(lambda: calls.append("early"))
    cancellation.cancel()
    cancellation.cancel()
    cancellation.on_cancel(lambda: calls.append("late"))
    assert calls == ["early", "late"]


@pytest.mark.parametrize(
    ("before", "after"), [(0o6777, 0o777), (0o2666, 0o2666), (0o4600, 0o600), (0o1777, 0o1777)]
)
def test_privileges_go_as_the_kernel_has_it(before, after):
    assert permissions_without_privileges(before) == after
