"""The compiled loops and those in Python do the same, and refuse the same."""

import errno
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from array import array
from pathlib import Path
from random import Random

import pytest
from crc32c import crc32c as reference
from hypothesis import given
from hypothesis import strategies as st

from fs3 import compiled
from fs3.compiled import EDGE_BYTES_MAX, IN_MEMORY, PIECE, PIECE_OF_PARTS, plain

try:
    from fs3.compiled import _loops
except ImportError:
    _loops = None

SOURCES = Path(compiled.__file__).parent
COMPILER = shutil.which("cc")
INCLUDE = Path(sysconfig.get_paths()["include"])
HEADERS = (INCLUDE / "Python.h").is_file()
BLOCK = 16 << 10
CONTENT = Random(1).randbytes(3 << 20)
WAYS = ["python", *([f"way {way}" for way in range(1, _loops.WAYS + 1)] if _loops else [])]


@pytest.fixture(scope="module", params=WAYS)
def loops(request):
    if request.param == "python":
        yield plain
        return
    _loops.use_way(int(request.param[-1]))
    yield _loops
    _loops.use_way(_loops.WAYS)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("compiled") / "content"
    path.write_bytes(CONTENT)
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


class Pieces:
    """Arguments of one call, and what it should leave behind."""

    def __init__(self, file):
        self.file = file
        self.records, self.buffers, self.wanted = [], [], []

    def add(self, position, before, length, after, crc=None, descriptor=None):
        whole = CONTENT[position : position + before + length + after]
        crc = reference(whole) if crc is None else crc
        descriptor = self.file if descriptor is None else descriptor
        self.records.append(PIECE.pack(descriptor, crc, position, before, length, after))
        # Not aligned, and with room on both sides to write into by mistake.
        self.buffers.append(memoryview(bytearray(b"\xaa" * (length + 6)))[3 : length + 3])
        self.wanted.append(whole[before : before + length])
        return self

    def read(self, loops, split=False, crcs=None):
        return loops.read_pieces(b"".join(self.records), self.buffers, split, crcs)

    def check(self, good=None):
        for at, (buffer, wanted) in enumerate(zip(self.buffers, self.wanted, strict=True)):
            around = bytes(buffer.obj)
            assert around[:3] + around[-3:] == b"\xaa" * 6
            if good is None or at in good:
                assert buffer == wanted, at


# -- buffers ---------------------------------------------------------------------------------------


def released():
    view = memoryview(bytearray(4))
    view.release()
    return view


def test_lengths_of_plain_buffers(loops):
    views = [memoryview(bytearray(length)) for length in (4096, 0, 7, 1 << 20)]
    views.append(memoryview(bytearray(100))[10:20])
    assert array("q", loops.plain_lengths(tuple(views))).tolist() == [4096, 0, 7, 1 << 20, 10]
    assert loops.plain_lengths(()) == b""


@pytest.mark.parametrize(
    "other",
    [
        7,
        bytearray(4),
        memoryview(b"read"),
        memoryview(bytearray(8)).cast("I"),
        memoryview(bytearray(8)).cast("B", (2, 4)),
        memoryview(bytearray(8))[::2],
        released(),
    ],
    ids=["length", "bytearray", "read-only", "words", "matrix", "gaps", "released"],
)
def test_lengths_are_those_of_plain_buffers_alone(loops, other):
    good = memoryview(bytearray(4))
    assert loops.plain_lengths((good, good)) is not None
    assert loops.plain_lengths((good, other, good)) is None


# -- checksums -------------------------------------------------------------------------------------


@given(st.data())
def test_crc32c_is_that_of_the_reference(loops, data):
    length = data.draw(st.one_of(st.integers(0, 700), st.integers(0, 20_000)))
    start = data.draw(st.integers(0, 64))
    seed = data.draw(st.integers(0, 2**32 - 1))
    part = memoryview(CONTENT)[start : start + length]
    assert loops.crc32c(part, seed) == reference(part, seed)
    assert loops.crc32c(part) == reference(part)


def test_crc32c_of_known_messages(loops):
    # RFC 3720, appendix B.4.
    assert loops.crc32c(bytes(32)) == 0x8A9136AA
    assert loops.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert loops.crc32c(b"123456789") == 0xE3069283
    assert loops.crc32c(CONTENT) == reference(CONTENT)


@given(length=st.integers(0, 40_000), block_bytes=st.integers(1, 20_000))
def test_block_crcs_are_those_of_the_blocks(loops, length, block_bytes):
    part = CONTENT[:length]
    found = array("I", loops.block_crcs(part, block_bytes))
    starts = range(0, length, block_bytes)
    assert found.tolist() == [reference(part[at : at + block_bytes]) for at in starts]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((), TypeError), ((b"", "0"), TypeError), (("text",), TypeError), ((1,), TypeError)],
)
def test_crc32c_refuses(loops, arguments, error):
    with pytest.raises(error):
        loops.crc32c(*arguments)


@pytest.mark.parametrize("block_bytes", [0, -1])
def test_block_crcs_refuse_blocks_without_bytes(loops, block_bytes):
    with pytest.raises(ValueError, match=f"blocks of {block_bytes} bytes"):
        loops.block_crcs(b"abc", block_bytes)


# -- pieces ----------------------------------------------------------------------------------------

SMALL = st.tuples(
    st.integers(0, 40_000), st.integers(0, BLOCK), st.integers(0, 9_000), st.integers(0, BLOCK)
)
LARGE = st.tuples(
    st.integers(0, 40_000),
    st.sampled_from([0, 1, 4096, BLOCK, EDGE_BYTES_MAX]),
    st.integers(0, 400_000),
    st.sampled_from([0, 1, 4096, BLOCK, EDGE_BYTES_MAX]),
)


@given(wanted=st.lists(st.one_of(SMALL, LARGE), max_size=6), split=st.booleans())
def test_pieces_are_read_and_their_checksums_told(loops, file, wanted, split):
    pieces = Pieces(file)
    for piece in wanted:
        pieces.add(*piece)
    crcs = array("I", bytes(4 * len(wanted)))
    assert pieces.read(loops, split, memoryview(crcs)) == []
    pieces.check()
    assert crcs.tolist() == [reference(wanted) for wanted in pieces.wanted]


PARTS = st.lists(
    st.one_of(st.integers(0, 300), st.sampled_from([0, 4096, 70_000, 131_072, 200_000])),
    min_size=1,
    max_size=40,
)


@given(
    wanted=st.lists(st.tuples(SMALL, PARTS), max_size=4), split=st.booleans(), ends=st.booleans()
)
def test_the_wanted_bytes_of_a_piece_may_go_to_many_buffers(loops, file, wanted, split, ends):
    records, buffers, contents = [], [], []
    for (position, before, _, after), sizes in wanted:
        if ends:
            position, sizes = position + 2_900_000, [size % 1000 for size in sizes]
        length = sum(sizes)
        whole = CONTENT[position : position + before + length + after]
        missing = before + length + after - len(whole)
        record = file, reference(whole), position, before, length, after, len(sizes) - 1
        records.append(PIECE_OF_PARTS.pack(*record))
        mine = [memoryview(bytearray(b"\xaa" * (size + 6)))[3 : size + 3] for size in sizes]
        buffers += mine
        contents.append((mine, whole[before : before + length], missing))
    crcs = array("I", bytes(4 * len(records)))
    failures = loops.read_pieces(b"".join(records), buffers, split, memoryview(crcs))
    lacking = [(at, 0, missing, 0) for at, (_, _, missing) in enumerate(contents) if missing]
    assert failures == lacking
    for (mine, content, missing), crc in zip(contents, crcs, strict=True):
        around = [bytes(buffer.obj) for buffer in mine]
        assert {edge[:3] + edge[-3:] for edge in around} == {b"\xaa" * 6}
        assert missing or (b"".join(mine), crc) == (content, reference(content))


def test_more_buffers_than_one_system_call_takes(loops, file):
    buffers = [memoryview(bytearray(7)) for _ in range(3000)]
    record = PIECE_OF_PARTS.pack(file, reference(CONTENT[5:21_015]), 5, 10, 21_000, 0, 2999)
    assert loops.read_pieces(record, buffers) == []
    assert b"".join(buffers) == CONTENT[15:21_015]
    record = PIECE_OF_PARTS.pack(IN_MEMORY, reference(CONTENT[15:21_015]), 0, 0, 21_000, 0, 2999)
    assert loops.read_pieces(record, buffers) == []
    buffers[2500][6] ^= 1
    assert [failure[:3] for failure in loops.read_pieces(record, buffers)] == [(0, 0, 0)]


def test_many_pieces_of_the_same_blocks_are_read_once_or_more(loops, file):
    random = Random(7)
    pieces = Pieces(file)
    for _ in range(500):
        block, within = random.randrange(20) * BLOCK, random.randrange(4) * 4096
        pieces.add(block, within, 4096, BLOCK - 4096 - within)
    for at in range(0, 40 * 4096, 4096):
        pieces.add(at - at % BLOCK, at % BLOCK, 4096, BLOCK - 4096 - at % BLOCK)
    for split in (False, True):
        assert pieces.read(loops, split) == []
        pieces.check()


@pytest.mark.parametrize("split", [False, True])
def test_a_wrong_checksum_is_told_and_the_other_pieces_are_good(loops, file, split):
    pieces = Pieces(file)
    pieces.add(0, 0, 1 << 20, 0).add(0, 0, 1 << 20, 0, crc=5)
    pieces.add(0, 100, 50, 50).add(0, 100, 50, 50, crc=6).add(0, 100, 50, 50)
    pieces.add(1, 3, 300_000, 4, crc=7).add(BLOCK, 0, BLOCK, 0)
    assert pieces.read(loops, split) == [
        (1, 0, 0, reference(CONTENT[: 1 << 20])),
        (3, 0, 0, reference(CONTENT[:200])),
        (5, 0, 0, reference(CONTENT[1:300_008])),
    ]
    pieces.check({0, 2, 4, 6})


@pytest.mark.parametrize("split", [False, True])
def test_a_changed_byte_anywhere_is_found(loops, file, split):
    pieces = Pieces(file)
    pieces.add(0, 1000, 700_000, 1000)
    for at in (0, 999, 1000, 131_071, 131_072, 400_000, 700_999, 701_000, 701_999):
        byte = bytes([CONTENT[at] ^ 1])
        os.pwrite(file, byte, at)
        try:
            ((item, number, missing, _),) = pieces.read(loops, split)
        finally:
            os.pwrite(file, CONTENT[at : at + 1], at)
        assert (item, number, missing) == (0, 0, 0)
    assert pieces.read(loops, split) == []


@pytest.mark.parametrize("split", [False, True])
def test_a_file_that_ends_and_one_that_cannot_be_read(loops, file, split):
    size = len(CONTENT)
    closed = 2**31 - 1  # no descriptor can be: a closed one may be another thread's by now
    pieces = Pieces(file)
    pieces.add(size - 100, 0, 100, 0).add(size - 100, 0, 101, 0).add(size - 10, 5, 5, 7)
    pieces.add(0, 0, 10, 0, descriptor=closed).add(0, 1, 10, 0, descriptor=-1)
    pieces.add(size + 5, 0, 1, 0).add(size - 500_000, 0, 500_001, 0).add(0, 0, 10, 0)
    assert pieces.read(loops, split) == [
        (1, 0, 1, 0),
        (2, 0, 7, 0),
        (3, errno.EBADF, 0, 0),
        (4, errno.EBADF, 0, 0),
        (5, 0, 1, 0),
        (6, 0, 1, 0),
    ]
    pieces.check({0, 7})


def test_bytes_in_memory_are_only_verified(loops, file):
    pieces = Pieces(file).add(0, 0, 4096, 0, descriptor=IN_MEMORY)
    pieces.buffers[0][:] = CONTENT[:4096]
    assert pieces.read(loops) == []
    pieces.buffers[0][7] ^= 1
    assert [failure[:3] for failure in pieces.read(loops)] == [(0, 0, 0)]


@pytest.mark.parametrize(
    ("record", "length", "message"),
    [
        ((0, 0, 0, 0, 5, 0), 4, "piece 1 has 5 bytes, its buffer 4"),
        ((0, 0, 0, 0, 0xFFFFFFFF, 0), 4, "piece 1 has 4294967295 bytes, its buffer 4"),
        ((0, 0, 0, EDGE_BYTES_MAX + 1, 4, 0), 4, "edges of 65537 and 0"),
        ((0, 0, 0, 0, 4, 0xFFFFFFFF), 4, "edges of 0 and 4294967295"),
        ((0, 0, 2**63 - 4, 0, 4, 0), 4, "ends behind what a file can hold"),
        ((0, 0, 2**64 - 1, 1, 4, 1), 4, "ends behind what a file can hold"),
        ((IN_MEMORY, 0, 0, 1, 4, 0), 4, "in memory and has edges"),
    ],
)
def test_a_piece_that_makes_no_sense_is_refused_and_nothing_is_read(
    loops, file, record, length, message
):
    pieces = Pieces(file).add(0, 0, 100, 0)
    pieces.records.append(PIECE.pack(*record))
    pieces.buffers.append(memoryview(bytearray(length)))
    with pytest.raises(ValueError, match=message):
        pieces.read(loops)
    assert pieces.buffers[0] == b"\xaa" * 100


def test_arguments_that_do_not_fit_each_other_are_refused(loops, file):
    one, two = PIECE.pack(file, 0, 0, 0, 4, 0), PIECE_OF_PARTS.pack(file, 0, 0, 0, 4, 0, 1)
    most = PIECE_OF_PARTS.pack(file, 0, 0, 0, 4, 0, 0xFFFFFFFF)
    buffer = memoryview(bytearray(4))
    calls = [(one, []), (one[:-1], [buffer]), (one, [buffer, buffer])]
    calls += [(two, [buffer]), (two + one, [buffer, buffer]), (most, [buffer]), (most * 2, [])]
    for pieces, buffers in calls:
        with pytest.raises(ValueError, match="bytes of pieces, 32 each, for"):
            loops.read_pieces(pieces, buffers)
    with pytest.raises(ValueError, match="piece 0 has 4 bytes, its buffer 8"):
        loops.read_pieces(two, [buffer, buffer])
    with pytest.raises(ValueError, match="3 bytes for the checksums of 1 pieces"):
        loops.read_pieces(one, [buffer], False, memoryview(bytearray(3)))
    assert loops.read_pieces(b"", []) == []


@pytest.mark.skipif(_loops is None, reason="the extension is not built")
def test_memory_that_may_not_be_written_is_refused_by_the_extension(file):
    one = PIECE.pack(file, 0, 0, 0, 4, 0)
    for buffer in (b"abcd", memoryview(b"abcd"), memoryview(bytearray(8))[::2], None, 5):
        with pytest.raises((TypeError, BufferError)):
            _loops.read_pieces(one, [buffer])
    for arguments in ((), (one,), (one, []), (one, 5), (None, []), (one, [b""], 0, 0, 0)):
        with pytest.raises((TypeError, ValueError)):
            _loops.read_pieces(*arguments)
    with pytest.raises(OverflowError):
        _loops.crc32c(b"", 2**32)
    with pytest.raises(ValueError, match="way 9"):
        _loops.use_way(9)


def test_threads_that_read_at_once_all_get_their_bytes(loops, file):
    failures = []

    def read(seed):
        random = Random(seed)
        for _ in range(20):
            pieces = Pieces(file)
            for _ in range(4):
                pieces.add(random.randrange(1 << 20), 7, 300_000, 9)
            failures.extend(pieces.read(loops, True))
            pieces.check()

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


FORKING = """
import os, sys
from crc32c import crc32c
from fs3.compiled import PIECE, read_pieces

content = os.urandom(1 << 20)
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.pwrite(file, content, 0)
buffers = [memoryview(bytearray(1 << 20)) for _ in range(4)]

def read():
    assert read_pieces(PIECE.pack(file, crc32c(content), 0, 0, 1 << 20, 0) * 4, buffers, True) == []
    assert all(buffer == content for buffer in buffers)

read()
for _ in range(5):
    child = os.fork()
    if not child:
        read()
        os._exit(0)
    read()
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("compiled_too", ["0", "1"])
def test_children_read_after_fork(tmp_path, compiled_too):
    command = [sys.executable, "-W", "ignore", "-c", FORKING, tmp_path / "file"]
    environment = {**os.environ, "FS3_COMPILED": compiled_too}
    subprocess.run(command, check=True, timeout=60, env=environment)


HELPED = """
import os, sys, time
from crc32c import crc32c
from fs3.compiled import PIECE, read_pieces

def tasks():
    return set(map(int, os.listdir("/proc/self/task")))

content = bytes(1 << 20)
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.pwrite(file, content, 0)
pieces = PIECE.pack(file, crc32c(content), 0, 0, 1 << 20, 0) * 4
buffers = [memoryview(bytearray(1 << 20)) for _ in range(4)]
before, cpus = tasks(), os.sched_getaffinity(0)
assert read_pieces(pieces, buffers, True) == []
helpers = tasks() - before
assert len(helpers) == (len(cpus) > 1), (helpers, cpus)
deadline_s = time.monotonic() + 60
for helper in helpers:  # it may use all of them while it is waited for
    while len(os.sched_getaffinity(helper)) != len(cpus) - 1:
        assert time.monotonic() < deadline_s, os.sched_getaffinity(helper)
        assert read_pieces(pieces, buffers, True) == []
"""


@pytest.mark.skipif(_loops is None, reason="the extension is not built")
def test_the_helper_is_kept_off_its_callers_cpu(tmp_path):
    command = [sys.executable, "-c", HELPED, tmp_path / "file"]
    environment = {**os.environ, "FS3_COMPILED": "1"}
    subprocess.run(command, check=True, timeout=100, env=environment)


# -- the build -------------------------------------------------------------------------------------


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
@pytest.mark.skipif(not HEADERS, reason="Python's headers are not installed (python3-dev)")
def test_where_there_is_a_compiler_the_extension_is_built():
    assert _loops is not None, "run: pip install -e . (and see what it says with -v)"


def test_which_loops_are_used_can_be_chosen():
    code = "from fs3 import compiled; print(compiled.COMPILED, compiled.WHICH)"
    answers = {
        choice: subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "FS3_COMPILED": choice},
        ).stdout.strip()
        for choice in ("0", "1")
    }
    assert answers["0"] == "False Python loops, as FS3_COMPILED=0 asks for"
    assert answers["1"].startswith("True compiled loops" if _loops else "False Python loops: ")


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
@pytest.mark.skipif(not HEADERS, reason="Python's headers are not installed (python3-dev)")
def test_the_compiler_has_nothing_to_say(tmp_path):
    for source in sorted(SOURCES.glob("*.c")):
        command = [COMPILER, "-std=c11", "-O3", "-Wall", "-Wextra", "-Werror", "-fPIC"]
        command += [f"-I{INCLUDE}", "-c", source, "-o", tmp_path / "object.o"]
        subprocess.run(command, check=True, timeout=100)


@pytest.mark.long
def test_it_installs_without_a_compiler(tmp_path):
    root = SOURCES.parent.parent
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=root, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (root / name).is_file() and not name.startswith("tests/"):
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, tmp_path / "source" / name)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", tmp_path / "there"]
    environment = {**os.environ, "CC": "/bin/false"}
    subprocess.run([*command, tmp_path / "source"], check=True, env=environment, timeout=100)
    code = "import fs3.compiled as c; print(c.__file__, c.WHICH, c.crc32c(b'123456789'))"
    environment["PYTHONPATH"] = str(tmp_path / "there")
    answer = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    ).stdout
    assert answer.startswith(f"{tmp_path}/there/fs3/compiled/__init__.py Python loops: ")
    assert answer.split()[-1] == str(0xE3069283)
