"""Activations of many images between two blocks: in memory while they fit, else in a temporary file."""

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


class Stash:
    """A list of tensors, one a batch; what is beyond the budget lies in a file without a name.

    The system takes such a file away with the process, however that ends.
    """

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget = self._left = budget_bytes
        self._held: list[Tensor | int] = []  # an integer: where the tensor begins in the file
        self._file: IO[bytes] | None = None

    @property
    def bytes_on_disk(self) -> int:
        """Size of the file."""
        return 0 if self._file is None else os.fstat(self._file.fileno()).st_size

    def append(self, value: Tensor) -> None:
        """Add one batch."""
        size = value.numel() * value.element_size()
        if size <= self._left:
            self._left -= size
            self._held.append(value)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="edgeship-", buffering=0)  # noqa: SIM115 (lives on)
            weakref.finalize(self, self._file.close)
        self._held.append(self._file.seek(0, os.SEEK_END))
        np.save(self._file, value.numpy())

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
            yield self._read(held) if isinstance(held, int) else held

    def _read(self, start: int) -> Tensor:
        assert self._file is not None, "only what is on disk has a place there"
        self._file.seek(start)
        return torch.from_numpy(np.load(self._file))
