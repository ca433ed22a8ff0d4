"""States of long work in files: an interrupted pass goes on from the last one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeship.toolkit.core.artifact import canonical_json, replacing, sha256_bytes


class States:
    """A folder of states, each found again only by the same work on the same network and images."""

    def __init__(self, folder: Path | None, model: nn.Module, images: Tensor) -> None:
        """Name the work.

        Args:
            folder: Where states lie; None: nowhere, and nothing is ever found.
            model: That is worked on.
            images: That it is worked on with.
        """
        self._folder = folder
        self._work = ""
        if folder is not None:
            weights = [value.contiguous().numpy() for value in model.state_dict().values()]
            self._work = _digest(*weights, images.numpy())

    def of(self, kind: str, *what: Any) -> State:
        """The state of one part of the work: its kind, and what tells it from others of that kind."""
        if self._folder is None:
            return State(None)
        key = canonical_json([self._work, *what])
        return State(self._folder / f"{kind}-{sha256_bytes(key.encode())[:16]}.pt")

    def clear(self) -> None:
        """Forget everything: the work is done."""
        if self._folder is None or not self._folder.is_dir():
            return
        for path in self._folder.glob("*.pt"):
            path.unlink()
        if not any(self._folder.iterdir()):
            self._folder.rmdir()


class State:
    """One file of tensors and plain values, replaced as a whole."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self) -> dict[str, Any] | None:
        """What an interrupted pass left; None where there is nothing."""
        if self._path is None or not self._path.is_file():
            return None
        found: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        return found

    def save(self, content: dict[str, Any]) -> None:
        """Keep this, instead of what was kept."""
        if self._path is not None:
            with replacing(self._path) as temporary:
                torch.save(content, temporary)


def _digest(*arrays: Any) -> str:
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(array.tobytes())
    return whole.hexdigest()
