"""Commands, and options that several of them share; those of a recipe are made from its fields."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from edgeship.toolkit.core.errors import ToolkitError
from edgeship.toolkit.core.options import convert, field_of, from_text, members, parse_override, warn_renamed

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
UNITS = {"s": "SECONDS", "ms": "MS", "pp": "POINTS", "ratio": "RATIO", "fraction": "RATIO"}


class RecipeOption(click.Option):
    """The command-line option of a recipe option: its flag, type, bounds, default and help.

    Not given it is None, so that the recipe's value or the default holds.

    Args:
        name: Dotted name of the recipe option.
        needed: Raise a usage error if it is not given.
        preset: The command's own default; None: that of the recipe.
        text: Help of this command; empty: that of the option, with its default.
    """

    def __init__(self, name: str, *, needed: bool = False, preset: Any = None, text: str = "") -> None:
        self.dotted, self.needed, self.preset = name, needed, preset
        self.field = field_of(_recipe(), name)
        rules = self.field.rules
        flag = rules.get("flag") or "--" + name.rpartition(".")[2].replace("_", "-")
        former = [f"--{rules['renamed_from'].replace('_', '-')}"] if "renamed_from" in rules else []
        self.former = (*former, *rules.get("former_flags", ()))
        self.flag = flag
        negative = f"/--no-{flag[2:]}" if self.field.default is True else ""
        settings: dict[str, Any] = {"is_flag": True} if self._is_flag() else {"metavar": self._metavar()}
        super().__init__(
            [f"{flag}{negative}", name.replace(".", "_")],
            default=None,
            multiple=get_origin(members(self.field.annotation)[0]) is tuple,
            help=text or self._help(needed=needed),
            callback=self._converted,
            shell_complete=self._complete,
            **settings,
        )

    def _is_flag(self) -> bool:
        return self.field.annotation is bool

    def _metavar(self) -> str:
        unit = UNITS.get(self.field.name.rpartition("_")[2])
        kinds = members(self.field.annotation)
        words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        if unit or self.field.rules.get("metavar"):
            return str(unit or self.field.rules["metavar"])
        if words and int not in kinds:
            return "|".join(words)
        names = {int: "N", float: "NUMBER", str: "PATH" if self.field.rules.get("path") else "NAME"}
        texts = [names.get(kind, "NAME") for kind in kinds if get_origin(kind) is not Literal]
        return "|".join([*dict.fromkeys(texts), *words])

    def _help(self, *, needed: bool) -> str:
        text, default = self.field.rules["help"], self.preset or self.field.default
        if needed:
            return f"{text}  [required]"
        if default in ("", (), None) or default is False:
            return str(text)
        shown = default if not isinstance(default, tuple) else ", ".join(default)
        if default is True:
            shown = self.flag[2:]
        return f"{text}  [default: {shown}]"

    def _converted(self, ctx: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        if value in (None, ()) or ctx.resilient_parsing:
            return self.preset
        if isinstance(value, tuple):
            value = [part for text in value for part in text.split(",")]
        elif isinstance(value, str):
            value = from_text(value, self.field.annotation)
        return convert(value, self.field.annotation, self.flag, self.field.rules)

    def _complete(self, _ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[Any]:
        if self.field.rules.get("path"):
            return [CompletionItem(incomplete, type="file")]
        words = self.field.choices()
        return [CompletionItem(word) for word in words if word.startswith(incomplete)]


class DataArgument(click.Argument):
    """A positional form of a recipe option with a flag."""

    def __init__(self, declarations: list[str], *, dotted: str, **settings: Any) -> None:
        super().__init__(declarations, required=False, **settings)
        self.dotted = dotted


def recipe_options(
    *names: str, needed: tuple[str, ...] = (), text: str = "", **presets: Any
) -> Callable[[Decorated], Decorated]:
    """Add the command-line options of recipe options; the command takes them as `options`.

    Args:
        names: Dotted names, in the order of the help.
        needed: Those without which the command is a usage error.
        text: Help of this command for them; empty: that of the options, with their defaults.
        **presets: Last part of a name -> the command's own default.
    """

    def add(function: Decorated) -> Decorated:
        for name in reversed(names):
            preset = presets.get(name.rpartition(".")[2])
            _add(function, RecipeOption(name, needed=name in needed, preset=preset, text=text))
        return function

    return add


def data_argument(name: str, dotted: str = "select.source") -> Callable[[Decorated], Decorated]:
    """Accept a recipe option as a positional argument too."""

    def add(function: Decorated) -> Decorated:
        _add(function, DataArgument([name], dotted=dotted))
        return function

    return add


def _add(function: Callable[..., Any], parameter: click.Parameter) -> None:
    function.__dict__.setdefault("__click_params__", []).append(parameter)


def _recipe() -> Any:
    from edgeship.toolkit.pipeline.recipe import Recipe

    return Recipe()


class Command(click.Command):
    """A command with options made from recipe options.

    It accepts former names of options, with a warning, for one release, and its errors have its own options
    in place of the names in a recipe.
    """

    def __init__(self, *arguments: Any, former: Mapping[str, str] | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._former = dict(former or {})
        for each in self._recipe_options():
            self._former |= dict.fromkeys(each.former, each.flag)

    def _recipe_options(self) -> list[RecipeOption]:
        return [each for each in self.params if isinstance(each, RecipeOption)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, with the current names of renamed options."""
        renamed = []
        for index, argument in enumerate(args):
            if argument == "--":
                renamed += args[index:]
                break
            name, separator, value = argument.partition("=")
            current = self._former.get(name)
            if current:
                warn_renamed(f"option {name}", current)
            renamed.append(f"{current or name}{separator}{value}")
        return super().parse_args(ctx, renamed)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command with the recipe options that are given; rewrite its errors."""
        try:
            if any(hasattr(each, "dotted") for each in self.params):
                ctx.params["options"] = self._given(ctx)
            return super().invoke(ctx)
        except ToolkitError as error:
            error.args = (self.in_own_words(str(error)),)
            error.hint = self.in_own_words(error.hint)
            raise

    def _given(self, ctx: click.Context) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for each in self._recipe_options():
            if (value := ctx.params.pop(str(each.name))) is not None:
                given[each.dotted] = value
        for text in ctx.params.pop("settings", ()):
            name, value = parse_override(f"load.preprocess.{text}", type(_recipe()))
            given[name] = value
        for argument in self.params:
            if isinstance(argument, DataArgument):
                value = ctx.params.pop(str(argument.name))
                if value is not None and given.setdefault(argument.dotted, value) != value:
                    flag = self._flags()[argument.dotted]
                    raise click.UsageError(f"{argument.make_metavar(ctx)} and {flag} are both given", ctx)
        for each in self._recipe_options():
            if each.needed and each.dotted not in given:
                raise click.MissingParameter(ctx=ctx, param=each)
        return given

    def _flags(self) -> dict[str, str]:
        return {each.dotted: each.flag for each in self._recipe_options()}

    def in_own_words(self, text: str) -> str:
        """Replace the names of recipe options in a message by the options of this command."""
        flags = self._flags()
        if flags:
            names = "|".join(re.escape(name) for name in sorted(flags, key=len, reverse=True))
            text = re.sub(rf"(?:--set )?\b({names})\b(?!\.\w)", lambda match: flags[match[1]], text)
        if any(each.name == "settings" for each in self.params):
            text = re.sub(r"(?:--set )?\bload\.preprocess\.(?=\w)", "--preprocess ", text)
        return text


class Resumable(Command):
    """A command that saves its progress: repeating it after an interruption continues."""


def note(text: str) -> None:
    """Print a note to stderr, with the options of the running command, unless --quiet."""
    context = click.get_current_context(silent=True)
    if context is not None and (context.find_root().obj or {}).get("quiet"):
        return
    click.echo(f"note: {own_words(text)}", err=True)


def own_words(text: str) -> str:
    """Return a message with the options of the running command in place of the names in a recipe."""
    context = click.get_current_context(silent=True)
    command = context.command if context else None
    return command.in_own_words(text) if isinstance(command, Command) else text


STORE = click.option(
    "--store",
    "store_root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Cache folder of finished stages.  [default: $EDGESHIP_STORE, else ~/.cache/edgeship/store]",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
PREPROCESS = click.option(
    "--preprocess",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Preprocessing that the model file does not contain: resize, crop, mean, std or interpolation; "
    "repeatable. E.g. mean=0.5,0.5,0.5 (grey: mean=0.5), resize=96x128 (height x width, pixels).",
)


class Number(click.FloatRange):
    """A finite number in a range; click's own range has NaN in it."""

    def __init__(self, least: float, most: float, *, above: bool = False) -> None:
        super().__init__(least, most, min_open=above)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; call `fail` if `value` is none, or out of the range."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number
