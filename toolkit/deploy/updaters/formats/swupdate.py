"""SWUpdate image: a cpio archive with the bundle, the installer, and the script that runs after them.

SWUpdate manual, "SWUpdate: syntax and tags" and "Update images from verified source": `sw-description` comes
first, then its CMS signature; the archive has the "crc" form of cpio. A failing script fails the update.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

from edgeship.toolkit.core.artifact import sha256_file, write_text
from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.deploy.updaters import BUNDLE, RUN, Settings, Update, need_pair, need_tool, run_tool

SUFFIX = ".swu"
DESCRIPTION = "sw-description"
SIGNATURE = f"{DESCRIPTION}.sig"
INSTALL, ROLLBACK = "install.sh", "rollback.sh"
BLOCK = 1 << 20  # bytes copied at once

_SCRIPT = """\
#!/bin/sh
[ "$1" = postinst ] || exit 0
trap 'rm -rf "{folder}"' EXIT
sh "{folder}/{run}" {arguments}
"""


def check(settings: Settings) -> None:
    """Raise if it cannot be written with these settings.

    Raises:
        RecipeError: There is no device type, or a key without certificate.
        DataError: openssl is not installed.
    """
    if not settings.compatible:
        raise RecipeError(
            "a SWUpdate image needs a hardware revision",
            hint="give --compatible REVISION, as in the device's /etc/hwrevision",
        )
    need_pair(settings)
    if settings.key is not None:
        need_tool("openssl", "openssl")


def write(update: Update, out: Path) -> dict[str, tuple[str, str]]:
    """Write the image; a device needs no further file."""
    settings, folder = update.settings, update.folder
    place = f"{settings.root}/update"
    for name, arguments in ((INSTALL, f'install "{place}/{BUNDLE}"'), (ROLLBACK, "withdraw")):
        write_text(folder / name, _SCRIPT.format(folder=place, run=RUN, arguments=arguments))
    write_text(folder / DESCRIPTION, _description(update, place))
    names = [DESCRIPTION, *update.files, INSTALL, ROLLBACK]
    if settings.key is not None:
        run_tool(
            [
                "openssl", "cms", "-sign", "-in", str(folder / DESCRIPTION), "-out", str(folder / SIGNATURE),
                "-signer", str(settings.cert), "-inkey", str(settings.key), "-outform", "DER", "-nosmimecap",
                "-binary",
            ],
            "check --update-key and --update-cert",
        )  # fmt: skip
        names.insert(1, SIGNATURE)
    with out.open("wb") as stream:
        for number, name in enumerate(names, 1):
            _add(stream, name, folder / name, number)
        _end(stream)
    return {}


def _description(update: Update, place: str) -> str:
    """Return sw-description; the selection `edgeship,rollback` withdraws the bundle."""
    folder = update.folder
    digests = {name: sha256_file(folder / name) for name in (*update.files, INSTALL, ROLLBACK)}
    files = ",\n".join(
        f'        {{ filename = "{name}"; path = "{place}/{name}"; sha256 = "{digests[name]}";\n'
        '          installed-directly = true; properties = { create-destination = "true"; }; }'
        for name in update.files
    )

    def script(name: str) -> str:
        return f'{{ filename = "{name}"; type = "shellscript"; sha256 = "{digests[name]}"; }}'

    escaped = (each.replace("\\", r"\\").replace('"', r"\"") for each in update.settings.compatible)
    revisions = ", ".join(f'"{each}"' for each in escaped)
    return f"""\
software =
{{
    version = "{update.version}";
    description = "edgeship release {update.name}";
    hardware-compatibility: [ {revisions} ];
    files: (
{files}
    );
    scripts: ( {script(INSTALL)} );
    edgeship:
    {{
        rollback:
        {{
            scripts: ( {script(ROLLBACK)} );
        }};
    }};
}};
"""


def _add(stream: IO[bytes], name: str, source: Path, number: int) -> None:
    """Append a file to a cpio archive; its checksum is the sum of its bytes, cpio(5)."""
    size, total = source.stat().st_size, 0
    with source.open("rb") as content:
        while block := content.read(BLOCK):
            total += sum(block)
    _header(stream, name, number, 0o100644, size, total & 0xFFFFFFFF)
    with source.open("rb") as content:
        while block := content.read(BLOCK):
            stream.write(block)
    stream.write(bytes(-size % 4))


def _end(stream: IO[bytes]) -> None:
    """Append the trailer, and fill the last block of 512 bytes."""
    _header(stream, "TRAILER!!!", 0, 0, 0, 0)
    stream.write(bytes(-stream.tell() % 512))


def _header(stream: IO[bytes], name: str, number: int, mode: int, size: int, total: int) -> None:
    """Append a header of the "new crc" form: magic, 13 numbers of 8 hexadecimal digits, and the name."""
    links, owner, time, device = 1, 0, 0, 0
    fields = (
        number, mode, owner, owner, links, time, size, device, device, device, device, len(name) + 1, total
    )  # fmt: skip
    header = b"070702" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    stream.write(header + bytes(-len(header) % 4))
