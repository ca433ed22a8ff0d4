"""Command-line options made from the fields of the recipe, and errors in the words of a command."""

import click
import pytest

from edgeship.toolkit.cli import app as cli
from edgeship.toolkit.cli._options import PREPROCESS, Command, RecipeOption, data_argument, recipe_options
from edgeship.toolkit.core.errors import DataError, RecipeError
from edgeship.toolkit.core.options import warn_renamed
from edgeship.toolkit.pipeline.recipe import Recipe, option_help

SEEN = {}


@click.command(cls=Command)
@data_argument("source")
@recipe_options("select.source", "select.images", "compile.targets", "export.size", needed=("select.source",))
@recipe_options("prune.method", "prune.keep_ratio", "prune.flip_augment", method="obs")
@recipe_options("quantize.max_validation_drop_pp", "quantize.effort", "bench.duration_s")
@PREPROCESS
@click.option("--fail", default="")
def command(options, fail):
    """Record the options."""
    SEEN.clear()
    SEEN.update(options)
    if fail:
        raise DataError(fail, hint=fail)


def call(*arguments):
    command.main(list(arguments), standalone_mode=False)
    return dict(SEEN)


def test_only_given_options_are_passed_on_by_the_names_of_the_recipe():
    assert call("--data", "digits") == {"select.source": "digits", "prune.method": "obs"}
    got = call(
        "digits", "--size", "96x128", "--calibration-images", "50", "--no-flip-augment", "--max-drop", "1"
    )
    assert got == {
        "select.source": "digits",
        "select.images": 50,
        "export.size": (96, 128),
        "prune.method": "obs",
        "prune.flip_augment": False,
        "quantize.max_validation_drop_pp": 1.0,
    }
    recipe = Recipe.build({"prune": {"keep_ratio": 0.5}}, got)
    assert (recipe.export.size, recipe.prune.flip_augment) == ((96, 128), False)


@pytest.mark.parametrize(
    "arguments",
    [("--target", "openvino", "--target", "tensorrt"), ("--target", "openvino,tensorrt")],
)
def test_a_list_is_repeated_or_separated_by_commas(arguments):
    assert call("digits", *arguments)["compile.targets"] == ("openvino", "tensorrt")


def test_preprocessing_is_given_by_key():
    got = call("digits", "--preprocess", "mean=0.5", "--preprocess", "resize=64x64")
    assert Recipe.build({}, {"load.preprocess.mean": got["load.preprocess.mean"]}).load.preprocess.mean == (
        0.5,
    )


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--calibration-images", "0"), "--calibration-images = 0 must be at least 1", "Number of"),
        (("--calibration-images", "many"), "--calibration-images cannot be 'many'", "whole number"),
        (("--target", "openvin"), "--target cannot be 'openvin'", "did you mean 'openvino'"),
        (("--effort", "fats"), "--effort cannot be 'fats'", "did you mean 'fast'"),
        (("--size", "wide"), "--size cannot be 'wide'", "height x width"),
        (("--keep-ratio", "1.5"), "--keep-ratio = 1.5 must be at most 1.0", "Ratio"),
        (("--preprocess", "rezise=3"), "--preprocess rezise", "resize"),
    ],
)
def test_wrong_values_are_named_by_the_option(arguments, message, hint):
    with pytest.raises(RecipeError) as caught:
        Recipe.build({}, {"prune.keep_ratio": 0.5, **call("digits", *arguments)})
    text = command.in_own_words(str(caught.value))
    assert message in text and hint in caught.value.hint


def test_data_is_given_once():
    with pytest.raises(click.UsageError) as caught:
        call()
    assert "Missing option '--data'" in caught.value.format_message()
    with pytest.raises(click.UsageError, match=r"both given"):
        call("digits", "--data", "photos")
    assert call("digits", "--data", "digits")["select.source"] == "digits"


@pytest.mark.parametrize(
    ("former", "current"),
    [
        ("--images", "--calibration-images"),
        ("--keep", "--keep-ratio"),
        ("--seconds", "--duration"),
        ("--max-validation-drop-pp", "--max-drop"),
        ("--max-drop-pp", "--max-drop"),
    ],
)
def test_former_names_are_accepted_with_a_warning(caplog, former, current):
    warn_renamed.cache_clear()
    assert call("digits", former, "1") == call("digits", current, "1")
    assert [record.getMessage() for record in caplog.records] == [f"option {former} is called {current} now"]


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("set select.images to 1", "set --calibration-images to 1"),
        ("--set select.images=9", "--calibration-images=9"),
        ("--set load.preprocess.mean=0.5", "--preprocess mean=0.5"),
        ("quantize.max_validation_drop_pp and x", "--max-drop and x"),
        ("report.max_drop_pp stays", "report.max_drop_pp stays"),
        ("select.images.extra", "select.images.extra"),
    ],
)
def test_errors_have_the_options_of_the_command(text, own):
    with pytest.raises(DataError) as caught:
        call("digits", "--fail", text)
    assert (str(caught.value), caught.value.hint) == (own, own)


def test_every_recipe_option_can_be_a_command_line_option():
    for name, _, explanation in option_help():
        made = RecipeOption(name)
        assert made.opts[0].startswith("--") and explanation in (made.help or "")


def test_choices_are_completed():
    (effort,) = (each for each in command.params if each.name == "quantize_effort")
    found = effort.shell_complete(click.Context(command), "ba")
    assert [item.value for item in found] == ["balanced"]
    (target,) = (each for each in command.params if each.name == "compile_targets")
    assert {item.value for item in target.shell_complete(click.Context(command), "")} >= {
        "openvino",
        "tensorrt",
    }


def commands(group=cli.app):
    context = click.Context(group)
    for name in group.list_commands(context):
        each = group.get_command(context, name)
        yield each
        if isinstance(each, click.Group):
            yield from commands(each)


def test_an_option_has_one_meaning_per_command():
    for each in commands():
        flags = [flag for parameter in each.params for flag in parameter.opts]
        assert len(flags) == len(set(flags)), each.name
