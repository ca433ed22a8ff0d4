"""A JSON file becomes the dataclass that was written, or the file and the field that differ are named."""

import dataclasses
import json
from typing import ClassVar, Literal

import pytest

from edgeship.toolkit.core.artifact import plain
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.core.typed_json import JsonFile, from_json, read_as


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    source: Literal["measured", "simulated"]
    interval: tuple[float, float] | None = None
    counts: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table(JsonFile):
    FILE: ClassVar[str] = "table.json"
    rows: dict[str, Row]
    preprocess: Preprocess
    threads: int | None
    marks: list[str] = dataclasses.field(default_factory=list)


TABLE = Table(
    {"a": Row("a", "measured", (0.5, 2), (1, 2)), "b": Row("b", "simulated")},
    Preprocess(crop=(96, 128)),
    None,
)


def test_what_is_written_is_read(tmp_path):
    TABLE.write(tmp_path)
    assert Table.read(tmp_path) == TABLE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.pop("threads"), r"'threads' is None, expected a value"),
        (lambda table: table.update(threads="2"), r"'threads' is '2', expected a whole number"),
        (lambda table: table.update(threads=True), r"'threads' is True, expected a whole number"),
        (lambda table: table.update(marks=[1]), r"'marks.0' is 1, expected a text"),
        (lambda table: table.update(rows=[]), r"'rows' is \[\], expected an object"),
        (
            lambda table: table.update(preprocess={"crop": "wide"}),
            r"'preprocess' is .* expected a Preprocess",
        ),
        (
            lambda table: table["rows"]["b"].update(source="guessed"),
            r"rows.b.source.*'measured' or 'simulated'",
        ),
        (lambda table: table["rows"]["a"].update(interval=[1]), r"'rows.a.interval' .* a list of 2"),
        (lambda table: table["rows"]["a"].update(interval=[1, float("inf")]), r"interval.1' is inf"),
        (lambda table: table["rows"]["a"].update(counts=[1, 2.5]), r"'rows.a.counts.1' is 2.5"),
    ],
)
def test_a_wrong_field_is_named_with_its_file_and_its_value(tmp_path, change, words):
    content = plain(TABLE)
    change(content)
    (tmp_path / "table.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=words) as caught:
        Table.read(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "table.json")) and "again" in caught.value.hint


def test_fields_of_a_newer_version_are_ignored():
    assert from_json({"name": "a", "source": "measured", "more": 1}, Row, "file") == Row("a", "measured")


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_a_foreign_file(tmp_path, content):
    (tmp_path / "row.json").write_text(content)
    with pytest.raises(DataError, match="expected an object"):
        read_as(tmp_path / "row.json", Row)
