"""``fs3://`` on a real cluster: fsspec's own suite for file systems, and what it does not ask."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import posixpath
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from fsspec.callbacks import Callback
from fsspec.tests import abstract

from fs3.client.adapters.fsspec_filesystem import Fs3FileSystem
from fs3.client.shared_clients import close_shared_clients
from fs3.errors import Fs3Error

pytestmark = pytest.mark.cluster


@pytest.fixture
def fs(cluster):
    """Named by its address, as in a URL."""
    yield Fs3FileSystem(address=cluster.address, cluster_id=cluster.cluster_id)
    Fs3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module", autouse=True)
def _clients_end_before_the_cluster(module_cluster):
    yield
    close_shared_clients()


@pytest.fixture
def fs_path(fs, request):
    """A directory of the test's own."""
    path = f"/{request.node.name.replace('[', '-').rstrip(']')}"
    fs.makedirs(path, exist_ok=True)
    yield path
    fs.rm(path, recursive=True)


class OnFs3(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self, cluster):
        return Fs3FileSystem(address=cluster.address, cluster_id=cluster.cluster_id)

    @pytest.fixture
    def fs_path(self, fs, request):
        path = f"/abstract-{request.node.name.split('[')[0]}"
        fs.makedirs(path, exist_ok=True)
        yield path
        fs.rm(path, recursive=True)

    @pytest.fixture
    def fs_join(self):
        return posixpath.join


@pytest.mark.long
class TestCopy(OnFs3, abstract.AbstractCopyTests):
    pass


@pytest.mark.long
class TestGet(OnFs3, abstract.AbstractGetTests):
    pass


@pytest.mark.long
class TestPut(OnFs3, abstract.AbstractPutTests):
    pass


@pytest.mark.long
class TestPipe(OnFs3, abstract.AbstractPipeTests):
    pass


@pytest.mark.long
class TestOpen(OnFs3, abstract.AbstractOpenTests):
    pass


# -- URLs and instances ----------------------------------------------------------------------------


def test_url_names_the_cluster_and_the_path(fs, fs_path, cluster, monkeypatch):
    fs.pipe_file(f"{fs_path}/file", b"content")
    monkeypatch.setenv("FS3_CLUSTER_ID", cluster.cluster_id)
    with fsspec.open(f"fs3://{cluster.address}{fs_path}/file") as file:
        assert file.read() == b"content"
    assert fs.unstrip_protocol(f"{fs_path}/file") == f"fs3://{cluster.address}{fs_path}/file"
    monkeypatch.setenv("FS3_ADDRESS", str(cluster.dir))
    with fsspec.open(f"fs3://{fs_path}/file", "r") as file:
        assert file.read() == "content"
    found, path = fsspec.url_to_fs(f"fs3://{fs_path}/file")
    assert (type(found), path) == (Fs3FileSystem, f"{fs_path}/file")


def test_url_without_a_port_is_a_path_from_the_root(cluster, monkeypatch):
    monkeypatch.setenv("FS3_ADDRESS", str(cluster.dir))
    assert fsspec.url_to_fs("fs3://data/file")[1] == "/data/file"
    assert fsspec.url_to_fs("fs3:///data/file/")[1] == "/data/file"
    assert fsspec.url_to_fs(f"fs3://{cluster.address}")[1] == "/"
    assert Fs3FileSystem._strip_protocol(["a/b", "/c"]) == ["/a/b", "/c"]


def test_instances_are_shared_by_a_thread_and_clients_by_a_process(cluster):
    def make():
        return fsspec.filesystem("fs3", address=str(cluster.dir))

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(make).result()
    assert make() is make()
    assert make() is not other
    assert make().client is other.client


def test_pickled_file_system_and_open_file_come_back(fs, fs_path):
    fs.pipe_file(f"{fs_path}/file", b"0123456789")
    assert pickle.loads(pickle.dumps(fs)).cat_file(f"{fs_path}/file") == b"0123456789"
    with fs.open(f"{fs_path}/file") as file:
        file.read(3)
        with pickle.loads(pickle.dumps(file)) as again:
            assert again.read() == b"3456789"
    with fs.open(f"{fs_path}/file", "ab") as file, pytest.raises(Fs3Error, match="'rb'"):
        pickle.dumps(file)


def _cat_in_child(fs, path, pipe):
    pipe.send(fs.cat_file(path))
    pipe.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_file_system_works_in_child_processes(fs, fs_path, method):
    fs.pipe_file(f"{fs_path}/file", b"content")
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_cat_in_child, args=(fs, f"{fs_path}/file", sender))
    child.start()
    sender.close()
    assert receiver.poll(60)
    assert receiver.recv() == b"content"
    child.join(60)
    assert child.exitcode == 0
    assert fs.cat_file(f"{fs_path}/file") == b"content"


# -- attributes ------------------------------------------------------------------------------------


def test_listing_says_the_same_as_info(fs, fs_path):
    fs.pipe({f"{fs_path}/a": b"1", f"{fs_path}/d/b": b"22"})
    assert fs.ls(fs_path) == [fs.info(f"{fs_path}/a"), fs.info(f"{fs_path}/d")]
    assert fs.ls(fs_path, detail=False) == [f"{fs_path}/a", f"{fs_path}/d"]
    assert fs.ls(f"{fs_path}/a") == [fs.info(f"{fs_path}/a")]
    assert fs.info(f"{fs_path}/d/b")["size"] == 2
    with pytest.raises(FileNotFoundError):
        fs.ls(f"{fs_path}/none")


def test_tree_is_found_walked_globbed_and_summed(fs, fs_path):
    names = ["a.txt", "d/b.txt", "d/e/c.bin"]
    fs.pipe({f"{fs_path}/{name}": bytes(3) for name in names})
    assert fs.find(fs_path) == [f"{fs_path}/{name}" for name in names]
    assert fs.glob(f"{fs_path}/**/*.txt") == [f"{fs_path}/a.txt", f"{fs_path}/d/b.txt"]
    assert fs.du(fs_path) == 9
    assert [found[1:] for found in fs.walk(fs_path)] == [
        (["d"], ["a.txt"]),
        (["e"], ["b.txt"]),
        ([], ["c.bin"]),
    ]


def test_symbolic_links_are_followed_but_not_walked(fs, fs_path):
    fs.pipe_file(f"{fs_path}/d/file", b"content")
    fs.client.symlink("d/file", f"{fs_path}/link")
    fs.client.symlink("../d", f"{fs_path}/d/loop")
    fs.client.symlink("nowhere", f"{fs_path}/dangling")
    assert fs.cat_file(f"{fs_path}/link") == b"content"
    info = fs.info(f"{fs_path}/link")
    assert (info["islink"], info["type"], info["size"]) == (True, "file", 7)
    assert info["destination"] == "d/file"
    assert f"{fs_path}/d/file" in fs.find(fs_path)
    assert not any("loop/" in path for path in fs.find(fs_path))
    assert fs.lexists(f"{fs_path}/dangling")
    assert not fs.exists(f"{fs_path}/dangling")
    fs.rm(f"{fs_path}/d", recursive=True)
    assert not fs.exists(f"{fs_path}/d")


def test_times_and_checksums_tell_of_changes(fs, fs_path):
    path = f"{fs_path}/file"
    fs.pipe_file(path, b"one")
    before = fs.checksum(path), fs.ukey(path)
    assert fs.created(path).tzinfo is not None
    assert (fs.checksum(path), fs.ukey(path)) == before
    modified = fs.modified(path)
    fs.pipe_file(path, b"two")  # as long as before, and maybe within the same tick
    assert fs.checksum(path) != before[0]
    assert fs.ukey(path) != before[1]
    assert fs.modified(path) >= modified


# -- reading ---------------------------------------------------------------------------------------


def test_ranges_of_many_files_are_read_in_one_batch(fs, fs_path, monkeypatch):
    fs.pipe({f"{fs_path}/{n}": bytes([n]) * 100 for n in range(20)})
    paths = [f"{fs_path}/{n}" for n in range(20)]
    calls = []
    batch = fs.client.read_batch

    def counted(requests):
        calls.append(requests)
        return batch(requests)

    monkeypatch.setattr(fs.client, "read_batch", counted)
    assert fs.cat_ranges(paths, 10, 15) == [bytes([n]) * 5 for n in range(20)]
    assert fs.cat_ranges(paths[:2], [-3, None], [None, -90], max_gap=4096) == [
        bytes(3),
        b"\1" * 10,
    ]
    assert fs.cat(paths) == {path: bytes([n]) * 100 for n, path in enumerate(paths)}
    assert len(calls) == 3
    assert fs.cat_file(paths[5], 98, 1000) == b"\5\5"


def test_range_that_cannot_be_read_is_an_error_in_its_place(fs, fs_path):
    fs.pipe_file(f"{fs_path}/file", b"content")
    paths = [f"{fs_path}/file", f"{fs_path}/none", f"{fs_path}"]
    good, missing, directory = fs.cat_ranges(paths, 0, 4)
    assert good == b"cont"
    assert isinstance(missing, FileNotFoundError)
    assert isinstance(directory, IsADirectoryError)
    with pytest.raises(OSError):
        fs.cat_ranges(paths, 0, 4, on_error="raise")
    assert fs.cat(paths, on_error="omit") == {paths[0]: b"content"}
    assert fs.cat(fs_path, recursive=True) == {paths[0]: b"content"}


def test_files_are_copied_out_and_in(fs, fs_path, tmp_path):
    content = os.urandom((9 << 20) + 17)
    (tmp_path / "in").write_bytes(content)
    progress = Callback()
    fs.put_file(str(tmp_path / "in"), f"{fs_path}/new/file", callback=progress)
    assert (progress.size, progress.value) == (len(content), len(content))
    with pytest.raises(FileExistsError):
        fs.put_file(str(tmp_path / "in"), f"{fs_path}/new/file", mode="create")
    fs.get_file(f"{fs_path}/new/file", str(tmp_path / "out" / "file"))
    assert (tmp_path / "out" / "file").read_bytes() == content
    with (tmp_path / "open").open("wb") as file:
        fs.get_file(f"{fs_path}/new/file", file)
    assert (tmp_path / "open").read_bytes() == content


# -- writing ---------------------------------------------------------------------------------------


def test_directories_above_a_new_file_are_made_unless_told_otherwise(fs, fs_path):
    with fs.open(f"{fs_path}/a/b/file", "w") as file:
        file.write("text\n")
    assert fs.read_text(f"{fs_path}/a/b/file") == "text\n"
    plain = Fs3FileSystem(address=fs.address, cluster_id=fs.cluster_id, auto_mkdir=False)
    with pytest.raises(FileNotFoundError):
        plain.open(f"{fs_path}/c/file", "wb")
    assert not fs.exists(f"{fs_path}/c")


def test_missing_directories_may_be_made_by_several_threads_at_once(fs, fs_path):
    paths = [f"{fs_path}/{n // 8}/{n // 4}/{n}" for n in range(64)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: fs.pipe_file(path, path.encode()), paths))
    assert fs.cat(paths) == {path: path.encode() for path in paths}


def test_append_goes_to_the_end(fs, fs_path):
    for part in (b"one ", b"two"):
        with fs.open(f"{fs_path}/file", "ab") as file:
            file.write(part)
    assert fs.cat_file(f"{fs_path}/file") == b"one two"


def test_move_is_one_step_for_files_and_directories(fs, fs_path):
    fs.pipe({f"{fs_path}/d/a": b"a", f"{fs_path}/file": b"f"})
    inode = fs.info(f"{fs_path}/file")["ino"]
    fs.rename(f"{fs_path}/file", f"{fs_path}/new/place")
    assert fs.info(f"{fs_path}/new/place")["ino"] == inode
    fs.mv(f"{fs_path}/new/place", f"{fs_path}/d")  # a directory: into it
    assert fs.info(f"{fs_path}/d/place")["ino"] == inode
    fs.mv(f"{fs_path}/d", f"{fs_path}/e", recursive=True)
    assert fs.find(f"{fs_path}/e") == [f"{fs_path}/e/a", f"{fs_path}/e/place"]
    with pytest.raises(FileNotFoundError):
        fs.mv(f"{fs_path}/none", f"{fs_path}/e")


def test_touch_makes_cuts_and_renews(fs, fs_path):
    path = f"{fs_path}/file"
    fs.touch(path)
    assert fs.info(path)["size"] == 0
    fs.pipe_file(path, b"content")
    modified = fs.modified(path)
    fs.touch(path, truncate=False)
    assert fs.cat_file(path) == b"content"
    assert fs.modified(path) > modified
    fs.touch(path)
    assert fs.cat_file(path) == b""


def test_transaction_commits_all_or_nothing(fs, fs_path):
    fs.pipe({f"{fs_path}/old": b"old", f"{fs_path}/log": b"one "})
    with fs.transaction:
        fs.pipe_file(f"{fs_path}/old", b"new")
        with fs.open(f"{fs_path}/log", "ab") as file:
            file.write(b"two")
        with fs.open(f"{fs_path}/x", "xb") as file:
            file.write(b"x")
        assert fs.cat_file(f"{fs_path}/old") == b"old"
        assert not fs.exists(f"{fs_path}/x")
    expected = {f"{fs_path}/log": b"one two", f"{fs_path}/old": b"new", f"{fs_path}/x": b"x"}
    assert fs.cat(fs_path, recursive=True) == expected

    def change_my_mind():
        with fs.transaction:
            fs.pipe_file(f"{fs_path}/old", b"newer")
            raise KeyError("no")

    with pytest.raises(KeyError):
        change_my_mind()
    assert fs.cat(fs_path, recursive=True) == expected
