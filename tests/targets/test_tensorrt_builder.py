"""Builder flags and trtexec arguments against the published tables, version by version."""

import pytest

from edgeship.targets.tensorrt import versions
from edgeship.targets.tensorrt.builder import BuildOptions, measure, plan
from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.core.tensors import ShapeProfile

WEAK, STRONG = BuildOptions(timing_cache="t.cache"), BuildOptions(half_typed=True, timing_cache="t.cache")


@pytest.mark.parametrize(
    ("version", "argv"),
    [
        (
            "8.2.1",
            "--onnx={onnx} --int8 --fp16 --saveEngine={plan} --workspace=1024 --timingCacheFile=t.cache "
            "--profilingVerbosity=detailed --buildOnly",
        ),
        (
            "8.5.2",
            "--onnx={onnx} --int8 --fp16 --saveEngine={plan} --memPoolSize=workspace:1024 "
            "--timingCacheFile=t.cache --profilingVerbosity=detailed --buildOnly",
        ),
        (
            "8.6.2",
            "--onnx={onnx} --int8 --fp16 --saveEngine={plan} --memPoolSize=workspace:1024 "
            "--timingCacheFile=t.cache --profilingVerbosity=detailed --builderOptimizationLevel=3 "
            "--skipInference",
        ),
        (
            "10.3.0",
            "--onnx={onnx} --int8 --fp16 --saveEngine={plan} --memPoolSize=workspace:1024 "
            "--timingCacheFile=t.cache --profilingVerbosity=detailed --builderOptimizationLevel=3 "
            "--skipInference",
        ),
        (
            "10.16.2",
            "--onnx={onnx} --int8 --fp16 --saveEngine={plan} --memPoolSize=workspace:1024 "
            "--timingCacheFile=t.cache --profilingVerbosity=detailed --builderOptimizationLevel=3 "
            "--skipInference",
        ),
        (
            "11.4.1",
            "--onnx={onnx} --saveEngine={plan} --memPoolSize=workspace:1024 --timingCacheFile=t.cache "
            "--profilingVerbosity=detailed --builderOptimizationLevel=3 --skipInference",
        ),
    ],
)
def test_trtexec_of_each_version(version, argv):
    assert plan(version, WEAK).trtexec == tuple(argv.split())


@pytest.mark.parametrize("version", ["10.3", "10.7", "10.12", "10.13", "10.16"])
def test_an_fp16_typed_graph_is_built_strongly_typed_on_10(version):
    made = plan(version, STRONG)
    assert made.network_flags == ("STRONGLY_TYPED",)
    assert made.builder_flags == ()
    assert "--stronglyTyped" in made.trtexec
    assert not {"--int8", "--fp16", "--best"} & set(made.trtexec)


# one row for each name in the tables: does the version have it?
TABLE = [  # what,                      8.2, 8.5, 8.6, 10.3, 10.13, 11.4
    ("EXPLICIT_BATCH", (True, True, True, False, False, False)),
    ("INT8", (True, True, True, True, True, False)),
    ("FP16", (True, True, True, True, True, False)),
    ("--int8", (True, True, True, True, True, False)),
    ("--workspace", (True, False, False, False, False, False)),
    ("--memPoolSize", (False, True, True, True, True, True)),
    ("--buildOnly", (True, True, False, False, False, False)),
    ("--skipInference", (False, False, True, True, True, True)),
    ("--builderOptimizationLevel", (False, False, True, True, True, True)),
    ("--profilingVerbosity", (True, True, True, True, True, True)),
    ("set_memory_pool_limit", (False, True, True, True, True, True)),
    ("tensor names", (False, True, True, True, True, True)),
]


@pytest.mark.parametrize(("what", "row"), TABLE, ids=[row[0] for row in TABLE])
def test_each_row_of_the_tables(what, row):
    for version, there in zip(("8.2", "8.5", "8.6", "10.3", "10.13", "11.4"), row, strict=True):
        made = plan(version, WEAK)
        words = {argument.split("=")[0] for argument in made.trtexec}
        options = {*words, *made.network_flags, *made.builder_flags, made.workspace, made.io}
        assert (what in options) is there, version


@pytest.mark.parametrize(
    ("version", "group"),
    [
        ("8.2", "8.2"),
        ("8.4", "8.4"),
        ("8.5", "8.4"),
        ("8.6", "8.4"),
        ("10.0", "10"),
        ("10.16", "10"),
        ("11.4", "11"),
    ],
)
def test_api_groups(version, group):
    assert plan(version, WEAK).group == group


@pytest.mark.parametrize(
    ("version", "strong", "dla"),
    [
        ("8.5", "no", "implicit"),
        ("8.6", "no", "implicit"),
        ("10.3", "possible", "implicit"),
        ("10.7", "possible", "implicit"),
        ("10.8", "possible", "none"),
        ("10.11", "possible", "none"),
        ("10.12", "recommended", "none"),
        ("10.16", "recommended", "none"),
        ("11.1", "always", "none"),
        ("11.4.1", "always", "explicit"),
    ],
)
def test_typing_and_dla(version, strong, dla):
    known = versions.rules(version)
    assert (known.strongly_typed, known.dla) == (strong, dla)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("version", versions.IN_THE_FIELD)
def test_every_version_in_the_field_builds_every_precision_somehow(version, precision):
    half = versions.rules(version).strongly_typed == "always" and precision == "fp16"
    made = plan(version, BuildOptions(precision=precision, half_typed=half))
    wanted = {"fp32": set(), "fp16": {"FP16"}, "int8": {"INT8", "FP16"}}[precision]
    assert set(made.builder_flags) == (set() if made.group == "11" else wanted)


def test_fp8_is_built_from_the_types_of_the_graph_alone():
    for version in ("10.13", "11.4"):
        made = plan(version, BuildOptions(precision="fp8", half_typed=True))
        assert made.builder_flags == () and not {"--int8", "--fp16", "--fp8"} & set(made.trtexec)
        assert ("--stronglyTyped" in made.trtexec) == (version == "10.13")
    for version, half in (("10.13", False), ("8.6", True)):
        with pytest.raises(RecipeError):
            plan(version, BuildOptions(precision="fp8", half_typed=half))


def test_dynamic_batch_sparsity_and_dla():
    shapes = ShapeProfile((1, 3, 224, 224), (8, 3, 224, 224), (16, 3, 224, 224))
    made = plan("10.3", BuildOptions(profile={"images": shapes}, sparsity=True))
    assert {"--minShapes=images:1x3x224x224", "--maxShapes=images:16x3x224x224"} <= set(made.trtexec)
    assert "--sparsity=enable" in made.trtexec
    assert "SPARSE_WEIGHTS" in made.builder_flags
    dla = BuildOptions(dla_core=0, calibration_cache="c", layer_precisions=(("pool", "fp16"), ("fc", "fp16")))
    argv = plan("8.5", dla).trtexec
    assert {
        "--useDLACore=0",
        "--allowGPUFallback",
        "--calib=c",
        "--layerPrecisions=pool:fp16,fc:fp16",
    } <= set(argv)
    assert "GPU_FALLBACK" in plan("8.5", dla).builder_flags


@pytest.mark.parametrize(
    ("version", "options", "says"),
    [
        ("8.6", STRONG, "no strong typing"),
        ("11.4", BuildOptions(precision="fp16"), "types from the graph"),
        ("10.13", BuildOptions(dla_core=0), "no DLA"),
        ("11.4", BuildOptions(dla_core=0), "goes by the types"),
        ("11.4", BuildOptions(calibration_cache="c"), "no calibration caches"),
        ("9.9", WEAK, "no rules"),
    ],
)
def test_what_a_version_cannot_do_is_refused_with_a_way_out(version, options, says):
    with pytest.raises(RecipeError, match=says) as caught:
        plan(version, options)
    assert caught.value.hint


LAYERS = (("layer1.conv2", "fp16"), ("layer2.conv2", "fp16"))
FLAG_VERSIONS = ((8, 2), (8, 4), (8, 5), (8, 6), (10, 3), (10, 7), (10, 13), (10, 16), (11, 4))
FLAGS = {  # flag: y where trtexec of the version has it
    "--int8": "yyyyyyyyn",
    "--fp16": "yyyyyyyyn",
    "--calib": "yyyyyyyyn",
    "--workspace": "yyyynnnnn",
    "--memPoolSize": "nyyyyyyyy",
    "--buildOnly": "yyyynnnnn",
    "--skipInference": "nnnyyyyyy",
    "--builderOptimizationLevel": "nnnyyyyyy",
    "--precisionConstraints": "nyyyyyyyn",
    "--layerPrecisions": "nyyyyyyyn",
    "--stronglyTyped": "nnnnyyyyy",
    "--useCudaGraph": "yyyyyyyyn",  # in 11 it does nothing
    "--noDataTransfers": "yyyyyyyyn",
    "--useSpinWait": "yyyyyyyyn",
    "--noCudaGraph": "nnnnnnnny",
    "--includeDataTransfers": "nnnnnnnny",
    "--tuneBuildRouteFile": "nnnnnnnny",
}
EVERYWHERE = {
    *("--onnx", "--saveEngine", "--timingCacheFile", "--profilingVerbosity", "--sparsity", "--useDLACore"),
    *("--allowGPUFallback", "--minShapes", "--optShapes", "--maxShapes", "--warmUp", "--duration"),
}


@pytest.mark.parametrize(
    ("place", "version"),
    [(place, f"{major}.{minor}") for place, (major, minor) in enumerate(FLAG_VERSIONS)],
)
def test_every_flag_exists_in_that_version(place, version):
    shapes = ShapeProfile((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
    printed = set()
    for precision in ("fp32", "fp16", "int8"):
        for half in (False, True):
            for core in (None, 0):
                for more in ({}, {"calibration_cache": "c", "layer_precisions": LAYERS}):
                    options = BuildOptions(
                        precision,
                        half,
                        timing_cache="t",
                        sparsity=True,
                        profile={"x": shapes},
                        dla_core=core,
                        **more,
                    )
                    try:
                        printed.update(plan(version, options).trtexec)
                    except RecipeError:
                        continue
    for boundary in ("gpu", "copies", "enqueue"):
        printed.update(measure(version, boundary))
    names = {argument.split("=")[0] for argument in printed}
    assert names - EVERYWHERE
    assert {name for name in names - EVERYWHERE if FLAGS[name][place] != "y"} == set()


def test_layer_precisions_are_younger_than_8_2_and_the_plan_notes_it():
    options = BuildOptions(dla_core=0, calibration_cache="c", layer_precisions=LAYERS)
    oldest = plan("8.2.1", options)
    assert not [item for item in oldest.trtexec if "recisions" in item or "Constraints" in item]
    assert {"--int8", "--fp16", "--calib=c", "--useDLACore=0"} <= set(oldest.trtexec)
    assert "--layerPrecisions" in oldest.notes[0] and "2 layers" in oldest.notes[0]
    assert "--precisionConstraints=prefer" in plan("8.4.1", options).trtexec
    assert plan("8.4.1", options).notes == ()


def test_the_table_of_flags_agrees_with_the_tests():
    for flag, (first, without) in versions.TRTEXEC.items():
        for version, there in zip(FLAG_VERSIONS, FLAGS[flag], strict=True):
            assert versions.has_flag(version, flag) is (there == "y"), flag
        assert without is None or first < without
    assert versions.has_flag((8, 2), "--onnx")
    assert versions.has_flag((11, 0), "--noCudaGraph") and versions.has_flag(
        (11, 0), "--includeDataTransfers"
    )
    assert not versions.has_flag((11, 0), "--int8") and not versions.has_flag((10, 0), "--workspace")


@pytest.mark.parametrize(
    ("version", "boundary", "flags"),
    [
        ("8.5", "gpu", ["--noDataTransfers", "--useCudaGraph", "--useSpinWait"]),
        ("10.16", "gpu", ["--noDataTransfers", "--useCudaGraph", "--useSpinWait"]),
        ("10.3", "copies", []),
        ("10.3", "enqueue", []),
        ("11.4", "gpu", []),
        ("11.4", "copies", ["--includeDataTransfers"]),
        ("11.4", "enqueue", ["--noCudaGraph"]),
    ],
)
def test_the_same_measurement_on_every_version(version, boundary, flags):
    assert measure(version, boundary) == ("--warmUp=1000", "--duration=10", *flags)
