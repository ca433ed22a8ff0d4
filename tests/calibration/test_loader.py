"""Batches: order, labels, bad images, bounded memory, and threads that end."""

import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from edgeship.calibration.datasets import Dataset, Item, open_dataset
from edgeship.calibration.loader import batches
from edgeship.calibration.preprocess import apply
from edgeship.toolkit.core import progress, threads
from edgeship.toolkit.core.errors import DataError, RecipeError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.core.threads import ordered_map

SMALL = Preprocess(resize=32, crop=24)


@dataclass
class Memory:
    """Store of generated images that records reads."""

    make: object
    read_count: int = 0

    def names(self):
        return []

    def read(self, name):
        self.read_count += 1
        return self.make(int(name))

    def size_bytes(self, name):
        return len(self.make(int(name)))

    def stamp(self, name):
        return name


def in_memory(count, make):
    return Dataset("memory", ("even", "odd"), tuple(Item(str(i), i % 2) for i in range(count)), Memory(make))


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("edgeship-work")]


@pytest.mark.parametrize("workers", [1, 3, None])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_are_what_one_after_the_other_gives(class_folder, workers, batch):
    dataset = open_dataset(class_folder({"a": 10, "b": 13}))
    order = np.random.default_rng(0).permutation(23).tolist()
    loaded = list(batches(dataset, order, SMALL, batch=batch, workers=workers))
    assert [len(each.labels) for each in loaded] == [batch] * (23 // batch) + [23 % batch] * (23 % batch > 0)
    assert np.concatenate([each.indices for each in loaded]).tolist() == order
    assert np.concatenate([each.labels for each in loaded]).tolist() == [int(index >= 10) for index in order]
    images = np.concatenate([each.images for each in loaded])
    assert images.dtype == np.float32
    assert (images == np.stack([apply(dataset.image(index), SMALL) for index in order])).all()


def test_unknown_labels_are_minus_one(tmp_path, jpeg):
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (batch,) = batches(open_dataset(tmp_path), [0], SMALL, batch=4)
    assert batch.labels.tolist() == [-1]


def test_nothing_to_load_gives_nothing(class_folder):
    assert list(batches(open_dataset(class_folder({"a": 1, "b": 1})), [], SMALL, batch=2)) == []


def test_a_bad_image_is_named_and_the_threads_end(class_folder):
    folder = class_folder({"a": 20, "b": 1})
    (folder / "a" / "011.jpg").write_bytes((folder / "a" / "012.jpg").read_bytes()[:-100])
    dataset = open_dataset(folder)
    with pytest.raises(DataError, match=r"a/011\.jpg cannot be decoded: .*truncated"):
        list(batches(dataset, range(21), SMALL, batch=4))
    assert not data_threads()


def test_skipped_images_are_counted_and_the_batches_stay_full(class_folder):
    folder = class_folder({"a": 20, "b": 1})
    for name in ("a/000.jpg", "a/007.jpg", "b/000.jpg"):
        (folder / name).write_bytes(b"\xff\xd8 no more")
    loading = batches(open_dataset(folder), range(21), SMALL, batch=5, skip_bad=True)
    loaded = list(loading)
    assert [len(each.indices) for each in loaded] == [5, 5, 5, 3]
    assert loading.skipped == ["a/000.jpg", "a/007.jpg", "b/000.jpg"]
    assert np.concatenate([each.indices for each in loaded]).tolist() == [1, 2, 3, 4, 5, 6, *range(8, 20)]


def test_only_bad_images_are_an_error_even_when_skipping():
    dataset = in_memory(5, lambda index: b"nothing")
    with pytest.raises(DataError, match="none of the 5 images"):
        list(batches(dataset, range(5), SMALL, batch=2, skip_bad=True))


def test_a_small_image_is_never_skipped_silently(jpeg):
    dataset = in_memory(3, lambda index: jpeg(index, (20, 20)))
    with pytest.raises(DataError, match="smaller than the crop"):
        list(batches(dataset, range(3), Preprocess(resize=None, crop=24), batch=2, skip_bad=True))


def test_a_batch_of_zero_is_refused():
    with pytest.raises(RecipeError, match="batch of 0"):
        batches(in_memory(1, bytes), [0], SMALL, batch=0)


def test_progress_counts_images(class_folder):
    reports = []
    with progress.listening(lambda *args: reports.append(args)):
        list(batches(open_dataset(class_folder({"a": 3, "b": 2})), range(5), SMALL, batch=2, label="reading"))
    assert reports == [("reading", 2, 5), ("reading", 4, 5), ("reading", 5, 5)]


def test_reading_runs_ahead_only_a_little(jpeg):
    data = jpeg(0)
    dataset = in_memory(1000, lambda index: data)
    with closing(batches(dataset, range(1000), SMALL, batch=4, workers=2)) as loading:
        next(loading)
        time.sleep(0.2)
        assert dataset.store.read_count <= 8 * threads.CHUNK
    assert not data_threads()


def test_memory_does_not_grow_with_the_number_of_images(encode):
    data = encode(Image.new("RGB", (64, 64), "red"))

    def peak(count):
        dataset = in_memory(count, lambda index: data)
        tracemalloc.start()
        for _ in batches(dataset, range(count), Preprocess(64, 64), batch=8, workers=2):
            pass
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    peak(10)
    few = max(peak(100) for _ in range(8))  # the workers' lead is random: repeat
    many = min(peak(800) for _ in range(3))  # 800 images would be 39 MB, in every repetition
    assert many < 1.25 * few + 400_000
    assert many < 8_000_000


def test_works_from_a_thread(class_folder):
    dataset, loaded = open_dataset(class_folder({"a": 3, "b": 2})), []
    thread = threading.Thread(target=lambda: loaded.extend(batches(dataset, range(5), SMALL, batch=5)))
    thread.start()
    thread.join(300)
    assert loaded[0].images.shape == (5, 3, 24, 24)


def test_leaving_the_loop_drops_what_has_not_begun():
    begun = []

    def slow(index):
        begun.append(index)
        time.sleep(0.005)
        return index

    results = ordered_map(slow, range(10_000), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    assert not data_threads()
    assert len(begun) < 100


def test_results_keep_their_order_when_work_takes_unequal_time():
    def work(index):
        time.sleep(0.002 * (index % 17 == 0))
        return index * index

    assert list(ordered_map(work, range(100), workers=4)) == [index * index for index in range(100)]


def test_ctrl_c_ends_the_process_at_once(tmp_path):
    script = """
import time
from edgeship.toolkit.core.threads import ordered_map
def slow(index):
    if index == 8: print("begun", flush=True)
    time.sleep(0.02)
    return index
for _ in ordered_map(slow, range(100_000), workers=2): pass
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=200)  # the loop would last for 1000 s
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors  # where a thread starts, Python turns it into RuntimeError
