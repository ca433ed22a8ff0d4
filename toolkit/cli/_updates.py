"""Options of `edgeship bundle` for updates of RAUC, SWUpdate and Mender."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from edgeship.toolkit.deploy.updaters import PLACE, Settings, names

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OPTIONS = (
    click.option(
        "--compatible",
        multiple=True,
        metavar="NAME",
        help="Device type that takes the update: RAUC's compatible, SWUpdate's hardware revision, Mender's "
        "device_type; repeatable except for RAUC.",
    ),
    click.option(
        "--target", default="", help="Target of the devices.  [default: the bundle's, if it has one]"
    ),
    click.option("--root", default=PLACE, show_default=True, help="Installation folder on the device."),
    click.option(
        "--python",
        default="python3",
        show_default=True,
        help="Command of a Python 3.8 or later of the device that can import the runtime.",
    ),
    click.option(
        "--health",
        default="",
        help="Shell command on the device that has to exit with 0 after the switch.  [default: self-test]",
    ),
    click.option(
        "--keep",
        default=0,
        show_default=True,
        type=click.IntRange(0, 10**6),
        help="Number of most recent releases to keep on the device; 0: all.",
    ),
    click.option(
        "--withdraw",
        is_flag=True,
        help="Write an update that goes back from the bundle, on devices where its release is live.",
    ),
    click.option("--update-key", "update_key", type=_FILE, help="Private key (PEM) to sign the update with."),
    click.option(
        "--update-cert",
        "update_cert",
        type=_FILE,
        help="Certificate (PEM) of the key, for RAUC and SWUpdate.",
    ),
    click.option(
        "--rauc-format",
        default="verity",
        show_default=True,
        type=click.Choice(["verity", "plain"]),
        help="Format of a RAUC bundle; plain: for kernels without dm-verity.",
    ),
)
_FIELDS = (
    "compatible", "target", "root", "python", "health", "keep", "withdraw", "update_key", "update_cert",
    "rauc_format",
)  # fmt: skip


def update_options(function: Decorated) -> Decorated:
    """Add --for and the options of updates; the command takes them as `updater` and `settings`."""

    @functools.wraps(function)
    def packed(**values: Any) -> Any:
        chosen = {name.replace("update_", ""): values.pop(name) for name in _FIELDS}
        if values["updater"] is None and (flags := given(_FIELDS)):
            raise click.UsageError(f"{flags[0]} is for updates: add --for {'|'.join(names())}")
        return function(settings=Settings(**chosen), **values)

    decorated: Any = packed
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    decorated = click.option(
        "--for",
        "updater",
        type=click.Choice(names()),
        help="Write an update for this updater of devices, which carries the bundle and its installer.",
    )(decorated)
    result: Decorated = decorated
    return result


def given(parameters: Iterable[str]) -> list[str]:
    """Return the flags of those parameters of the current command that its command line has."""
    context = click.get_current_context()
    wanted = [
        each
        for each in context.command.params
        if each.name in parameters
        and context.get_parameter_source(str(each.name)) is ParameterSource.COMMANDLINE
    ]
    return [each.opts[0] for each in wanted]
