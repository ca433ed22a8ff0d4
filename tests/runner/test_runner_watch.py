"""The monitor on devices: no alarm on clean frames, an alarm with its cause, a small state file."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from edgeship.targets.runner import monitor, watch
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.prove import watching
from edgeship.toolkit.prove.faults import CATALOGUE
from edgeship.toolkit.prove.pipeline import normalized

HOW = Preprocess(48, 48)
LABELS = ["kiwi", "lime", "plum"]


def images(count, seed):
    """Return images of smooth colours, all of one kind."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        small = Image.fromarray((rng.normal(120, 45, (6, 6, 3)).clip(0, 255)).astype(np.uint8))
        rows.append(np.asarray(small.resize((48, 48), Image.Resampling.BICUBIC)))
    noisy = np.stack(rows) + rng.normal(0, 4, (count, 48, 48, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def logits(pixels):
    """Return logits of a classifier by colour."""
    means = pixels.reshape(len(pixels), -1, 3).mean(1)
    return ((means - means.mean(1, keepdims=True)) / 5).astype(np.float32)


@pytest.fixture(autouse=True)
def memory(tmp_path_factory, monkeypatch):
    """Return the folder that stands for the tmpfs."""
    folder = tmp_path_factory.mktemp("shm")
    monkeypatch.setattr(watch, "MEMORY", str(folder))
    return folder


@pytest.fixture(scope="module")
def reference():
    clean = images(800, 0)
    return watching.reference([clean[:300], clean[300:]], logits(clean), HOW)


def watched(reference, inputs, outputs, form="nchw", path=None):
    made = watch.Watch(reference, form, HOW.mean, HOW.std, LABELS, path)
    made.observe(inputs, outputs, 1e9)
    return made


def test_clean_frames_raise_no_alarm_in_any_form(reference):
    frames = images(640, 1)
    for form, inputs in (("pixels", frames), ("nchw", normalized(frames, HOW)),
                         ("nhwc", normalized(frames, HOW).transpose(0, 2, 3, 1))):  # fmt: skip
        made = watched(reference, inputs, logits(frames), form)
        assert made.status()["frames"] == 640
        assert made.alarm is None
        assert made.status()["evidence"] < 1e4


@pytest.mark.parametrize("name", [*watching.CHANGES])
def test_a_change_of_the_light_is_named(reference, name):
    changed = watching.CHANGES[name][1](images(320, 2))
    made = watched(reference, normalized(changed, HOW), logits(changed))
    assert made.alarm is not None
    assert made.alarm["frame"] <= 300
    assert made.alarm["cause"] == name


@pytest.mark.parametrize("name", ["bgr", "not-normalized", "mean-missing", "std-missing", "normalized-twice"])
def test_a_fault_of_the_application_is_named(reference, name):
    fault = next(each for each in CATALOGUE if each.name == name)
    frames = (images(320, 3) * [1, 0.9, 0.75]).astype(np.uint8)  # colours that BGR would exchange
    clean = (images(800, 0) * [1, 0.9, 0.75]).astype(np.uint8)
    tinted = watching.reference([clean], logits(clean), HOW)
    if fault.step == "colour":
        inputs = normalized(np.stack([fault.apply(each) for each in frames]), HOW)
    else:
        inputs = fault.apply(frames, HOW)
    made = watched(tinted, inputs, logits(frames))
    assert made.alarm is not None
    assert made.alarm["cause"] == name


def test_another_mix_of_classes_is_named(reference):
    frames = images(4000, 4)
    only = frames[logits(frames).argmax(1) == 2]
    same = images(len(only), 5)
    made = watched(reference, normalized(same, HOW), logits(only))
    assert made.alarm is not None
    assert made.alarm["cause"] == "class-mix"
    assert "plum" in made.alarm["title"]


def test_bets_have_a_mean_of_one_at_most_on_the_reference(reference):
    clean = images(800, 0)
    rows = monitor.statistics(np.stack([monitor.sample(each) for each in clean]), logits(clean))
    means = np.exp(monitor.Detector(reference).log_bets(rows, logits(clean).argmax(1))).mean(0)
    assert means.max() <= 1
    assert means.min() > 0.8  # and lose little on clean frames


def test_sums_follow_shiryaev_and_roberts_frame_by_frame(reference):
    detector = monitor.Detector(reference)
    logs = np.random.default_rng(0).normal(0, 0.3, (64, len(detector.sums)))
    expected, largest = np.zeros(logs.shape[1]), 0.0
    for row in logs:
        expected = np.exp(row) * (expected + 1)
        largest = max(largest, expected.mean())
    assert detector.add(logs[:10]) <= detector.add(logs[10:]) * (1 + 1e-9) or largest
    np.testing.assert_allclose(detector.sums, expected, rtol=1e-9)


@pytest.mark.parametrize("interrupted", [1, 10])
def test_the_time_of_the_monitor_is_a_hundredth_of_that_of_inference(reference, monkeypatch, interrupted):
    frame, own_s, calls = images(1, 1), 1e-3, 20_000
    clock = iter(np.arange(2 * calls) * own_s)
    monkeypatch.setattr(watch.time, "thread_time", lambda: next(clock))
    made = watch.Watch(reference, "pixels", HOW.mean, HOW.std, LABELS, None)
    watched = 0
    for number in range(calls):
        if not made.skips():
            made.observe(frame, logits(frame), 1e-2 * (interrupted if number % 4 else 1))
            watched += 1
    assert watched * own_s == pytest.approx(watch.SHARE * calls * 1e-2, rel=0.05)
    assert made.status()["frames"] == watched // monitor.BLOCK * monitor.BLOCK


def test_a_slow_engine_has_every_frame_watched(reference):
    frame = images(1, 1)
    made = watch.Watch(reference, "pixels", HOW.mean, HOW.std, LABELS, None)
    for _ in range(monitor.BLOCK):
        assert not made.skips()
        made.observe(frame, logits(frame), 10.0)
    assert made.status()["frames"] == monitor.BLOCK


def test_the_state_is_small_continues_and_starts_again_when_it_is_removed(reference, tmp_path):
    path = str(tmp_path / watch.STATE)
    frames, dark = images(320, 1), watching.CHANGES["dark"][1](images(320, 2))
    first = watched(reference, frames, logits(frames), "pixels", path)
    first.close()
    assert (tmp_path / watch.STATE).stat().st_size < 4096
    second = watched(reference, dark, logits(dark), "pixels", path)
    assert second.status()["frames"] == 640
    assert second.alarm["cause"] == "dark"
    stored = json.loads((tmp_path / watch.STATE).read_text())
    assert stored["alarm"] == second.alarm
    assert (tmp_path / watch.STATE).stat().st_size < 4096
    assert [each.name for each in tmp_path.iterdir()] == [watch.STATE]
    (tmp_path / watch.STATE).unlink()
    second.close()
    assert second.alarm is None
    for damaged in ("", "{", "[]", '{"reference": 1}', json.dumps({**stored, "sums": ["x"]})):
        (tmp_path / watch.STATE).write_text(damaged)
        assert watched(reference, frames[:1], logits(frames[:1]), "pixels", path).status()["frames"] == 0
    other = watch.Watch({**reference, "images": 900}, "pixels", HOW.mean, HOW.std, LABELS, path)
    assert other.status()["frames"] == 0
    nowhere = watched(reference, frames, logits(frames), "pixels", str(tmp_path / "none" / "x.json"))
    nowhere.close()
    assert nowhere.status()["frames"] == 320


def test_a_day_writes_under_4_kib_to_the_disk_and_the_fresh_state_is_in_memory(
    reference, tmp_path, memory, monkeypatch
):
    path, clock, written = tmp_path / watch.STATE, [1e9], []
    replace = watch._replace

    def counted(target, text):
        if target == str(path):
            written.append(len(text))
        done = replace(target, text)
        os.utime(target, (clock[0], clock[0]))
        return done

    monkeypatch.setattr(watch, "_replace", counted)
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(watch.time, "time", lambda: clock[0])
    frames = images(64, 1)
    made = watch.Watch(reference, "pixels", HOW.mean, HOW.std, LABELS, str(path))
    for _ in range(24 * 6):  # two days, every 20 minutes
        clock[0] += 1200
        made.observe(frames, logits(frames), 1e9)
    assert 2 <= len(written) <= 5
    assert sum(written) / 2 <= 4096
    [fresh] = memory.iterdir()
    stored, state = json.loads(path.read_text()), json.loads(fresh.read_text())
    assert stored["memory"] == fresh.name
    assert state["frames"] == 144 * 64 > stored["frames"]
    again = watch.Watch(reference, "pixels", HOW.mean, HOW.std, LABELS, str(path))
    assert again.status()["frames"] == 144 * 64  # an application that starts again loses nothing
    made.close()
    assert len(written) <= 5  # nor does its end write to the disk
    dark = watching.CHANGES["dark"][1](images(320, 2))
    again.observe(dark, logits(dark), 1e9)
    assert json.loads(path.read_text())["alarm"] == again.alarm is not None  # at once


def test_links_in_memory_are_not_followed_and_another_users_state_is_not_read(
    reference, tmp_path, memory, monkeypatch
):
    path, victim = tmp_path / watch.STATE, tmp_path / "victim"
    victim.write_text("mine")
    frames = images(64, 1)
    first = watched(reference, frames, logits(frames), "pixels", str(path))
    first.close()
    [fresh] = memory.iterdir()
    (memory / f"{fresh.name}.{os.getpid()}").symlink_to(victim)
    first.close()
    fresh.unlink()
    fresh.symlink_to(victim)
    first.close()
    assert victim.read_text() == "mine"
    assert not fresh.is_symlink()
    fresh.write_text(fresh.read_text().replace('"frames":64', '"frames":6400'))
    assert watch.Watch(reference, "pixels", HOW.mean, HOW.std, LABELS, str(path)).status()["frames"] == 6400
    own = path.stat()
    with monkeypatch.context() as another:  # of another user
        other = os.stat_result((*own[:4], own.st_uid + 1, *own[5:10]))
        another.setattr(watch.os, "fstat", lambda _: other)
        made = watch.Watch(reference, "pixels", HOW.mean, HOW.std, LABELS, str(path))
    assert made.status()["frames"] == 64


def test_a_release_is_watched_and_a_damaged_reference_is_none(tmp_path, reference):
    class Described:
        mean, std, labels = HOW.mean, HOW.std, LABELS

    for damaged in (None, {}, [], {"images": 1}, {**reference, "edges": "x"}):
        Described.monitor = damaged
        assert watch.open_watch(Described, "nchw", str(tmp_path / "x")) is None
    (tmp_path / "release").mkdir()
    (tmp_path / "current").symlink_to("release")
    assert watch.state_of(str(tmp_path / "current")) == str(tmp_path / watch.STATE)
    assert watch.state_of(str(tmp_path / "release")) is None
    assert watch.state_of(str(tmp_path / "none")) is None


def test_few_images_give_no_reference():
    few = images(20, 0)
    assert watching.reference([few], logits(few), HOW) is None
