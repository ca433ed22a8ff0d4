"""Options that a stage declares: they alone can be read, and they alone are in its key."""

import pytest

from edgeship.toolkit.core.artifact import write_json
from edgeship.toolkit.pipeline import Store, run
from edgeship.toolkit.pipeline.recipe import Recipe, option_help
from edgeship.toolkit.pipeline.stage import Stage, UndeclaredOptionError, restricted
from edgeship.toolkit.pipeline.stages import STAGES

BASE = {"select": {"source": "digits"}, "evaluate": {"source": "digits:test"}}
PRUNING = {**BASE, "prune": {"keep_ratio": 0.5, "method": "obs"}, "finetune": {"epochs": 1}}
BY_NAME = {stage.name: stage for stage in STAGES}


def reading(*names):
    def work(recipe, inputs, out, work_dir):
        values = []
        for section, key in names:
            values.append(getattr(getattr(recipe, section), key))
        write_json(out / "values.json", values)

    return work


def test_a_stage_that_reads_an_undeclared_option_fails(tmp_path):
    work = reading(("load", "model"), ("export", "size"))
    run(Recipe(), store=Store(tmp_path), stages=[Stage("load", work, reads=("export.size",))])
    with pytest.raises(UndeclaredOptionError, match=r"'load' reads export\.size"):
        run(Recipe(), store=Store(tmp_path), stages=[Stage("load", work, reads=("export.batch",))])
    with pytest.raises(UndeclaredOptionError, match=r"export\.size"):
        run(Recipe(), store=Store(tmp_path), stages=[Stage("load", work)])


@pytest.mark.parametrize("part", ["implementation", "on_device", "extra_key"])
def test_what_makes_the_key_reads_declared_options_only(tmp_path, part):
    work = reading(("load", "model"))
    stage = Stage("load", work, **{part: lambda recipe: recipe.export.size or work})
    with pytest.raises(UndeclaredOptionError, match=r"export\.size"):
        run(Recipe(), store=Store(tmp_path), stages=[stage])


def test_only_declared_options_change_the_key(tmp_path):
    def cached(overrides, reads):
        stage = Stage("load", reading(), reads=reads)
        return run(Recipe.build({}, overrides), store=Store(tmp_path), stages=[stage]).stages[0].cached

    assert not cached([], ("export.size",))
    assert cached(["export.batch=4", "bench.runs=3"], ("export.size",))
    assert not cached(["export.size=32"], ("export.size",))
    assert not cached(["load.output=x"], ("export.size",))


def test_a_restricted_recipe_has_no_name_and_no_undeclared_section():
    view = restricted(Recipe(name="own.toml"), "select", ["select", "evaluate.source"])
    assert (view.name, view.select.images, view.evaluate.source) == ("", 300, "")
    with pytest.raises(UndeclaredOptionError, match=r"evaluate\.images"):
        _ = view.evaluate.images


@pytest.mark.parametrize("table", [BASE, PRUNING])
def test_what_the_stages_declare_are_options(table):
    recipe = Recipe.build(table)
    names = {name for name, _, _ in option_help()}
    for stage in STAGES:
        section, *others = stage.options(recipe)
        assert section == stage.name
        assert set(others) <= names


def test_conditional_reads_follow_the_recipe():
    plain, pruning = Recipe.build(BASE), Recipe.build(PRUNING)
    assert BY_NAME["prune"].options(plain) == ("prune",)
    assert BY_NAME["prune"].options(pruning) == ("prune", "evaluate.source", "select.source")
    timed = Recipe.build({**BASE, "prune": {"latency_ratio": 0.5, "method": "obs", "source": "digits"}})
    assert BY_NAME["prune"].options(timed)[1:] == ("evaluate.source", "compile.targets", "bench.threads")
    assert BY_NAME["finetune"].options(plain) == ("finetune", "prune.budget_s")
    assert "select.source" not in BY_NAME["quantize"].options(plain)
    assert "select.source" in BY_NAME["quantize"].options(Recipe.build(BASE, ["quantize.min_agreement=0.9"]))
