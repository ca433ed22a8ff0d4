"""Define a stage: a function from options and folders to files, and its dependencies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from edgeship.toolkit.pipeline.code_closure import Sources, installed

Inputs: TypeAlias = Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the main path.

    Attributes:
        name: Name of the recipe section, the store folder and the argument of `--until` and `--rerun`.
        work: Function of the options, the folders of the stages in `needs`, the empty folder for its files,
            and a folder for checkpoints, which outlives a failure and is removed on success.
        needs: Stages whose folders are inputs.
        implementation: Returns the function that `work` calls with these options, whose code is hashed; None:
            the code of `work`.
        on_device: Returns True if the result with these options depends on this machine; None: never.
        extra_key: Returns further parts of the cache key, from the options; None: there are none.
        needs_run_info: Add the input `run`, a folder with run.json (`publish.describe`).
    """

    name: str
    work: Callable[[Any, Inputs, Path, Path], None]
    needs: tuple[str, ...] = ()
    implementation: Callable[[Any], Callable[..., None]] | None = None
    on_device: Callable[[Any], bool] | None = None
    extra_key: Callable[[Any], Any] | None = None
    needs_run_info: bool = False

    def code_digest(self, options: Any, sources: Sources | None = None) -> str:
        """Return the digest of all code that the result with these options depends on.

        Args:
            options: The stage's section of the recipe.
            sources: Source files of the product; None: as installed.
        """
        function = self.implementation(options) if self.implementation else self.work
        return (sources or installed()).digest(function)
