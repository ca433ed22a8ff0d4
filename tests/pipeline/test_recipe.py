"""Recipes: typed values from TOML and the command line, renamed options, errors."""

import logging
import re

import pytest

from edgeship.toolkit.core.errors import RecipeError, ToolkitError
from edgeship.toolkit.core.options import read_toml, warn_renamed
from edgeship.toolkit.core.threads import granted_cores
from edgeship.toolkit.pipeline.recipe import Recipe, check_required, names
from edgeship.toolkit.prune.options import GOALS


@pytest.fixture
def recipe(tmp_path):
    def write(text: str):
        path = tmp_path / "own.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_values_have_the_type_of_the_option(recipe):
    path = recipe(
        """
        [load]
        model = "resnet18"
        preprocess = {resize = 64, mean = [0.5, 0.5, 1]}
        [export]
        batch = "dynamic"
        [compile]
        targets = ["openvino"]
        [report]
        max_drop_pp = 1
        """
    )
    got = Recipe.read(path)
    assert got.load.preprocess.resize == 64
    assert got.load.preprocess.mean == (0.5, 0.5, 1.0)
    assert got.load.preprocess.std is None
    assert got.export.batch == "dynamic"
    assert got.compile.targets == ("openvino",)
    assert got.report.max_drop_pp == 1.0 and isinstance(got.report.max_drop_pp, float)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("load.model=resnet50", lambda r: r.load.model == "resnet50"),
        ("load.weights=2024", lambda r: r.load.weights == "2024"),
        ("load.weights='a b.pth'", lambda r: r.load.weights == "a b.pth"),
        ("load.weights=with=sign.pth", lambda r: r.load.weights == "with=sign.pth"),
        ("load.preprocess.resize=64", lambda r: r.load.preprocess.resize == 64),
        ("load.preprocess={crop=32,std=[1,1,1]}", lambda r: r.load.preprocess.std == (1.0, 1.0, 1.0)),
        ("load.preprocess.mean=0.5,0.4,0.3", lambda r: r.load.preprocess.mean == (0.5, 0.4, 0.3)),
        ("compile.targets=openvino,onnxruntime", lambda r: r.compile.targets == ("openvino", "onnxruntime")),
        ('compile.targets=["openvino"]', lambda r: r.compile.targets == ("openvino",)),
        ("export.batch=4", lambda r: r.export.batch == 4),
        ("export.batch=dynamic", lambda r: r.export.batch == "dynamic"),
        ("evaluate.images=all", lambda r: r.evaluate.images == "all"),
        ("evaluate.images=50", lambda r: r.evaluate.images == 50),
        ("select.skip_unreadable=true", lambda r: r.select.skip_unreadable is True),
        ("report.max_drop_pp=none", lambda r: r.report.max_drop_pp is None),
    ],
)
def test_overrides_need_no_quotes(recipe, override, value):
    base = recipe("[evaluate]\nimages = 7\n[report]\nmax_drop_pp = 0.5\n")
    assert value(Recipe.read(base, [override]))


@pytest.mark.parametrize("written", ["0.5", "[0.5]"])
def test_one_number_is_a_list_of_one(recipe, written):
    assert Recipe.read(recipe(f"[load.preprocess]\nmean = {written}\n")).load.preprocess.mean == (0.5,)
    assert Recipe.read(recipe(""), [f"load.preprocess.mean={written}"]).load.preprocess.mean == (0.5,)


def test_an_override_keeps_its_neighbours(recipe):
    path = recipe("[load]\npreprocess = {resize = 64, crop = 60}\n")
    got = Recipe.read(path, ["load.preprocess.crop=56"])
    assert (got.load.preprocess.resize, got.load.preprocess.crop) == (64, 56)


def test_overrides_may_be_a_mapping(recipe):
    got = Recipe.read(recipe(""), {"select.images": 5, "compile.targets": ["openvino"]})
    assert got.select.images == 5


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("selekt.images=3", "unknown section 'selekt'", "did you mean 'select'"),
        ("select.image=3", "unknown 'select.image'", "did you mean 'images'"),
        ("load.preprocess.rezise=3", "unknown 'load.preprocess.rezise'", "did you mean 'resize'"),
        ("select.images=many", "select.images cannot be 'many'", "a whole number"),
        ("select.images=2.5", "select.images cannot be 2.5", "a whole number"),
        ("select.images=true", "select.images cannot be True", "a whole number"),
        ("select.skip_unreadable=maybe", "select.skip_unreadable cannot be 'maybe'", "true or false"),
        ("select.images=0", "select.images = 0 must be at least 1", "Number of"),
        ("prune.keep_ratio=1.5", "prune.keep_ratio = 1.5 must be at most 1.0", "Ratio of"),
        (f"bench.threads={granted_cores() + 1}", "must be at most", "cores"),
        ("prune.keep_ratio=0", "prune.keep_ratio = 0.0 must be above 0.0", "Ratio of"),
        ("report.max_drop_pp=nan", "report.max_drop_pp is not a number", "number"),
        ("quantize.effort=fats", "quantize.effort cannot be 'fats'", "did you mean 'fast'"),
        ("compile.targets=openvin", "compile.targets cannot be 'openvin'", "did you mean 'openvino'"),
        (
            "load.preprocess.mean=grey",
            "mean cannot be 'grey'",
            "a list, each a number, separated by commas: mean=0.5",
        ),
        ("load.preprocess.mean=true", "load.preprocess.mean cannot be True", "mean=0.5,0.25"),
        ("compile.targets=3", "compile.targets cannot be 3", "a list, each a text: targets=one,two"),
        ("load.preprocess=64", "load.preprocess must be a section", "[load.preprocess]"),
        ("select.exclude=x", "unknown 'select.exclude'", "known"),
        ("images=3", "cannot read 'images=3'", "section.key=value"),
        ("select.images", "cannot read 'select.images'", "section.key=value"),
    ],
)
def test_what_is_wrong_is_named(recipe, override, message, hint):
    with pytest.raises(RecipeError) as caught:
        Recipe.read(recipe(""), [override])
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


RENAMED = [
    ("prune.keep", "prune.keep_ratio", 0.5),
    ("prune.macs", "prune.macs_ratio", 0.5),
    ("prune.target_latency", "prune.latency_ratio", 0.5),
    ("prune.max_drop_pp", "prune.max_expected_drop_pp", 2.0),
    ("prune.step", "prune.channel_multiple", 8),
    ("prune.mirror", "prune.flip_augment", False),
    ("finetune.int8_part", "finetune.qat_fraction", 0.5),
    ("quantize.judge_images", "quantize.validation_images", 7),
    ("quantize.max_drop_pp", "quantize.max_validation_drop_pp", 0.5),
    ("quantize.int8_sums", "quantize.overflow_fix", "pairs"),
    ("select.skip_bad", "select.skip_unreadable", True),
    ("evaluate.skip_bad", "evaluate.skip_unreadable", True),
]


@pytest.mark.parametrize(("former", "current", "value"), RENAMED)
def test_a_former_name_sets_the_option_and_warns_once(recipe, caplog, former, current, value):
    section, key = former.split(".")
    text = str(value).lower() if isinstance(value, bool) else value
    as_toml = f"'{text}'" if isinstance(text, str) and not isinstance(value, bool) else text
    warn_renamed.cache_clear()
    method = "[prune]\nmethod = 'obs'\n" if current.partition(".")[2] in GOALS else f"[{section}]\n"
    with caplog.at_level(logging.WARNING, "edgeship"):
        from_file = Recipe.read(recipe(f"{method}{key} = {as_toml}\n"))
        from_text = Recipe.read(recipe(method), [f"{former}={text}"])
        from_mapping = Recipe.read(recipe(method), {former: value})
        from_section = Recipe.build(read_toml(recipe(f"{method}{key} = {as_toml}\n")))
    expected = Recipe.read(recipe(method), {current: value})
    assert from_file == from_text == from_mapping == expected
    assert getattr(from_section, section) == getattr(expected, section) != getattr(Recipe(), section)
    assert [record.getMessage() for record in caplog.records] == [f"option {former} is called {current} now"]


def test_an_override_by_the_former_name_replaces_the_value_of_the_file(recipe):
    path = recipe("[prune]\nmethod = 'obs'\nkeep_ratio = 0.5\n")
    assert Recipe.read(path, ["prune.keep=0.25"]).prune.keep_ratio == 0.25
    path = recipe("[prune]\nkeep = 0.5\n")
    assert Recipe.read(path, ["prune.keep_ratio=none"]).prune.keep_ratio is None
    assert Recipe.read(path, ["prune.keep=none"]).prune.keep_ratio is None


def test_a_key_under_both_names_is_an_error(recipe):
    with pytest.raises(RecipeError, match=r"prune\.keep and prune\.keep_ratio are both set"):
        Recipe.read(recipe("[prune]\nkeep = 0.5\nkeep_ratio = 0.5\n"))
    with pytest.raises(RecipeError, match=r"prune\.keep_ratio and prune\.keep are both set"):
        Recipe.read(recipe(""), ["prune.keep_ratio=0.5", "prune.keep=0.5"])
    overrides = ["prune.method=obs", "prune.keep=0.5", "prune.keep=0.25"]
    assert Recipe.read(recipe(""), overrides).prune.keep_ratio == 0.25


@pytest.mark.parametrize(
    ("former", "current"), [("inner", "block"), ("stream", "residual"), ("both", "both")]
)
def test_former_values_are_accepted(recipe, caplog, former, current):
    warn_renamed.cache_clear()
    with caplog.at_level(logging.WARNING, "edgeship"):
        assert Recipe.read(recipe(""), [f"prune.scope={former}"]).prune.scope == current
    texts = [record.getMessage() for record in caplog.records]
    assert texts == ([f"prune.scope = {former} is called {current} now"] if former != current else [])


def test_the_report_keeps_its_limit_name(recipe):
    assert Recipe.read(recipe(""), ["report.max_drop_pp=1"]).report.max_drop_pp == 1.0


def test_toml_errors_have_a_line(recipe):
    with pytest.raises(RecipeError, match=r"is not TOML: .*line 2"):
        Recipe.read(recipe("[load]\nmodel = resnet18\n"))


def test_missing_files_and_names():
    with pytest.raises(RecipeError, match=r"no recipe file nowhere/x\.toml"):
        Recipe.read("nowhere/x.toml")
    with pytest.raises(RecipeError, match="no recipe named 'quikstart'") as caught:
        Recipe.read("quikstart")
    assert "quickstart" in caught.value.hint


def test_paths_in_a_file_are_relative_to_it_and_words_are_not_paths(recipe, tmp_path):
    (tmp_path / "net.pth").write_bytes(b"x")
    (tmp_path / "digits").mkdir()
    (tmp_path / "resnet18").mkdir()
    got = Recipe.read(
        recipe('[load]\nmodel = "resnet18"\nweights = "net.pth"\n[select]\nsource = "digits:train"\n')
    )
    assert got.load.weights == str(tmp_path / "net.pth")
    assert got.load.model == "resnet18"
    assert got.select.source == "digits:train"


def test_pruning_and_fine_tuning_use_the_calibration_source_unless_they_have_their_own(recipe):
    text = '[select]\nsource = "digits:train"\n[finetune]\nsource = "digits:test"\n'
    got = Recipe.read(recipe(text))
    assert (got.prune_source, got.finetune_source) == ("digits:train", "digits:test")


def test_a_section_starts_from_the_defaults_of_the_recipe(recipe):
    got = Recipe.read(recipe("[finetune]\nbatch = 8\n[prune]\nimages = 7\n"))
    assert (got.finetune.epochs, got.finetune.batch) == (0, 8)
    assert (got.prune.method, got.prune.images) == ("none", 7)


def test_required_options_are_asked_for_only_where_needed(recipe):
    got = Recipe.read(recipe('[select]\nsource = "digits"\n'))
    check_required(got, ["select", "quantize"])
    with pytest.raises(RecipeError, match=r"evaluate\.source is not set") as caught:
        check_required(got, ["select", "evaluate"])
    assert "--set evaluate.source=" in caught.value.hint


@pytest.mark.parametrize("name", names())
def test_every_recipe_that_comes_along_is_valid_and_explains_itself(name):
    recipe = Recipe.read(name)
    assert recipe.name == name
    from edgeship.toolkit.pipeline.recipe import find

    assert find(name).read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("written", ['"96x128"', "[96, 128]", '"96,128"'])
def test_images_need_not_be_square(written, recipe):
    path = recipe(
        f"[export]\nsize = {written}\n[load]\npreprocess = {{resize = '100x130', crop = {written}}}\n"
    )
    got = Recipe.read(path)
    assert got.export.size == got.load.preprocess.crop == (96, 128)
    assert got.load.preprocess.resize == (100, 130)


def test_a_size_of_equal_sides_is_one_number_but_a_resize_of_two_stays(recipe):
    got = Recipe.read(recipe(""), ["export.size=64x64", "load.preprocess.resize=64x64"])
    assert (got.export.size, got.load.preprocess.resize) == (64, (64, 64))


@pytest.mark.parametrize("written", ["96x", "0,96", "96x128x3", "wide", "true", "[96.5, 128]"])
def test_what_is_no_size_is_refused(written, recipe):
    with pytest.raises(RecipeError, match=r"export\.size"):
        Recipe.read(recipe(""), [f"export.size={written}"])


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"precisions": ["fp8", "int8"], "module": "thor"}, ""),
        ({"precisions": ["fp8"], "module": "Orin NX"}, "computes no FP8"),
        ({"precisions": ["fp8"], "jetpack": "6.0"}, "TensorRT 8.6.2 has no FP8"),
        ({"precisions": ["int4"]}, "cannot be 'int4'"),
        ({"module": "Orin Nano", "jetpack": "4.6.1"}, "Orin Nano has no JetPack 4.6.1"),
        ({"module": "toaster"}, "no Jetson module"),
    ],
)
def test_precisions_and_module_of_the_device(options, refusal):
    table = {"select": {"source": "x"}, "compile": options}
    if not refusal:
        assert Recipe.build(table).compile.device_version() == "10.16.2"
        return
    with pytest.raises(ToolkitError, match=re.escape(refusal)) as caught:
        Recipe.build(table)
    assert caught.value.hint
