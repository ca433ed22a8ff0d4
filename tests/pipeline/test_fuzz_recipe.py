"""Odd values of every option, and mutated recipe files: an error with a hint, or a usable recipe."""

import json
import math
import random
from dataclasses import is_dataclass

import pytest

from edgeship.toolkit.core.errors import RecipeError, ToolkitError
from edgeship.toolkit.pipeline.fingerprints import check_exist, key_values
from edgeship.toolkit.pipeline.model_recipe import recipe_of
from edgeship.toolkit.pipeline.publish import command
from edgeship.toolkit.pipeline.recipe import Recipe, as_toml, option_help

OPTIONS = [name for name, _, _ in option_help()]
ODD = (
    *("inf", "-inf", "nan", "-1", "0", "1", "2.5", "-0.0", "1e308", "1e-320", "9" * 40, "9" * 5000),
    *("0x1F", "1_0", "true", "''", '""', '"a"', "none", "all", "auto", "[]", "[[]]", "{}", "{a = 1}"),
    *("[1, 'a']", "[inf, 1, 1]", "1x1", "0x0", "axb", "1e5", "64x", "1,2,3", ",", "1,,2", "2020-01-01"),
    *("07:32:00", "[" * 3000, "{a=" * 500, "~root/x", "~no-such-user/x", "/dev/null", "/", "..", "a/" * 3000),
    *("n" * 300, "a:evaluation", "x.zip/a", "\0", "\ud800", "\udcff", "\x1b[31m", "\u202e", "\n", "a\nb"),
    *("=", "#", "'", '"', "\\", "10.3", "6.2.1", "openvino", "digits:", "digits:none", "torchvision:"),
    *("torchvision:x", "train", "gptq", "obs", "resnet18", "net.onnx"),
)  # fmt: skip
TOKENS = (
    *ODD,
    *OPTIONS,
    "[",
    "]",
    "[[",
    "]]",
    "=",
    "\n",
    "\r",
    ".",
    ",",
    '"""',
    "[load]",
    "[select]\n",
    "\ufeff",
)


def usable(recipe):
    """Do what a run does with the options before its first stage."""
    text = as_toml(recipe)
    sections = [name for name in Recipe.__dataclass_fields__ if is_dataclass(getattr(recipe, name))]
    values, _ = key_values(recipe, sections)
    assert all(math.isfinite(each) for each in values.values() if isinstance(each, float)), values
    assert json.loads(json.dumps(values, allow_nan=False))
    command(recipe)
    for name in sections:
        check_exist(getattr(recipe, name), name)
    return text


def outcome(make):
    """Return the recipe text; None if it is refused."""
    try:
        return usable(make())
    except ToolkitError as error:
        text = f"{error}{error.hint}"
        assert error.hint and text.isprintable() and len(text) < 3000, repr(text)
        text.encode()
        return None


def mutated(text, rng):
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        place, length = rng.randrange(len(text) + 1), rng.choice((0, 0, 1, 3, 20))
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:place] + rng.choice(TOKENS) + text[place + length :]
        elif kind == 1:
            text = text[:place] + text[place : place + length] * 2 + text[place + length :]
        elif kind == 2:
            text = text[:place] + text[place + length :]
        else:  # another value of a line
            lines = text.split("\n")
            chosen = rng.randrange(len(lines))
            key, separator, _ = lines[chosen].partition("=")
            lines[chosen] = f"{key}{separator}{rng.choice(ODD)}"
            text = "\n".join(lines)
    return text


def case(folder, seed):
    """Return a function that makes the recipe of a seed."""
    rng = random.Random(seed)
    if rng.random() < 0.4:
        name, value = rng.choice(OPTIONS), rng.choice(ODD)
        if rng.random() < 0.3:
            value = mutated(value, rng)
        if rng.random() < 0.2:
            name = mutated(name, rng)
        return lambda: recipe_of("quickstart", [f"{name}={value}"])
    whole = as_toml(Recipe.read("quickstart"), commented=True)
    if rng.random() < 0.5:
        whole = "\n".join(line.removeprefix("# ") if " =" in line else line for line in whole.split("\n"))
    data = mutated(whole, rng).encode("utf-8", "surrogatepass")
    path = folder / "recipe.toml"
    path.write_bytes(data)
    return lambda: recipe_of(str(path))


def fuzz(folder, first, last):
    outcomes = [outcome(case(folder, seed)) for seed in range(first, last)]
    assert outcomes.count(None) < 0.9 * len(outcomes)  # they are not all refused
    return outcomes


def test_some_options_and_mutated_files(tmp_path):
    fuzz(tmp_path, 0, 300)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_20_000_options_and_mutated_files(tmp_path):
    fuzz(tmp_path, 300, 20_300)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e308", "99999999999999999999", "-1"])
def test_no_number_out_of_bounds_is_accepted(value):
    numbers = {
        name
        for name, default, _ in option_help()
        if default.replace(".", "").isdigit() or name.endswith(("_pp", "_ratio", "_ms", "speedup", "runs"))
    }
    assert len(numbers) > 35
    for name in numbers:
        with pytest.raises(RecipeError) as caught:
            Recipe.build({}, [f"{name}={value}"])
        assert name in str(caught.value) and caught.value.hint
