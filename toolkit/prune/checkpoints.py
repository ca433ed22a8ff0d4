"""Checkpoint files of long passes, to resume an interrupted pass."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgeship.toolkit.core.artifact import canonical_json, sha256_bytes
from edgeship.toolkit.models.checkpoints import read_checkpoint, write_checkpoint


class Checkpoints:
    """Folder of checkpoints, keyed by the digest of the network and the images."""

    def __init__(self, folder: Path | None, model: nn.Module, images: Tensor) -> None:
        """Compute the key.

        Args:
            folder: The folder; None disables checkpoints.
            model: The network that is pruned.
            images: The images used for pruning (N, C, H, W).
        """
        self._folder = folder
        self._work = ""
        if folder is not None:
            weights = [value.contiguous().numpy() for value in model.state_dict().values()]
            self._work = _digest(*weights, images.numpy())

    def of(self, kind: str, *parameters: Any) -> Checkpoint:
        """Return the checkpoint of one pass, by its kind and its parameters."""
        if self._folder is None:
            return Checkpoint(None)
        key = canonical_json([self._work, *parameters])
        return Checkpoint(self._folder / f"{kind}-{sha256_bytes(key.encode())[:16]}.pt")

    def clear(self) -> None:
        """Delete all checkpoints."""
        if self._folder is None or not self._folder.is_dir():
            return
        for path in self._folder.glob("*.pt"):
            path.unlink()
        if not any(self._folder.iterdir()):
            self._folder.rmdir()


class Checkpoint:
    """A file of tensors and plain values, replaced atomically."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self) -> dict[str, Any] | None:
        """Return the content saved by an interrupted pass; None without a file."""
        return read_checkpoint(self._path) if self._path is not None else None

    def save(self, content: dict[str, Any]) -> None:
        """Replace the content of the file."""
        if self._path is not None:
            write_checkpoint(self._path, content)


def _digest(*arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()
