"""What a stage is: a function from options and folders to files, and what its result depends on."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from toolkit.core.artifact import canonical_json, sha256_bytes, sha256_file

Inputs: TypeAlias = Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the main path.

    Attributes:
        name: Name of the recipe section, the store folder and the argument of `--until` and `--redo`.
        work: Reads the folders of the stages it needs and writes into the folder it is given.
        needs: Stages whose folders it reads.
        code: Packages and modules whose source decides the result.
        on_device: Whether the result belongs to this machine; the name of an option: where that is set.
        facts: Tells what else the result depends on, from the options; None: nothing.
        on_run: Whether it tells of the whole run: it gets the input `run` with run.json (`output.describe`).
    """

    name: str
    work: Callable[[Any, Inputs, Path], None]
    needs: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    on_device: bool | str = False
    facts: Callable[[Any], Any] | None = None
    on_run: bool = False

    def bound(self, options: Any) -> bool:
        """Whether the result with these options belongs to this machine."""
        if isinstance(self.on_device, str):
            return getattr(options, self.on_device) not in (None, False)
        return self.on_device

    def code_digest(self) -> str:
        """Digest of the stage function and of the source it names."""
        sources = {name: _source_digest(name) for name in self.code}
        return sha256_bytes(canonical_json([inspect.getsource(self.work), sources]).encode())


def resumable(out: Path) -> Path:
    """A folder in which a stage may keep the state of long work: it outlives a failure, not a success."""
    folder = out.parent.parent / "partial" / out.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def _source_digest(name: str) -> str:
    """Digest of every Python file of a package or module, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name)
    file = Path(spec.origin)
    files = sorted(file.parent.rglob("*.py")) if spec.submodule_search_locations else [file]
    return sha256_bytes(
        canonical_json([[str(f.relative_to(file.parent)), sha256_file(f)] for f in files]).encode()
    )
