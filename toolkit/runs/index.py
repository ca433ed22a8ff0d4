"""Define run.json: the recipe of a run, its stages and their folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.typed_json import F, JsonFile, from_json, read_as

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StageResult:
    """Result of one stage of a run.

    Attributes:
        name: Name of the stage.
        folder: Its files in the store; read only.
        digest: Content digest of the folder.
        seconds: Duration of the computation.
        cached: True if the result is from an earlier run.
        needs: The stages whose results it read.
    """

    name: str
    folder: Path
    digest: str
    seconds: float
    cached: bool
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunIndex(JsonFile):
    """A run.

    Attributes:
        recipe: All options; Any: those of the version that wrote it.
        command: Command line that reproduces the run; None for a recipe built in Python.
        stages: The stages that were run, in order.
        files: Files of the `--out` folder that runs have written.
    """

    FILE: ClassVar[str] = "run.json"
    schema: Literal[1]
    recipe: dict[str, Any]
    command: str | None
    stages: tuple[StageResult, ...]
    files: tuple[str, ...] = ()

    @classmethod
    def read(cls: type[F], folder: Path) -> F:
        """Read run.json of a folder.

        Raises:
            DataError: The folder is no run, or the file is damaged or of another form.
        """
        if not (folder / cls.FILE).is_file():
            raise DataError(
                f"{folder} is no run: it has no {cls.FILE}",
                hint="name a folder that `edgeship run --out` wrote",
            )
        return read_as(folder / cls.FILE, cls)

    @property
    def folders(self) -> dict[str, Path]:
        """Return stage -> folder."""
        return {stage.name: stage.folder for stage in self.stages}

    def option(self, name: str, kind: type[T]) -> T:
        """Return an option of the recipe, by its dotted name.

        Raises:
            DataError: The recipe has no such option, or of another type.
        """
        value: object = self.recipe
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return from_json(value, kind, f"{self.FILE}: option {name}")
