"""Record files in a local directory: what goes in comes out, and damage is noticed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.client.cli.main import run
from fs3.client.records import storage
from fs3.client.records.format import (
    FOOTER_BYTES,
    HEADER_BYTES,
    Header,
    Kind,
    decode_sample,
    encode_sample,
)
from fs3.client.records.packing import folder_samples, tar_samples
from fs3.client.records.reader import RecordFile, Records
from fs3.client.records.storage import LocalStorage
from fs3.client.records.writer import RecordWriter
from fs3.errors import Fs3Error


def write(path: Path, records, header: Header | None = None) -> Path:
    with RecordWriter(path.open("wb"), header) as writer:
        for record in records:
            writer.append(record)
    return path


def contents(records: Records, numbers) -> list[bytes]:
    return [bytes(record) for record in records.read(numbers)]


# -- format ----------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=50), max_size=30), st.randoms(use_true_random=False))
def test_records_come_back_in_any_order(tmp_path_factory, written, rng):
    path = write(tmp_path_factory.mktemp("r") / "file", written)
    records = Records(path, verify=True)
    numbers = [rng.randrange(len(written)) for _ in range(2 * len(written))]
    assert len(records) == len(written)
    assert contents(records, numbers) == [written[n] for n in numbers]


@given(st.dictionaries(st.text(max_size=8), st.binary(max_size=40), max_size=5))
def test_samples_come_back_with_their_parts_in_order(parts):
    found = decode_sample(memoryview(encode_sample(parts)))
    assert [(name, bytes(content)) for name, content in found.items()] == list(parts.items())


@given(st.binary(max_size=40))
def test_any_bytes_are_a_sample_or_refused(data):
    with contextlib.suppress(Fs3Error):
        parts = decode_sample(memoryview(data))
        assert sum(map(len, parts.values())) <= len(data)


def test_example_in_the_documentation_is_what_is_written(tmp_path):
    path = tmp_path / "file"
    with RecordWriter(path.open("wb"), Header(kind=Kind.SAMPLE)) as writer:
        writer.append_sample({"__key__": b"cat/1", "txt": b"meow"})
        writer.append_sample({"__key__": b"cat/2"})
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    example = page[page.index("## Record files") :].split("```")[1]
    words = [line.strip().split("   ")[0] for line in example.strip().splitlines()]
    shown = " ".join(words).replace("00 * 44", "00" * 44).replace("00 * 16", "00" * 16)
    assert bytes.fromhex(shown) == path.read_bytes()


def test_fixed_records_have_one_length(tmp_path):
    header = Header(record_bytes=8)
    path = write(tmp_path / "file", [bytes([n]) * 8 for n in range(100)], header)
    records = Records(path, verify=True)
    assert contents(records, [99, 0, -1]) == [b"c" * 8, bytes(8), b"c" * 8]
    assert path.stat().st_size == HEADER_BYTES + 100 * (8 + 4) + FOOTER_BYTES
    with pytest.raises(Fs3Error, match=r"record 0 has 7 bytes; 8 bytes are allowed"):
        write(tmp_path / "other", [bytes(7)], header)
    with pytest.raises(Fs3Error, match="no footer"):
        RecordFile(LocalStorage(), str(write_header_only(tmp_path)))


def write_header_only(tmp_path: Path) -> Path:
    """What a writer leaves that fails on its way."""
    path = tmp_path / "cut"
    with pytest.raises(Fs3Error):
        write(path, [bytes(8)] * 20 + [b"short"], Header(record_bytes=8))
    return path


@pytest.mark.parametrize("record_bytes", [0, 16])
def test_no_damaged_byte_goes_unnoticed(tmp_path, record_bytes):
    path = tmp_path / "file"
    rng = random.Random(1)
    written = [rng.randbytes(16) for _ in range(6)]
    write(path, written, Header(record_bytes=record_bytes))
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(Fs3Error):
            Records(path, verify=True).read(range(6))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(Fs3Error):
            Records(path)


# -- reading ---------------------------------------------------------------------------------------


def test_files_of_a_directory_are_one_sequence(tmp_path):
    write(tmp_path / "a", [b"0", b"1"])
    write(tmp_path / "b", [])
    write(tmp_path / "c", [b"2"])
    records = Records(tmp_path)
    assert contents(records, [2, 1, 0, 2]) == [b"2", b"1", b"0", b"2"]
    assert contents(Records([tmp_path / "c", tmp_path / "a"]), range(3)) == [b"2", b"0", b"1"]
    for number in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            records.read([number])


@pytest.mark.parametrize("record_bytes", [0, 2])
def test_window_is_consecutive_records_of_one_file(tmp_path, record_bytes):
    header = Header(record_bytes=record_bytes)
    write(tmp_path / "a", [b"00", b"11", b"22", b"33"], header)
    write(tmp_path / "b", [b"44", b"55"], header)
    write(tmp_path / "c", [b"66", b"77", b"88"], header)
    records = Records(tmp_path, window=3, verify=True)
    assert contents(records, range(len(records))) == [b"001122", b"112233", b"667788"]


def test_opening_a_million_records_reads_128_bytes(tmp_path, monkeypatch):
    count = 1_000_000
    path = write(tmp_path / "file", (b"%07d" % n for n in range(count)))
    read = []

    def counted(self, ranges, really=LocalStorage.read):
        read.extend(len(buffer) for _, _, buffer in ranges)
        really(self, ranges)

    monkeypatch.setattr(LocalStorage, "read", counted)
    records = Records(path)
    assert len(records) == count
    assert sum(read) == HEADER_BYTES + FOOTER_BYTES
    assert contents(records, [count - 1, 123_456]) == [b"0999999", b"0123456"]
    assert sum(read) == HEADER_BYTES + FOOTER_BYTES + 8 * count + 14
    assert len(pickle.dumps(records)) < 2000  # without the index
    assert contents(pickle.loads(pickle.dumps(records)), [77]) == [b"0000077"]


def test_batch_lies_in_memory_that_the_caller_gives(tmp_path):
    path = write(tmp_path / "file", [b"one", b"three"])
    given_memory = np.zeros(8, np.uint8)

    def allocate(size):
        assert size == 8
        return given_memory.data

    views = Records(path).read([1, 0], allocate)
    assert given_memory.tobytes() == b"threeone"
    assert [bytes(view) for view in views] == [b"three", b"one"]


def test_a_file_that_another_thread_makes_give_way_is_read_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_OPEN_MAX", 1)
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 100)
    local, preadv = LocalStorage(), os.preadv

    def read(name: str) -> bytes:
        buffer = memoryview(bytearray(10))
        local.read([(str(tmp_path / name), 0, buffer)])
        return bytes(buffer)

    def overtaken(descriptor, buffers, offset):
        monkeypatch.setattr(os, "preadv", preadv)
        assert read("b") == b"b" * 10
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", overtaken)
    assert read("a") == b"a" * 10


def test_what_is_no_set_of_records_is_refused(tmp_path):
    (tmp_path / "text").write_text("no records" * 100)
    with pytest.raises(Fs3Error, match="not a record file"):
        Records(tmp_path / "text")
    (tmp_path / "short").write_text("x")
    with pytest.raises(Fs3Error, match="1 bytes are too few"):
        Records(tmp_path / "short")
    with pytest.raises(FileNotFoundError):
        Records(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        Records(tmp_path / "empty")
    (tmp_path / "two").mkdir()
    write(tmp_path / "two" / "a", [])
    write(tmp_path / "two" / "b", [], Header(kind=Kind.SAMPLE))
    with pytest.raises(Fs3Error, match="opaque records and of samples"):
        Records(tmp_path / "two")


# -- packing ---------------------------------------------------------------------------------------

SAMPLES = [
    {"__key__": b"cat/1", "jpg": b"J1", "json": b"{}"},
    {"__key__": b"cat/2", "jpg": b"J2"},
    {"__key__": b"dog/1", "seg.png": b"P"},
]


def make_folder(folder: Path) -> Path:
    for sample in SAMPLES:
        for part, content in sample.items():
            if part != "__key__":
                path = folder / f"{sample['__key__'].decode()}.{part}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return folder


def make_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for sample in SAMPLES:
            for part, content in sample.items():
                if part != "__key__":
                    info = tarfile.TarInfo(f"{sample['__key__'].decode()}.{part}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return path


def test_directory_and_tar_give_the_same_samples(tmp_path):
    storage = LocalStorage()
    assert list(folder_samples(storage, str(make_folder(tmp_path / "f")))) == SAMPLES
    assert list(tar_samples(storage, str(make_tar(tmp_path / "t.tar")))) == SAMPLES


def fs3(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


def test_commands_pack_verify_and_show_samples(tmp_path, capfdbinary):
    make_folder(tmp_path / "f")
    make_tar(tmp_path / "t.tar")
    target = tmp_path / "made" / "samples"
    assert fs3("records", "pack", tmp_path / "f", tmp_path / "t.tar", target) == 0
    assert fs3("records", "verify", target) == 0
    assert b"6 records (sample, of any length)" in capfdbinary.readouterr().out
    assert fs3("records", "cat", target, 3) == 0
    assert capfdbinary.readouterr().out == b"3 cat/1  jpg: 2 bytes, json: 2 bytes\n"
    assert fs3("records", "cat", target, "--part", "jpg", 4) == 0
    assert capfdbinary.readouterr().out == b"J2"
    assert fs3("records", "cat", target, "--part", "jpg", 5) == 1
    assert b"has __key__, seg.png, not 'jpg'" in capfdbinary.readouterr().err


def test_commands_pack_lines_pieces_and_files(tmp_path, capfdbinary):
    lines = [json.dumps({"n": n}) for n in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "b.bin").write_bytes(bytes(range(12)))
    assert fs3("records", "pack", tmp_path / "a.jsonl", tmp_path / "lines") == 0
    assert fs3("records", "pack", "--record", "4", tmp_path / "b.bin", tmp_path / "pieces") == 0
    assert fs3("records", "pack", "--as", "files", tmp_path / "b.bin", tmp_path / "files") == 0
    capfdbinary.readouterr()
    assert fs3("records", "cat", tmp_path / "lines") == 0
    assert capfdbinary.readouterr().out.decode().splitlines() == lines
    assert contents(Records(tmp_path / "pieces"), range(3)) == [
        bytes(range(4)),
        bytes(range(4, 8)),
        bytes(range(8, 12)),
    ]
    assert contents(Records(tmp_path / "files"), [0]) == [bytes(range(12))]


def test_wrong_usage_says_what_is_allowed(tmp_path, capsys):
    (tmp_path / "b.bin").write_bytes(bytes(10))
    cases = [
        (["pack", tmp_path / "b.bin"], "at least one source, and the target"),
        (["pack", tmp_path / "b.bin", tmp_path / "x"], "one of samples, lines, files, pieces"),
        (["pack", "--as", "cake", tmp_path / "b.bin", tmp_path / "x"], "--as cake"),
        (["pack", "--as", "lines", "-r", "4", tmp_path / "b.bin", tmp_path / "x"], "for pieces"),
        (["pack", "-r", "4", tmp_path / "b.bin", tmp_path / "x"], "2 bytes are left; 4 make"),
        (["pack", "--as", "lines", tmp_path / "none", tmp_path / "x"], "none"),
        (["verify", tmp_path / "b.bin"], "too few"),
    ]
    for arguments, expected in cases:
        assert fs3("records", *arguments) == 1, arguments
        assert expected in capsys.readouterr().err


def test_verify_names_damaged_records(tmp_path, capsys):
    path = write(tmp_path / "file", [b"%03d" % n for n in range(50)])
    data = bytearray(path.read_bytes())
    for number in (3, 49):
        data[HEADER_BYTES + 3 * number] ^= 1
    path.write_bytes(data)
    assert fs3("records", "verify", path) == 1
    out = capsys.readouterr().out
    assert "2 damaged" in out
    assert "record 3 is damaged\n" in out
    assert "record 49 is damaged\n" in out
