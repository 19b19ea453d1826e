"""PyTorch's own DataLoader reads fs3: workers, shuffle, resumed epochs, servers that die."""

from __future__ import annotations

import io
import json
import random
import tarfile

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from fs3.client.records.format import Header, Kind
from fs3.client.records.storage import locate
from fs3.client.records.writer import RecordWriter
from fs3.client.training import (
    FilesDataset,
    RecordDataset,
    ResumableLoader,
    ShardDataset,
    ShuffledSampler,
    ragged,
    stack,
)
from fs3.errors import Fs3Error

FORKED = [(0, None), (3, "fork")]
WORKERS = [*FORKED, (2, "spawn")]  # a spawned one imports torch, which takes seconds
COUNT, NUMBERS = 500, 2000  # records, and 4-byte numbers in each


def record(number: int) -> bytes:
    """The number, then others that follow from it."""
    return torch.arange(number, number + NUMBERS, dtype=torch.int32).numpy().tobytes()


def check(batch: torch.Tensor) -> list[int]:
    """Which records these are; every byte is compared."""
    numbers = batch[:, 0]
    assert torch.equal(batch, numbers[:, None] + torch.arange(NUMBERS, dtype=torch.int32))
    return numbers.tolist()


@pytest.fixture
def records(folder):
    """A set of two files of fixed records."""
    for name, numbers in (("a", range(300)), ("b", range(300, COUNT))):
        storage, path = locate(f"{folder}/set/{name}")
        with RecordWriter(storage.create(path), Header(record_bytes=4 * NUMBERS)) as writer:
            for number in numbers:
                writer.append(record(number))
    return RecordDataset(f"{folder}/set")


def loader_of(dataset, batch_size=16, workers=(0, None), **options):
    count, method = workers
    return ResumableLoader(
        dataset, batch_size, num_workers=count, multiprocessing_context=method, **options
    )


@pytest.mark.parametrize("workers", WORKERS)
def test_shuffled_epochs_have_each_record_once(records, workers):
    loader = loader_of(records, workers=workers, collate_fn=stack(torch.int32), seed=4)
    epochs = [[number for batch in loader for number in check(batch)] for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])
    again = loader_of(records, collate_fn=stack(torch.int32), seed=4)
    assert [number for batch in again for number in check(batch)] == epochs[0]


@pytest.mark.parametrize("workers", FORKED)
def test_ranks_share_an_epoch(records, workers):
    seen = []
    for rank in range(3):
        loader = loader_of(records, 7, workers, rank=rank, ranks=3, collate_fn=stack(torch.int32))
        seen += [number for batch in loader for number in check(batch)]
    assert sorted(seen) == list(range(COUNT))


@pytest.mark.parametrize("workers", FORKED)
def test_epoch_resumed_in_its_middle_gives_exactly_the_rest(records, workers):
    options = {"workers": workers, "collate_fn": stack(torch.int32), "seed": 9}
    loader = loader_of(records, **options)
    expected = [check(batch) for batch in loader]
    second = [check(batch) for batch in loader]

    interrupted = loader_of(records, **options)
    drawn = iter(interrupted)
    first = [check(next(drawn)) for _ in range(11)]
    state = json.loads(json.dumps(interrupted.state_dict()))
    assert first == expected[:11]

    resumed = loader_of(records, **options)
    resumed.load_state_dict(state)
    assert len(resumed) == len(expected) - 11
    assert [check(batch) for batch in resumed] == expected[11:]
    assert [check(batch) for batch in resumed] == second
    # The one that was broken off goes on, too; and with other batches the rest is the same.
    del drawn
    assert [check(batch) for batch in interrupted] == expected[11:]
    other = loader_of(records, 5, collate_fn=stack(torch.int32), seed=9)
    other.load_state_dict(state)
    rest = [number for batch in expected[11:] for number in batch]
    assert [number for batch in other for number in check(batch)] == rest
    # A state that was saved after the last batch goes on with the next epoch.
    resumed = loader_of(records, **options)
    for _ in loader_of(records, **options):
        last = {**state, "position": COUNT}
    resumed.load_state_dict(last)
    assert [check(batch) for batch in resumed] == second


@pytest.mark.parametrize("workers", [0, 2])
def test_sampler_works_with_torchdata(records, workers):
    def make():
        return StatefulDataLoader(
            records,
            16,
            sampler=ShuffledSampler(COUNT, seed=2),
            num_workers=workers,
            collate_fn=stack(torch.int32),
        )

    expected = [check(batch) for batch in make()]
    loader = make()
    drawn = iter(loader)
    assert [check(next(drawn)) for _ in range(6)] == expected[:6]
    state = loader.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    assert [check(batch) for batch in resumed] == expected[6:]


def test_batch_is_one_call_and_one_piece_of_memory(records, monkeypatch):
    calls = []
    read = records.records._storage.read
    monkeypatch.setattr(
        records.records._storage, "read", lambda ranges: calls.append(len(ranges)) or read(ranges)
    )
    batch = records.__getitems__([5, 499, 5])
    assert calls == [3]
    assert check(stack(torch.int32)(batch)) == [5, 499, 5]
    assert stack()(batch).data_ptr() == batch.memory.data_ptr() == batch[0].data_ptr()
    assert records[-1].view(torch.int32)[0] == COUNT - 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_storageserver_killed_in_an_epoch_is_not_noticed(cluster, records, method):
    loader = loader_of(
        records,
        4,
        (3 if method == "fork" else 1, method),
        collate_fn=stack(torch.int32),
        timeout=60,
    )
    seen = []
    for done, batch in enumerate(loader):
        seen += check(batch)
        if done == 20:
            cluster.hold(2)
            cluster.kill(2)
    assert sorted(seen) == list(range(COUNT))
    cluster.release(2)


def test_windows_are_any_stretch_of_tokens(records, folder):
    windows = RecordDataset(f"{folder}/set", window=3)
    assert len(windows) == (300 - 2) + (200 - 2)
    batch = stack(torch.int32)(windows.__getitems__([0, 297, 298]))
    assert batch.shape == (3, 3 * NUMBERS)
    assert batch[:, [0, NUMBERS, 2 * NUMBERS]].tolist() == [
        [0, 1, 2],
        [297, 298, 299],
        [300, 301, 302],
    ]


@pytest.mark.parametrize("workers", FORKED)
def test_records_of_any_length_are_collated_ragged(folder, workers):
    rng = random.Random(3)
    written = [rng.randbytes(rng.randrange(3000)) for _ in range(100)]
    storage, path = locate(f"{folder}/file")
    with RecordWriter(storage.create(path)) as writer:
        for content in written:
            writer.append(content)
    dataset = RecordDataset(f"{folder}/file", verify=True)
    loader = loader_of(dataset, 16, workers, shuffle=False, collate_fn=ragged)
    found = [
        bytes(batch.values[start:end].numpy())
        for batch in loader
        for start, end in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
    ]
    assert found == written
    with pytest.raises(Fs3Error, match="ragged"):
        stack()(dataset.__getitems__([0, 1]))


def label_of(sample) -> tuple[str, int]:
    return bytes(sample["__key__"]).decode(), int(bytes(sample["cls"]))


@pytest.mark.parametrize("workers", FORKED)
def test_samples_of_parts_are_decoded_in_the_workers(folder, workers):
    storage, path = locate(f"{folder}/file")
    with RecordWriter(storage.create(path), Header(kind=Kind.SAMPLE)) as writer:
        for n in range(40):
            writer.append_sample({"__key__": b"k%d" % n, "cls": b"%d" % n, "jpg": bytes(n)})
    plain = RecordDataset(f"{folder}/file")
    assert plain[7] == {"__key__": b"k7", "cls": b"7", "jpg": bytes(7)}
    decoded = RecordDataset(f"{folder}/file", transform=label_of)
    found = [x for batch in loader_of(decoded, 6, workers, collate_fn=list) for x in batch]
    assert sorted(found) == sorted((f"k{n}", n) for n in range(40))


def label_of_member(sample) -> int:
    return int(bytes(sample["cls"]))


@pytest.mark.parametrize("workers", WORKERS)
def test_samples_of_tar_shards_are_reached_at_once(folder, workers):
    storage, path = locate(folder)
    for shard in range(3):
        with (
            storage.create(f"{path}/{shard}.tar") as file,
            tarfile.open(fileobj=file, mode="w|") as tar,
        ):
            for n in range(shard * 10, shard * 10 + 10):
                for part, content in (("cls", b"%d" % n), ("seg.png", bytes(n))):
                    info = tarfile.TarInfo(f"dir/{n:06d}.{part}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    shards = ShardDataset(folder)
    assert len(shards) == 30
    assert shards[29] == {"__key__": "dir/000029", "cls": b"29", "seg.png": bytes(29)}
    dataset = ShardDataset([f"{folder}/{n}.tar" for n in range(3)], transform=label_of_member)
    found = torch.cat(list(loader_of(dataset, 4, workers)))
    assert sorted(found.tolist()) == list(range(30))
    with storage.create(f"{path}/text.tar") as file:
        file.write(b"no tar" * 1000)
    with pytest.raises(Fs3Error, match="fs3 records pack"):
        ShardDataset(f"{folder}/text.tar")


@pytest.mark.parametrize("workers", FORKED)
def test_plain_files_are_read_whole_in_batches(folder, workers):
    storage, path = locate(folder)
    for n in range(50):
        with storage.create(f"{path}/{n % 5}/{n}.bin") as file:
            file.write(bytes([n]) * n)
    dataset = FilesDataset(folder, suffixes=[".bin"])
    found = dict(x for batch in loader_of(dataset, 8, workers, collate_fn=list) for x in batch)
    assert found == {f"{n % 5}/{n}.bin": bytes([n]) * n for n in range(50)}
    assert len(FilesDataset(folder, suffixes=[".txt"])) == 0


def test_plain_data_loader_works_too(records):
    batches = list(DataLoader(records, 50, shuffle=True, num_workers=2))
    numbers = [n for batch in batches for n in check(batch.view(torch.int32))]
    assert sorted(numbers) == list(range(COUNT))
