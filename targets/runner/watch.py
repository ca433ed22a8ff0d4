"""Watch a classifier: statistics of its frames, an alarm with its likely cause, and a state file of under 4 KiB."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from typing import Any

import numpy as np

from . import monitor

STATE = "monitor.json"  # next to `current` of a release
SCHEMA = 1
MEMORY = "/dev/shm"  # a tmpfs: the state there is fresh, and costs no writes of the disk
EVERY_S = 60.0  # between two writes there
STORED_EVERY_S = 57_600.0  # between two writes to the disk: under 4 KiB a day
SHARE, MOST_BUDGET_S = 0.002, 0.005  # of the time of inference; seconds saved up
SLOWER = 1.001  # by how much a frame may last longer than the shortest one before it counts as interrupted
ALIKE = 0.7  # least cosine between a change and that of a cause
SMALL = 0.4  # norm of a change of pixels, in standard deviations, that leaves the classes as the cause
PIXELS = len(monitor.NAMES) - 2  # statistics of pixels; two are of logits


def state_of(path: str) -> str | None:
    """Return the state file of a release, next to its link `current`; None for other engines."""
    path = os.path.abspath(path)
    return os.path.join(os.path.dirname(path), STATE) if os.path.islink(path) and os.path.isdir(path) else None


def open_watch(description: Any, form: str, path: str) -> Watch | None:
    """Return the monitor of an engine; None if its model.json has no reference, or a damaged one.

    Args:
        description: `Description` of the engine; None: unknown.
        form: Form of its inputs: pixels, nchw or nhwc.
        path: State file.
    """
    if description is None or description.monitor is None:
        return None
    try:
        return Watch(description.monitor, form, description.mean, description.std, description.labels, path)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None


class Watch:
    """The monitor of one engine.

    Args:
        reference: `monitor` of model.json.
        form: Form of the inputs: pixels, nchw or nhwc.
        mean: Mean of each channel, of pixels in 0..1.
        std: Standard deviation of each channel.
        labels: Class names.
        path: State file; None: the state is lost at the end.

    Attributes:
        alarm: Cause, frame and time of the first alarm; None without one. It stays until the state file is removed
            or a release with another reference is live.
    """

    def __init__(
        self, reference: dict[str, Any], form: str, mean: Any, std: Any, labels: list[str], path: str | None
    ) -> None:
        self._form, self._path, self._labels = form, path, labels
        self._reference, self._stored = reference, False
        self._memory = f"edgeship-{hashlib.sha256(os.path.abspath(path or '').encode()).hexdigest()[:16]}.json"
        self._mean, self._std = np.array(mean, np.float32), np.array(std, np.float32)
        self._causes = reference.get("causes", [])
        self._detector = monitor.Detector(reference)
        self._samples: list[Any] = []
        self._logits: list[Any] = []
        self._digest = hashlib.sha256(json.dumps(reference, sort_keys=True).encode()).hexdigest()[:16]
        self._written = time.monotonic()
        self._left_out = 0  # calls
        self._budget_s, self._frame_s = 0.0, float("inf")  # saved up; of the shortest of recent frames
        self.alarm: dict[str, Any] | None = None
        self._restore()

    def skips(self) -> bool:
        """Return True if the next call is left out; no clock is read for it."""
        self._left_out -= 1
        return self._left_out >= 0

    def observe(self, inputs: Any, logits: Any, seconds: float) -> None:
        """Add frames; if that took over `SHARE` of the time of inference, `skips` leaves out the next calls.

        Other work on the processors prolongs inference: the shortest of recent frames counts, and the processor
        time of the monitor.

        Args:
            inputs: Network inputs (N, ...).
            logits: (N, classes).
            seconds: Time that their inference took.
        """
        start = time.thread_time()
        count = len(inputs) or 1
        self._frame_s = min(max(seconds / count, 1e-6), SLOWER * self._frame_s)
        share_s = SHARE * count * self._frame_s
        first = self._form == "nchw"
        for image, row in zip(inputs, logits):
            self._samples.append(monitor.sample(image, channels_first=first))
            self._logits.append(row)
            if len(self._samples) >= monitor.BLOCK:
                self._process()
        self._budget_s = min(self._budget_s + share_s, MOST_BUDGET_S) + start - time.thread_time()
        if self._budget_s < 0:
            self._left_out = int(-self._budget_s / share_s) + 1
            self._budget_s += self._left_out * share_s

    def status(self) -> dict[str, Any]:
        """Return frames, evidence (an alarm is raised at `frames_to_false_alarm`) and the alarm."""
        return {
            "frames": self._detector.frames,
            "evidence": float(f"{min(self._detector.evidence, monitor.FRAMES * 1000):.4g}"),
            "frames_to_false_alarm": monitor.FRAMES,
            "alarm": self.alarm,
        }

    def close(self) -> None:
        """Add the frames that are left, and write the state."""
        if self._samples:
            self._process()
        self._write()

    def _pixels(self) -> Any:
        """Return the samples as pixels: those that the calibration's normalization makes the inputs from."""
        samples = np.stack(self._samples)
        if self._form == "pixels":
            return samples
        mean, std = (each.reshape(-1, 1, 1, 1) for each in (self._mean, self._std))
        return np.rint((samples * std + mean) * 255).clip(0, 255)

    def _process(self) -> None:
        logits = np.stack(self._logits)
        classes = logits.argmax(1)
        rows = monitor.statistics(self._pixels(), logits)
        self._samples, self._logits = [], []
        with np.errstate(all="ignore"):
            evidence = self._detector.update(rows, classes)
        alarmed = self.alarm is None and not evidence < monitor.FRAMES
        if alarmed:
            self.alarm = {"frame": self._detector.frames, "time": int(time.time()), **self._cause()}
        if alarmed or time.monotonic() - self._written > EVERY_S:
            self._write()

    def _cause(self) -> dict[str, Any]:
        """Return the cause whose change is most like that of the recent frames, and the statistics that changed."""
        shift = self._detector.shift[:PIXELS]
        length = float(np.linalg.norm(shift)) or 1.0
        alike = [
            (float(shift @ np.array(each["shift"])) / length / (float(np.linalg.norm(each["shift"])) or 1.0), each)
            for each in self._causes
        ]
        cosine, best = max(alike, key=lambda pair: pair[0], default=(0.0, None))
        most = self._detector.strongest()
        noise = (PIXELS / min(self._detector.frames, monitor.RECENT)) ** 0.5
        if most is not None and length < SMALL + 1.5 * noise:
            cause = {"cause": "class-mix", "title": f"another mix of classes: more {self._labels[most]}"}
        elif best is not None and cosine >= ALIKE:
            cause = {"cause": best["name"], "title": best["title"]}
        else:
            cause = {"cause": "unknown", "title": "another change of the images"}
        order = np.argsort(-np.abs(self._detector.shift))[:3]
        changed = {monitor.NAMES[index]: round(float(self._detector.shift[index]), 2) for index in order}
        return {**cause, "changed": changed}

    def _restore(self) -> None:
        """Continue from the newer of the states on the disk and in memory; a removed one on the disk starts again."""
        if self._path is None or not os.path.exists(self._path):
            return
        states = []
        for path in (self._path, os.path.join(MEMORY, self._memory)):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                with open(path, encoding="utf-8") as stream:
                    mine = path == self._path or os.fstat(stream.fileno()).st_uid == os.stat(self._path).st_uid
                    state = json.load(stream)
                sums, shift = np.array(state["sums"], float), np.array(state["shift"], float)
                if mine and state["reference"] == self._digest and sums.shape == self._detector.sums.shape:
                    states.append((int(state["updated"]), int(state["frames"]), sums, shift, state["alarm"]))
        if states:
            _, frames, sums, shift, self.alarm = max(states, key=lambda each: each[:2])
            self._detector.restore(frames, sums, shift)

    def _write(self) -> None:
        """Write the state to memory, and to the disk where the one there is old; neither has to be possible."""
        self._written = time.monotonic()
        if self._path is None:
            return
        if self._stored and not os.path.exists(self._path):  # removed by a person: start again
            self._detector, self.alarm = monitor.Detector(self._reference), None
        state = {
            "schema": SCHEMA, "reference": self._digest, **self.status(), "updated": int(time.time()),
            "memory": self._memory,
            "shift": [float(f"{value:.3g}") for value in self._detector.shift],
            "sums": [float(f"{value:.3g}") for value in self._detector.sums],
        }  # fmt: skip
        text = json.dumps(state, separators=(",", ":"))
        _replace(os.path.join(MEMORY, self._memory), text)
        if self._old(self._path):
            self._stored = _replace(self._path, text) or self._stored

    def _old(self, path: str) -> bool:
        """Return whether the state on the disk is absent, damaged, old, of other images or without the alarm."""
        try:
            age_s = time.time() - os.stat(path).st_mtime
            with open(path, encoding="utf-8") as stream:
                state = json.load(stream)
            known = state["reference"] == self._digest and state["alarm"] == self.alarm
        except (OSError, ValueError, KeyError, TypeError):
            return True
        return not (known and 0 <= age_s < STORED_EVERY_S)


def _replace(path: str, text: str) -> bool:
    """Replace a file; no link of another user's is followed. False: it cannot be written."""
    temporary = f"{path}.{os.getpid()}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)  # follows no link
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, path)
    except OSError:  # also a file that a process which was killed has left: the next write succeeds
        with contextlib.suppress(OSError):
            os.remove(temporary)
        return False
    return True
