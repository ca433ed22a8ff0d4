"""Activations of many images between two blocks: in memory while they fit, else in temporary files."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BUDGET_BYTES = 1 << 28


class Stash:
    """A list of tensors, one a batch; what is beyond the budget lies on disk until the stash is dropped."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget = self._left = budget_bytes
        self._held: list[Tensor | Path] = []
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the overflow lies; it goes with the stash."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="edgeship-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def append(self, value: Tensor) -> None:
        """Add one batch."""
        size = value.numel() * value.element_size()
        if size <= self._left:
            self._left -= size
            self._held.append(value)
            return
        path = self.folder / f"{len(self._held)}.npy"
        np.save(path, value.numpy())
        self._held.append(path)

    def map(self, function: Callable[[Tensor], Tensor]) -> Stash:
        """A new stash of the function's results."""
        result = Stash(self._budget)
        for value in self:
            result.append(function(value))
        return result

    def first(self, images: int) -> Iterator[Tensor]:
        """As many batches from the start as hold that many images."""
        for value in self:
            yield value
            images -= len(value)
            if images <= 0:
                return

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Tensor]:
        for held in self._held:
            yield torch.from_numpy(np.load(held)) if isinstance(held, Path) else held
