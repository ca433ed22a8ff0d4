"""Checkpoint files of long passes, from which an interrupted pass resumes."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import torch

from edgeship.toolkit.core.artifact import replacing

_log = logging.getLogger("edgeship")


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint; None if there is no file, or a damaged one, which is deleted.

    PyTorch does not compare the CRC-32 of what it reads, so a flipped bit would change weights silently.
    """
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            intact = archive.testzip() is None
        content = torch.load(path, map_location="cpu", weights_only=True) if intact else None
    except Exception:  # zipfile, pickle and torch raise errors of any kind on damaged bytes
        content = None
    if isinstance(content, dict):
        return content
    _log.warning("the checkpoint %s is damaged: the pass starts anew", path)
    path.unlink(missing_ok=True)
    return None


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Replace a checkpoint atomically.

    Args:
        path: The file.
        content: Tensors and plain values.
    """
    with replacing(path) as temporary:
        torch.save(content, temporary)
