"""Cache of activations between two blocks: in memory up to a budget, the rest in a temporary file."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np
import torch
from torch import Tensor

BUDGET_BYTES = 1 << 28


class ActivationCache:
    """List of tensors, one per batch; those beyond the memory budget are in an unlinked temporary file.

    The operating system frees such a file when the process ends, also after a crash.
    """

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget = self._left = budget_bytes
        self._entries: list[Tensor | int] = []  # an integer is a file offset in bytes
        self._file: IO[bytes] | None = None

    def append(self, value: Tensor) -> None:
        """Append the tensor of one batch."""
        size = value.numel() * value.element_size()
        if size <= self._left:
            self._left -= size
            self._entries.append(value)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="edgeship-", buffering=0)  # noqa: SIM115 (lives on)
            weakref.finalize(self, self._file.close)
        self._entries.append(self._file.seek(0, os.SEEK_END))
        np.save(self._file, value.numpy())

    def map(self, function: Callable[[Tensor], Tensor]) -> ActivationCache:
        """Return a new cache of the function's results."""
        result = ActivationCache(self._budget)
        for value in self:
            result.append(function(value))
        return result

    def first(self, images: int) -> Iterator[Tensor]:
        """Yield batches from the start until they hold that many images."""
        for value in self:
            yield value
            images -= len(value)
            if images <= 0:
                return

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Tensor]:
        for entry in self._entries:
            yield self._read(entry) if isinstance(entry, int) else entry

    def _read(self, start: int) -> Tensor:
        assert self._file is not None, "an offset exists only with the file"
        self._file.seek(start)
        return torch.from_numpy(np.load(self._file))
