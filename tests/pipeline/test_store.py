"""The store: atomic, shared between processes, content-addressed."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgeship.toolkit.core.artifact import read_sealed, write_sealed
from edgeship.toolkit.core.errors import ToolkitError
from edgeship.toolkit.pipeline import store as store_module
from edgeship.toolkit.pipeline.fingerprints import existing, fingerprint
from edgeship.toolkit.pipeline.store import Store, default_root, key_of


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    with store.in_use():
        yield store


def write(text):
    return lambda out, _work_dir: (out / "a.txt").write_text(text, encoding="utf-8")


def test_made_once_then_found(store):
    entry, made = store.make("load", "k1", write("one"))
    assert made and (entry.folder / "a.txt").read_text() == "one"
    again, made = store.make("load", "k1", write("never called"))
    assert not made and again.folder == entry.folder and again.digest == entry.digest
    assert entry.files == {"a.txt": 3} and entry.size_bytes == 3


def test_equal_content_is_kept_once_and_has_one_digest(store):
    first, _ = store.make("load", "k1", write("same"))
    second, _ = store.make("load", "k2", write("same"))
    other, _ = store.make("load", "k3", write("other"))
    assert first.folder == second.folder != other.folder
    assert first.digest == second.digest != other.digest


def test_what_a_killed_run_left_is_no_part_of_the_next_result(store):
    left = store.root / "tmp" / "k"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    entry, _ = store.make("load", "k", write("whole"))
    assert entry.files == {"a.txt": 5}


def test_redo_replaces_the_result_and_keeps_the_old_folder_for_its_readers(store):
    old, _ = store.make("bench", "k", write("1"))
    new, made = store.make("bench", "k", write("2"), redo=True)
    assert made and (old.folder / "a.txt").read_text() == "1"
    assert store.find("bench", "k").digest == new.digest != old.digest


@pytest.mark.parametrize("failure", [ValueError("bad"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failure_leaves_nothing(store, failure):
    def work(out, _work_dir):
        (out / "half").write_text("x")
        raise failure

    with pytest.raises(type(failure)):
        store.make("load", "k", work)
    assert store.find("load", "k") is None
    assert not list((store.root / "tmp").iterdir())
    assert not list((store.root / "objects").iterdir())
    _, made = store.make("load", "k", write("whole"))
    assert made


def test_long_work_goes_on_where_it_failed(store):
    def work(out, work_dir):
        state = work_dir / "state"
        if not state.exists():
            state.write_text("half")
            raise ValueError("cut off")
        (out / "a.txt").write_text(state.read_text())

    with pytest.raises(ValueError, match="cut off"):
        store.make("load", "k", work)
    entry, _ = store.make("load", "k", work)
    assert (entry.folder / "a.txt").read_text() == "half"
    assert not list((store.root / "partial").iterdir())


@pytest.mark.parametrize("damage", ["cut", "gone", "extra"])
def test_a_damaged_entry_counts_as_absent_and_is_made_again(store, damage):
    entry, _ = store.make("load", "k", write("whole"))
    file = entry.folder / "a.txt"
    if damage == "cut":
        file.write_text("who")
    elif damage == "gone":
        file.unlink()
    else:
        (entry.folder / "b.txt").write_text("")
    assert store.find("load", "k") is None
    again, made = store.make("load", "k", write("whole"))
    assert made and again.folder == entry.folder and (again.folder / "a.txt").read_text() == "whole"
    assert not (again.folder / "b.txt").exists()


@pytest.mark.parametrize("position", [0, 2, -1])
def test_a_flipped_bit_is_noticed_by_the_time_of_the_file(store, position, caplog):
    entry, _ = store.make("load", "k", write("whole"))
    content = bytearray(b"whole")
    content[position] ^= 1
    (entry.folder / "a.txt").write_bytes(content)
    os.utime(entry.folder / "a.txt", (1, 1))  # a file system's times may be as coarse as 10 ms
    assert store.find("load", "k") is None
    assert "load is damaged" in caplog.text
    again, made = store.make("load", "k", write("whole"))
    assert made and again.folder == entry.folder and (again.folder / "a.txt").read_text() == "whole"


def _flip_without_a_trace(file, record):
    """Change a byte and give the record the new times: a disk that loses bits changes no time."""
    file.write_bytes(b"whale")
    status = file.stat()
    stamps = {file.name: [status.st_mtime_ns, status.st_ctime_ns]}
    write_sealed(record, {**read_sealed(record), "stamps": stamps})


def test_content_is_verified_on_request_and_at_an_interval(store):
    entry, _ = store.make("load", "k", write("whole"))
    record = store.root / "keys" / "load-k.json"
    _flip_without_a_trace(entry.folder / "a.txt", record)
    assert store.find("load", "k") is not None
    old = time.time() - (store_module.VERIFY_DAYS + 0.1) * 86_400
    write_sealed(record, {**read_sealed(record), "verified_at": old})
    assert store.find("load", "k") is None
    assert not record.exists() and not entry.folder.exists()

    entry, _ = store.make("load", "k", write("whole"))
    _flip_without_a_trace(entry.folder / "a.txt", record)
    store.make("load", "other", write("intact"))
    assert store.verify() == (1, 1)
    assert [each.key for each in store.entries()] == ["other"]


def test_equal_content_replaces_a_damaged_object(store):
    entry, _ = store.make("load", "k1", write("whole"))
    (entry.folder / "a.txt").write_text("whale")
    again, _ = store.make("load", "k2", write("whole"))
    assert again.folder == entry.folder and (again.folder / "a.txt").read_text() == "whole"


def test_a_file_that_was_touched_but_not_changed_stays(store):
    entry, _ = store.make("load", "k", write("whole"))
    os.utime(entry.folder / "a.txt", (1, 1))
    assert store.find("load", "k") == entry
    assert read_sealed(store.root / "keys" / "load-k.json")["stamps"]["a.txt"][0] == 10**9


@pytest.mark.parametrize("field", ["stage", "key", "digest", "seconds", "made_at", "files", "verified_at"])
def test_a_changed_field_of_a_record_counts_as_absent(store, field):
    store.make("load", "k", write("x"))
    record = store.root / "keys" / "load-k.json"
    content = json.loads(record.read_text())
    content["content"][field] = 7
    record.write_text(json.dumps(content))
    assert store.find("load", "k") is None and store.entries() == []


def test_a_garbled_record_counts_as_absent(store):
    store.make("load", "k", write("x"))
    (store.root / "keys" / "load-k.json").write_text("{")
    assert store.find("load", "k") is None
    assert store.entries() == []
    assert store.make("load", "k", write("x"))[1]


def _make_slowly(root, counter, started, awaited):
    store = Store(root)
    with store.in_use():

        def work(out, _work_dir):
            started.set()
            with counter.get_lock():
                counter.value += 1
            assert awaited.wait(120)
            (out / "a.txt").write_text("x")

        store.make("load", "k", work)


def test_two_processes_do_the_work_once(store):
    context = multiprocessing.get_context("fork")
    shared = counter, started, awaited = context.Value("i", 0), context.Event(), context.Event()
    workers = [context.Process(target=_make_slowly, args=(store.root, *shared)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert started.wait(120)
    calls = []

    def waiting():
        calls.append(True)
        awaited.set()

    entry, made = store.make("load", "k", write("not called"), waiting=waiting)
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert counter.value == 1 and not made and calls == [True]
    assert (entry.folder / "a.txt").read_text() == "x"


def test_runs_that_store_the_same_content_at_once_disturb_no_other(tmp_path):
    store, together = Store(tmp_path / "store"), threading.Barrier(4)

    def make(number):
        def work(out, _work_dir):
            for name in "abcdef":
                (out / name).write_text(f"{number // 4}")
            together.wait(60)

        return store.make("load", f"k{number}", work)[0]

    with store.in_use(), ThreadPoolExecutor(4) as pool:
        entries = list(pool.map(make, range(80)))
        assert all(store.find("load", entry.key) == entry for entry in entries)


def test_a_store_is_listed_and_verified_while_a_run_works_in_it(store):
    entry, _ = store.make("load", "k", write("whole"))
    record = store.root / "keys" / "load-k.json"
    unfinished = record.with_name(f".{record.name[:24]}.x.json")  # as core.artifact writes it
    unfinished.write_text("{")
    assert store.entries() == [entry] and store.verify() == (1, 0) and unfinished.exists()
    done = threading.Event()

    def work():
        while not done.is_set():
            folder = store.root / "tmp" / "k2"
            folder.mkdir()
            for number in range(20):
                (folder / f"{number}").write_text("x")
            shutil.rmtree(folder)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        sizes = [store.size_bytes() for _ in range(200)]
    finally:
        done.set()
        thread.join()
    assert max(sizes) - min(sizes) <= 20


KILLED = """
    import sys, time
    from pathlib import Path
    from edgeship.toolkit.pipeline.store import Store
    store = Store(Path(sys.argv[1]))
    with store.in_use():
        def work(out, _work_dir):
            (out / "half").write_text("x")
            print("working", flush=True)
            time.sleep(60)
        store.make("load", sys.argv[2], work)
"""


def test_what_a_killed_run_left_is_removed_but_not_what_a_living_one_works_on(tmp_path):
    root = tmp_path / "store"
    run = [sys.executable, "-c", textwrap.dedent(KILLED), str(root)]
    with (
        subprocess.Popen([*run, "dead"], stdout=subprocess.PIPE) as dead,
        subprocess.Popen([*run, "alive"], stdout=subprocess.PIPE) as alive,
    ):
        assert dead.stdout.readline() == alive.stdout.readline() == b"working\n"
        os.kill(dead.pid, signal.SIGKILL)
        dead.wait()
        assert (root / "tmp" / "dead").is_dir()
        store = Store(root)
        with store.in_use():
            assert not (root / "tmp" / "dead").exists()
            assert (root / "tmp" / "alive" / "half").is_file()
            assert store.make("load", "dead", write("now"))[1]
        with pytest.raises(ToolkitError, match="a run is using"):
            store.clear()
        alive.kill()
    assert store.clear() > 0 and store.entries() == []


def test_gc_removes_what_nothing_leads_to_and_what_is_old(tmp_path):
    store = Store(tmp_path)
    with store.in_use():
        store.make("bench", "k", write("old"))
        kept, _ = store.make("bench", "k", write("newer"), redo=True)
    assert store.gc() == 3
    assert [entry.digest for entry in store.entries()] == [kept.digest]
    assert store.gc(older_than_days=1) == 0
    assert store.gc(older_than_days=-1) > 0
    assert store.entries() == []


def test_only_a_store_is_cleared(tmp_path):
    (tmp_path / "thesis.doc").write_text("x")
    with pytest.raises(ToolkitError, match="is not a store"):
        Store(tmp_path).clear()
    assert (tmp_path / "thesis.doc").exists()


def test_a_place_that_cannot_be_a_store_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(ToolkitError, match="cannot keep results in") as caught,
        Store(tmp_path / "file").in_use(),
    ):
        pass
    assert "--store" in caught.value.hint


def test_where_the_store_is(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGESHIP_STORE", "/own")
    assert str(default_root()) == "/own"
    monkeypatch.delenv("EDGESHIP_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "edgeship" / "store"


def test_keys_depend_on_every_part():
    keys = {
        key_of(stage="a", options={"x": 1}),
        key_of(stage="a", options={"x": 2}),
        key_of(stage="b", options={}),
    }
    assert len(keys) == 3
    assert key_of(stage="a", options={"x": 1, "y": 2}) == key_of(options={"y": 2, "x": 1}, stage="a")


class TestFingerprint:
    def tree(self, root):
        (root / "cat").mkdir(parents=True)
        (root / "cat" / "1.png").write_bytes(b"one")
        (root / "2.png").write_bytes(b"two")
        return root

    def test_the_place_does_not_matter_but_names_and_contents_below_do(self, tmp_path):
        first, second = self.tree(tmp_path / "a"), self.tree(tmp_path / "b")
        memory = tmp_path / "memory"
        print_ = fingerprint(first, memory).content
        assert print_ == fingerprint(second, memory).content == fingerprint(first, memory).content
        (second / "cat" / "1.png").write_bytes(b"eno")
        assert fingerprint(second, memory).content != print_
        (first / "2.png").rename(first / "3.png")
        assert fingerprint(first, memory).content != print_

    def test_an_unchanged_file_is_not_read_again(self, tmp_path, monkeypatch):
        file = tmp_path / "big.zip"
        file.write_bytes(b"content")
        os.utime(file, (1, 1))
        before = fingerprint(file, tmp_path / "memory").content
        monkeypatch.setattr(
            "edgeship.toolkit.pipeline.fingerprints.sha256_file", lambda path: pytest.fail("read again")
        )
        assert fingerprint(file, tmp_path / "memory").content == before

    def test_a_file_that_changes_within_its_clock_tick_is_noticed(self, tmp_path):
        file = tmp_path / "a.bin"
        file.write_bytes(b"one")
        status = file.stat()
        before = fingerprint(file, tmp_path / "memory").content
        file.write_bytes(b"two")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert fingerprint(file, tmp_path / "memory").content != before

    def test_the_images_a_csv_lists_count(self, tmp_path):
        (tmp_path / "1.png").write_bytes(b"one")
        (tmp_path / "other.png").write_bytes(b"x")
        (tmp_path / "list.csv").write_text("file,label\n1.png,3\n")
        before = fingerprint(tmp_path / "list.csv", tmp_path / "memory").content
        (tmp_path / "other.png").write_bytes(b"y")
        assert fingerprint(tmp_path / "list.csv", tmp_path / "memory").content == before
        (tmp_path / "1.png").write_bytes(b"two")
        assert fingerprint(tmp_path / "list.csv", tmp_path / "memory").content != before

    def test_links_that_lead_back_up_end(self, tmp_path):
        root = self.tree(tmp_path / "a")
        (root / "cat" / "up").symlink_to(root)
        assert fingerprint(root, tmp_path / "memory").content

    def test_what_a_text_names(self, tmp_path):
        (tmp_path / "data.zip").write_bytes(b"")
        (tmp_path / "folder").mkdir()
        assert existing(f"{tmp_path}/data.zip/test") == (tmp_path / "data.zip", "test")
        assert existing(f"{tmp_path}/folder") == (tmp_path / "folder", ".")
        assert existing(f"{tmp_path}/folder/nothing") is None


@pytest.mark.parametrize(("age_s", "kept"), [(2 * 86_400 - 60, True), (2 * 86_400 + 60, False)])
def test_the_age_at_which_a_stage_goes(tmp_path, age_s, kept):
    store = Store(tmp_path)
    with store.in_use():
        entry, _ = store.make("bench", "k", write("x"))
    record = tmp_path / "keys" / "bench-k.json"
    write_sealed(record, {**read_sealed(record), "made_at": time.time() - age_s})
    store.gc(older_than_days=2)
    assert (store.find("bench", "k") is not None) == entry.folder.exists() == record.exists() == kept


def test_the_seconds_that_the_work_took_are_kept(store):
    def work(out, _work_dir):
        time.sleep(0.02)

    entry, _ = store.make("bench", "k", work)
    assert 0.02 <= entry.seconds < 60
    assert store.find("bench", "k").seconds == entry.seconds


def test_the_store_is_marked_as_a_cache_for_back_up_programs(store):
    """The signature is that of bford.info/cachedir."""
    assert (store.root / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
