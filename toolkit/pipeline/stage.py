"""Define a stage: a function from options and folders to files, and what its result depends on."""

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
        work: Takes the options, the folders of the stages it needs, the empty folder for its files, and a
            folder for the state of unfinished work, which outlives a failure and is removed on success.
        needs: Stages whose folders it reads.
        implementation: Returns the function that `work` calls with these options: only its code counts then;
            None: the code of `work` itself.
        on_device: Returns whether the result with these options depends on this machine; None: never.
        extra_key: Returns what else the result depends on, from the options; None: nothing.
        needs_run_info: Gets the input `run`, a folder with run.json (`output.describe`).
    """

    name: str
    work: Callable[[Any, Inputs, Path, Path], None]
    needs: tuple[str, ...] = ()
    implementation: Callable[[Any], Callable[..., None]] | None = None
    on_device: Callable[[Any], bool] | None = None
    extra_key: Callable[[Any], Any] | None = None
    needs_run_info: bool = False

    def code_digest(self, options: Any, sources: Sources | None = None) -> str:
        """Return the digest of the code that decides the result with these options.

        Args:
            options: The stage's section of the recipe.
            sources: Where the product's source is; None: as installed.
        """
        function = self.implementation(options) if self.implementation else self.work
        return (sources or installed()).digest(function)
