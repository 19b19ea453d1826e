"""Projects that know nothing of fs3 work on ``fs3://`` through fsspec."""

from __future__ import annotations

import fsspec
import numpy as np
import pytest

ROWS = 10_000


@pytest.fixture
def frame():
    import pandas as pd

    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "n": np.arange(ROWS),
            "x": rng.standard_normal(ROWS),
            "part": [f"p{n % 4}" for n in range(ROWS)],
        }
    )


def test_pandas_reads_what_it_wrote(folder, frame):
    import pandas as pd

    frame.to_parquet(f"{folder}/made/frame.parquet")
    frame.to_csv(f"{folder}/made/frame.csv.gz", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(f"{folder}/made/frame.parquet"), frame)
    pd.testing.assert_frame_equal(pd.read_csv(f"{folder}/made/frame.csv.gz"), frame)
    columns = pd.read_parquet(f"{folder}/made/frame.parquet", columns=["n"])
    assert columns["n"].sum() == frame["n"].sum()


def test_pyarrow_reads_a_partitioned_dataset(folder, frame):
    import pyarrow as pa
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    fs, path = fsspec.url_to_fs(folder)
    table = pa.Table.from_pandas(frame)
    pq.write_to_dataset(table, f"{path}/set", filesystem=fs, partition_cols=["part"])
    dataset = ds.dataset(f"{path}/set", filesystem=fs, format="parquet", partitioning="hive")
    assert dataset.count_rows() == ROWS
    found = dataset.to_table(filter=ds.field("part") == "p3", columns=["n"])
    assert sorted(found["n"].to_pylist()) == list(range(3, ROWS, 4))
    ds.write_dataset(
        dataset, f"{path}/again", filesystem=fs, format="arrow", existing_data_behavior="error"
    )
    assert ds.dataset(f"{path}/again", filesystem=fs, format="arrow").count_rows() == ROWS


def test_duckdb_queries_and_writes_files(folder, frame):
    import duckdb

    frame.to_parquet(f"{folder}/frame.parquet")
    fs, path = fsspec.url_to_fs(folder)
    with duckdb.connect() as database:
        database.register_filesystem(fs)
        query = f"select part, sum(n) from 'fs3://{path}/*.parquet' group by part order by part"
        expected = frame.groupby("part")["n"].sum()
        assert database.sql(query).fetchall() == list(expected.items())
        database.sql(
            f"copy (select * from 'fs3://{path}/frame.parquet' where n < 10)"
            f" to 'fs3://{path}/small.csv' (header)"
        )
    assert fs.cat_file(f"{path}/small.csv").count(b"\n") == 11


def test_zarr_stores_and_reads_an_array(folder):
    import zarr

    data = np.arange(1 << 18, dtype=np.int32).reshape(512, 512)
    array = zarr.create_array(
        store=f"{folder}/a.zarr", shape=(512, 512), chunks=(64, 64), dtype="i4"
    )
    array[:] = data
    array.attrs["unit"] = "m"
    again = zarr.open_array(store=f"{folder}/a.zarr", mode="r")
    np.testing.assert_array_equal(again[100:300, 70:80], data[100:300, 70:80])
    assert again.attrs["unit"] == "m"
    group = zarr.open_group(store=f"{folder}/g.zarr", mode="w")
    sharded = group.create_array("sharded", shape=(1024,), chunks=(16,), shards=(256,), dtype="f8")
    sharded[:] = np.linspace(0, 1, 1024)
    reopened = zarr.open_group(store=f"{folder}/g.zarr", mode="r")
    np.testing.assert_array_equal(reopened["sharded"][5:900], np.linspace(0, 1, 1024)[5:900])
    assert list(reopened.array_keys()) == ["sharded"]


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask_computes_over_many_files(folder, frame, scheduler):
    import dask
    import dask.bag
    import dask.dataframe as dd

    parts = dd.from_pandas(frame, npartitions=4)
    parts.to_parquet(f"{folder}/parts")
    assert len(fsspec.url_to_fs(folder)[0].glob(f"{folder}/parts/*.parquet")) == 4
    with dask.config.set(scheduler=scheduler):
        total = dd.read_parquet(f"{folder}/parts")["n"].sum().compute()
        assert total == frame["n"].sum()
        dask.bag.from_sequence(map(str, range(100)), npartitions=5).to_textfiles(f"{folder}/*.txt")
        read = dask.bag.read_text(f"{folder}/*.txt").map(int).sum().compute()
    assert read == sum(range(100))


def test_datasets_load_from_and_save_to_fs3(folder, frame, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    frame.to_parquet(f"{folder}/train.parquet")
    files = {"train": f"{folder}/train.parquet"}
    loaded = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path)
    )
    assert (len(loaded), loaded[77]["n"]) == (ROWS, 77)
    streamed = datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path)
    )
    assert next(iter(streamed.skip(9)))["n"] == 9
    loaded.save_to_disk(f"{folder}/saved")
    assert datasets.load_from_disk(f"{folder}/saved")["part"][:4] == ["p0", "p1", "p2", "p3"]
