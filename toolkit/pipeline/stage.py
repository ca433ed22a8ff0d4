"""Define a stage: a function from options and folders to files, and its dependencies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from edgeship.toolkit.pipeline.code_closure import Sources, installed
from edgeship.toolkit.pipeline.recipe import Recipe

Inputs: TypeAlias = Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the main path.

    A stage sees a recipe with its own section and the options in `reads`: reading another one is an error, so
    that the cache key has all that the result depends on.

    Attributes:
        name: Name of the recipe section, the store folder and the argument of `--until` and `--rerun`.
        work: Function of the recipe, the folders of the stages in `needs`, the empty folder for its files,
            and a folder for checkpoints, which outlives a failure and is removed on success.
        needs: Stages whose folders are inputs.
        reads: Options of other sections that the stage reads (`section.key`), or a function of the recipe
            that returns them.
        implementation: Returns the function that `work` calls with this recipe, whose code is hashed; None:
            the code of `work`.
        on_device: Returns True if the result with this recipe depends on this machine; None: never.
        extra_key: Returns further parts of the cache key, from the recipe; None: there are none.
        idle: Returns True if the stage has nothing to do with this recipe and only passes files on.
        needs_run_info: Add the input `run`, a folder with run.json (`publish.describe`).
    """

    name: str
    work: Callable[[Recipe, Inputs, Path, Path], None]
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] | Callable[[Recipe], tuple[str, ...]] = ()
    implementation: Callable[[Recipe], Callable[..., None]] | None = None
    on_device: Callable[[Recipe], bool] | None = None
    extra_key: Callable[[Recipe], Any] | None = None
    idle: Callable[[Recipe], bool] | None = None
    needs_run_info: bool = False

    def options(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the section and the options of other sections that the stage reads."""
        return (self.name, *(self.reads(recipe) if callable(self.reads) else self.reads))

    def code_digest(self, recipe: Recipe, sources: Sources | None = None) -> str:
        """Return the digest of all code that the result with this recipe depends on.

        Args:
            recipe: The recipe.
            sources: Source files of the product; None: as installed.
        """
        function = self.implementation(recipe) if self.implementation else self.work
        return (sources or installed()).digest(function)


class UndeclaredOptionError(RuntimeError):
    """A stage reads an option that is not in its cache key."""


def restricted(recipe: Recipe, stage: str, options: Collection[str]) -> Recipe:
    """Return a recipe of which only these sections and options (`section.key`) can be read."""
    sections: dict[str, Any] = {}
    for each in fields(recipe):
        section = getattr(recipe, each.name)
        if is_dataclass(section) and each.name not in options:
            keys = [name.partition(".")[2] for name in options if name.startswith(f"{each.name}.")]
            sections[each.name] = _Section(stage, each.name, {key: getattr(section, key) for key in keys})
    return replace(recipe, name="", **sections)


class _Section:
    """Stand-in for a section of which a stage may read some options."""

    def __init__(self, stage: str, name: str, readable: Mapping[str, Any]) -> None:
        self.__dict__.update(readable, _where=(stage, name))

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        stage, name = self._where
        raise UndeclaredOptionError(f"stage '{stage}' reads {name}.{key}, which is not in its `reads`")
