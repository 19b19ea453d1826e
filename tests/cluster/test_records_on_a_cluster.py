"""Record files on a real cluster: packed, read in batches, verified, while a storageserver dies."""

from __future__ import annotations

import pickle
import random

import pytest

from fs3.client.records.format import Header
from fs3.client.records.reader import Records
from fs3.client.records.storage import locate
from fs3.client.records.writer import RecordWriter
from fs3.client.shared_clients import close_shared_clients
from fs3.errors import Fs3Error

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def _clients_end_before_the_cluster(module_cluster):
    yield
    close_shared_clients()


@pytest.fixture
def written(cluster):
    """A set of two files in /set, of records from 0 to 99,999 bytes, and what is in it."""
    rng = random.Random(5)
    records = [rng.randbytes(rng.choice([0, 1, 700, 40_000, 99_999])) for _ in range(200)]
    for name, part in (("a", records[:150]), ("b", records[150:])):
        storage, path = locate(f"fs3:///set/{name}", str(cluster.dir))
        with RecordWriter(storage.create(path)) as writer:
            for record in part:
                writer.append(record)
    return records


def test_random_batches_are_read_back_also_after_pickling(cluster, written):
    records = Records("fs3:///set", address=cluster.dir, verify=True)
    assert len(records) == len(written)
    for reader in (records, pickle.loads(pickle.dumps(records))):
        for seed in range(5):
            numbers = random.Random(seed).choices(range(len(written)), k=64)
            assert [bytes(r) for r in reader.read(numbers)] == [written[n] for n in numbers]


def test_batch_is_one_call_of_the_client(cluster, written, monkeypatch):
    records = Records("fs3:///set", address=cluster.dir)
    records.read([0, 199])  # the indexes are there
    storage, _ = locate("fs3:///set", cluster.dir)
    client = storage._client()
    calls = []

    def counted(requests, really=client.read_batch):
        calls.append(len(requests))
        return really(requests)

    monkeypatch.setattr(client, "read_batch", counted)
    records.read(range(0, 200, 2))
    assert calls == [100]


def test_reading_asks_no_metaserver_once_files_are_open(cluster, written, monkeypatch):
    records = Records("fs3:///set", address=cluster.dir)
    records.read([0, 199])
    storage, _ = locate("fs3:///set", cluster.dir)

    def refuse(paths):
        assert paths == []
        return []

    monkeypatch.setattr(storage._client().context.metadata, "resolve_many", refuse)
    assert [bytes(r) for r in records.read(range(200))] == written
    copy = pickle.loads(pickle.dumps(records))  # opens its own
    assert [bytes(r) for r in copy.read([7, 160])] == [written[7], written[160]]


def test_records_are_read_with_a_new_client_when_theirs_was_closed(cluster, written):
    records = Records("fs3:///set", address=cluster.dir)
    records.read([1])
    close_shared_clients()
    assert bytes(records.read([150])[0]) == written[150]


def test_reads_go_on_when_a_storageserver_is_killed(cluster, written):
    records = Records("fs3:///set", address=cluster.dir, verify=True)
    rng = random.Random(7)
    for turn in range(60):
        if turn == 20:
            cluster.hold(2)
            cluster.kill(2)
        numbers = rng.choices(range(len(written)), k=32)
        assert [bytes(r) for r in records.read(numbers)] == [written[n] for n in numbers]
    cluster.release(2)


def test_commands_work_on_fs3_paths(cluster, tmp_path):
    (tmp_path / "tokens.bin").write_bytes(bytes(range(256)) * 64)
    made = cluster.run("records", "pack", "-r", "4KiB", f"{tmp_path}/tokens.bin", "fs3:/t/tokens")
    assert made.stdout.startswith("fs3:/t/tokens: 4 records"), made.stderr
    checked = cluster.run("records", "verify", "fs3:/t/tokens")
    assert "4 records (opaque, 4096 bytes each)" in checked.stdout
    shown = cluster.run("records", "cat", "fs3:/t/tokens", "3", text=False)
    assert shown.stdout == bytes(range(256)) * 16 + b"\n"
    missing = cluster.run("records", "verify", "fs3:/t/none")
    assert (missing.returncode, "NOT_FOUND" in missing.stderr) == (1, True)


def test_file_whose_writer_died_is_refused(cluster):
    storage, path = locate("fs3:///cut", cluster.dir)
    file = storage.create(path)
    writer = RecordWriter(file, Header(record_bytes=1024))
    writer.append(bytes(1024))
    file.close()
    with pytest.raises(Fs3Error, match="no footer"):
        Records("fs3:///cut", address=cluster.dir)
