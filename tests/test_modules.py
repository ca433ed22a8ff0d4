"""Each module of the product has a test file: of its name, or the one that the table names."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
PACKAGES = {"toolkit": "edgeship.toolkit", "quantize": "edgeship.quantization"} | {
    name: f"edgeship.{name}" for name in ("targets", "calibration")
}
COVERED_BY = {  # test file -> modules without a file of their name
    "api/test_actions.py": """
        toolkit/api/_logging.py
        toolkit/api/classifier.py
        toolkit/api/images.py
        toolkit/api/models.py
    """,
    "api/test_verify.py": "toolkit/cli/verify.py",
    "calibration/test_datasets.py": "calibration/sets.py calibration/text.py toolkit/core/text.py",
    "calibration/test_doctor.py": "calibration/preprocessing_check.py",
    "calibration/test_decoding.py": "calibration/images.py",
    "calibration/test_hostile_archives.py": "calibration/file_sources.py",
    "cli/test_app.py": """
        toolkit/cli/_progress.py
        toolkit/core/signals.py
        toolkit/cli/deploy.py
        toolkit/cli/doctor.py
        toolkit/cli/store.py
        toolkit/core/options.py
        toolkit/core/plugins.py
    """,
    "cli/test_data_command.py": "toolkit/cli/train.py",
    "cli/test_outputs.py": "toolkit/cli/audit.py toolkit/cli/bundle.py",
    "cli/test_prune_command.py": "toolkit/cli/device.py",
    "cli/test_quantize_command.py": "toolkit/cli/inspect.py",
    "cli/test_run_command.py": """
        toolkit/cli/completion.py
        toolkit/cli/init.py
        toolkit/cli/list.py
        toolkit/pipeline/model_recipe.py
    """,
    "core/test_paired_statistics.py": "toolkit/core/statistics.py",
    "core/test_typed_json.py": """
        toolkit/core/artifact.py
        toolkit/core/errors.py
        toolkit/core/tensors.py
    """,
    "deploy/test_agent_releases.py": "toolkit/deploy/agent/__init__.py",
    "deploy/test_deploy_commands.py": """
        toolkit/cli/_devices.py
        toolkit/cli/prune_releases.py
        toolkit/cli/watch.py
    """,
    "deploy/test_doubts.py": "toolkit/core/int8_sums.py",
    "deploy/test_release.py": """
        toolkit/cli/rollback.py
        toolkit/cli/status.py
        toolkit/deploy/agent/commands.py
        toolkit/deploy/agent/object_store.py
        toolkit/deploy/agent/protocol.py
        toolkit/deploy/agent/subprocesses.py
        toolkit/deploy/agent_client.py
        toolkit/deploy/layout.py
        toolkit/deploy/verification.py
    """,
    "deploy/test_installer.py": """
        toolkit/deploy/updaters/device/install.py
        toolkit/deploy/updaters/device/local_agent.py
    """,
    "deploy/test_updaters.py": """
        toolkit/cli/_updates.py
        toolkit/deploy/updaters/formats/mender.py
        toolkit/deploy/updaters/formats/rauc.py
        toolkit/deploy/updaters/formats/swupdate.py
    """,
    "deploy/test_hostile_bundles.py": "toolkit/deploy/manifest.py",
    "deploy/test_hostile_devices.py": "toolkit/deploy/answer_types.py toolkit/deploy/answers.py",
    "deploy/test_trust.py": "toolkit/deploy/agent/policy.py",
    "deploy/test_rollout.py": "toolkit/deploy/fleet_report.py",
    "export_app/test_generated.py": """
        toolkit/export_app/kinds/dlstreamer.py
        toolkit/export_app/kinds/ovms.py
        toolkit/export_app/kinds/ros2.py
        toolkit/export_app/kinds/triton.py
        toolkit/export_app/programs/kserve_client.py
        toolkit/export_app/programs/ros2_node.py
        toolkit/export_app/tensorrt_build.py
    """,
    "export_app/test_gstreamer.py": """
        toolkit/export_app/kinds/gstreamer_python.py
        toolkit/export_app/programs/gstreamer_camera.py
    """,
    "export_app/test_http.py": "toolkit/export_app/programs/http_service.py",
    "export_app/test_cpp.py": "toolkit/export_app/kinds/cpp.py",
    "export_app/test_deepstream.py": "toolkit/export_app/kinds/deepstream.py",
    "export_app/test_export_app.py": """
        toolkit/cli/export_app.py
        toolkit/export_app/source.py
    """,
    "graph/test_fold.py": "toolkit/graph/reference.py",
    "graph/test_foreign.py": """
        toolkit/graph/batch.py
        toolkit/graph/edit.py
        toolkit/graph/fused.py
        toolkit/graph/input_shape.py
        toolkit/graph/io.py
        toolkit/graph/load.py
        toolkit/graph/opset.py
        toolkit/graph/padding.py
        toolkit/graph/shapes.py
        toolkit/graph/standard.py
    """,
    "graph/test_forms.py": "toolkit/graph/ending.py",
    "graph/test_graphs.py": "toolkit/graph/cost.py",
    "graph/test_pixels.py": "toolkit/core/quant.py",
    "graph/test_transposes.py": "toolkit/graph/conversion.py toolkit/graph/layout.py",
    "models/test_trainer.py": "toolkit/models/train_options.py",
    "models/test_weights.py": "toolkit/models/recognize.py",
    "pipeline/test_baseline_check.py": """
        calibration/class_order.py
        toolkit/models/batchnorm.py
        toolkit/pipeline/load_and_export.py
    """,
    "pipeline/test_code_closure.py": "toolkit/pipeline/__init__.py toolkit/pipeline/stages.py",
    "pipeline/test_end_to_end.py": "toolkit/cli/report.py",
    "pipeline/test_evaluation.py": """
        toolkit/core/parallel.py
        toolkit/pipeline/datasets.py
        toolkit/pipeline/verbs.py
    """,
    "pipeline/test_guarding.py": "toolkit/runs/guarded.py",
    "pipeline/test_mixed_precision.py": "toolkit/pipeline/quantizing.py",
    "pipeline/test_prune_stage.py": """
        toolkit/pipeline/distillation_time.py
        toolkit/pipeline/finetuning.py
        toolkit/pipeline/latency_table.py
        toolkit/pipeline/pruning.py
    """,
    "pipeline/test_runner.py": "toolkit/pipeline/publish.py",
    "pipeline/test_store.py": "toolkit/pipeline/fingerprints.py",
    "prove/test_prove.py": """
        toolkit/api/prove.py
        toolkit/cli/prove.py
        toolkit/prove/diagnosis.py
        toolkit/prove/golden.py
        toolkit/prove/outputs.py
        toolkit/prove/pipeline.py
        toolkit/prove/proof.py
    """,
    "runner/test_runner_watch.py": "targets/runner/monitor.py",
    "prove/test_faults.py": "toolkit/prove/pixels.py",
    "prune/test_finetune.py": "toolkit/prune/distill_options.py",
    "prune/test_joint_search.py": "toolkit/prune/joint_pruning.py",
    "prune/test_groups_and_apply.py": "toolkit/prune/groups.py",
    "prune/test_least_squares.py": """
        toolkit/prune/importances/__init__.py
        toolkit/prune/importances/magnitude.py
        toolkit/prune/importances/obs.py
        toolkit/prune/second_moments.py
    """,
    "prune/test_pruner.py": """
        toolkit/core/progress.py
        toolkit/prune/apply.py
        toolkit/prune/channel_selection.py
        toolkit/prune/checkpoints.py
        toolkit/prune/execute.py
        toolkit/prune/importances/batchnorm.py
        toolkit/prune/layer_refit.py
        toolkit/prune/options.py
        toolkit/prune/plan.py
        toolkit/prune/probe_images.py
        toolkit/prune/ranking.py
        toolkit/prune/reconstruction.py
        toolkit/prune/width_search.py
    """,
    "quantize/test_bias.py": "toolkit/core/memory.py",
    "quantize/test_calibrate.py": "quantize/activation_collector.py",
    "quantize/test_equalize.py": "quantize/observers/minmax.py",
    "quantize/test_guard.py": "quantize/guard_options.py",
    "quantize/test_observers.py": """
        quantize/observers/entropy.py
        quantize/observers/mse.py
        quantize/observers/percentile.py
    """,
    "quantize/test_quantize.py": """
        quantize/options.py
        quantize/outliers.py
        quantize/ptq.py
        quantize/qdq.py
        quantize/quantized_model.py
    """,
    "quantize/test_sections.py": "quantize/agreement.py quantize/onnx_node.py",
    "quantize/test_sensitivity.py": "toolkit/prune/importances/activation.py",
    "quantize/test_signs.py": "quantize/integer_bias.py",
    "quantize/test_torch_executor.py": "toolkit/graph/signs.py",
    "quantize/test_torch_ops.py": """
        quantize/node_call.py
        quantize/torch_elementwise.py
        quantize/torch_reduce.py
        quantize/torch_reshape.py
        quantize/torch_resize.py
    """,
    "report/test_charts.py": """
        toolkit/report/chart.py
        toolkit/report/details.py
        toolkit/report/quantization_charts.py
    """,
    "report/test_render.py": """
        toolkit/core/results.py
        toolkit/report/formatting.py
        toolkit/report/html.py
    """,
    "report/test_report_commands.py": "toolkit/cli/compare.py",
    "report/test_guard_summary.py": "toolkit/core/guard_results.py",
    "report/test_verdict.py": "toolkit/report/timing.py",
    "runs/test_contracts.py": """
        toolkit/runs/compiled.py
        toolkit/runs/index.py
        toolkit/runs/measured.py
        toolkit/runs/network.py
        toolkit/runs/quantized.py
    """,
    "runner/test_runner_classifier.py": """
        targets/runner/classify.py
        targets/runner/description.py
        toolkit/cli/predict.py
        toolkit/runs/description.py
        toolkit/runs/engines.py
    """,
    "runner/test_runner_cpu.py": """
        targets/runner/backends/onnxruntime.py
        targets/runner/backends/openvino.py
    """,
    "runner/test_runner_evalset.py": "targets/runner/engines.py",
    "runner/test_runner_guard.py": "targets/runner/guard_record.py",
    "runner/test_runner_file.py": """
        targets/runner/__init__.py
        targets/runner/cli.py
        targets/runner/output.py
    """,
    "runner/test_runner_sysfs.py": """
        targets/runner/backend.py
        targets/runner/power.py
        targets/runner/probe.py
        targets/runner/timing.py
    """,
    "runner/test_runner_tensorrt.py": """
        targets/runner/backends/__init__.py
        targets/runner/backends/tensorrt.py
        targets/runner/cuda.py
        targets/runner/inference.py
    """,
    "targets/test_audit_command.py": "targets/_openvino_audit.py toolkit/cli/export_jetson.py",
    "targets/test_layer_times.py": "targets/_onnxruntime_profile.py",
    "targets/test_measurements.py": "targets/_cpu_load.py targets/_energy.py targets/_memory.py",
    "targets/test_runtimes.py": """
        targets/__init__.py
        targets/_host.py
        targets/onnxruntime.py
        targets/openvino.py
    """,
    "targets/test_tensorrt_engine_analysis.py": """
        targets/tensorrt/engine_diff.py
        targets/tensorrt/engine_info.py
    """,
    "targets/test_tensorrt_engine_fuzz.py": "targets/tensorrt/engine_files.py",
    "targets/test_tensorrt_engine_records.py": "targets/tensorrt/engine_precision.py",
    "targets/test_tensorrt_jetson.py": "targets/tensorrt/__init__.py",
    "targets/test_tensorrt_lint.py": "targets/tensorrt/placement.py toolkit/graph/query.py",
    "targets/test_tensorrt_local_gpu.py": "targets/tensorrt/jetson_folder.py",
}
OTHERS = {module: test for test, modules in COVERED_BY.items() for module in modules.split()}


def has_code(path):
    first, *rest = ast.parse(path.read_text(encoding="utf-8")).body or [None]
    return bool(rest) or not (first is None or isinstance(first, ast.Expr))


MODULES = {
    str(path.relative_to(ROOT))
    for folder in PACKAGES
    for path in (ROOT / folder).rglob("*.py")
    if has_code(path)
}


def files_named_after(module):
    """The test files of a module's name, the likeliest first."""
    path = Path(module)
    stem = path.parent.name if path.stem == "__init__" else path.stem.strip("_")
    folder = next(part for part in (*path.parts[-2::-1], "") if (TESTS / part).is_dir())
    names = (stem, f"{path.parent.name}_{stem}", f"{stem}_command", f"{stem}_commands")
    return [name for name in (f"{folder}/test_{each}.py" for each in names) if (TESTS / name).exists()]


def dotted(path):
    top, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([PACKAGES.get(top, top), *(part for part in rest if part != "__init__")])


NAMES = {dotted(ROOT / module): ROOT / module for module in ("edgeship/__init__.py", *MODULES)}


@cache
def imported(path):
    """The product modules that a file imports, in functions and by name (plug-ins, commands) too."""
    text = path.read_text(encoding="utf-8")
    package = dotted(path).split(".") if path.name == "__init__.py" else dotted(path).split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            names.update(f"{module}.{each.name}" for each in node.names)
            names.update({module} - {"edgeship"})  # `import edgeship` alone reaches the whole API
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.update(f"{known}.{node.value.replace('-', '_')}" for known in PLUGINS)
            names.update(re.findall(r"edgeship(?:\.\w+)+", node.value))  # of another process
    names.update(name for name in NAMES for package in WHOLE & names if name.startswith(f"{package}."))
    return {NAMES[name] for name in names if name in NAMES}


WHOLE = {  # packages that are copied to devices, or whose plug-ins are all tested by `names()`
    "edgeship.toolkit.deploy.agent",
    "edgeship.toolkit.deploy.updaters.device",
    "edgeship.toolkit.export_app.programs",
    "edgeship.targets.runner",
    "edgeship.toolkit.prune.importances",
    "edgeship.quantization.observers",
}
PLUGINS = (  # packages whose modules are imported by name
    "edgeship",
    "edgeship.targets",
    "edgeship.targets.runner.backends",
    "edgeship.toolkit.cli",
    "edgeship.toolkit.deploy.updaters.formats",
    "edgeship.toolkit.export_app.kinds",
)


@cache
def reached(test):
    reached, pending = set(), [TESTS / test]
    while pending:
        for path in imported(pending.pop()) - reached:
            reached.add(path)
            pending.append(path)
    return reached


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_has_a_test_file_that_reaches_it(module):
    tests = [OTHERS[module]] if module in OTHERS else files_named_after(module)
    assert tests, f"write tests/.../test_{Path(module).stem}.py, or name its test file in the table"
    assert any(ROOT / module in reached(test) for test in tests), f"{tests} do not reach {module}"


def test_the_table_names_modules_and_test_files_that_exist():
    assert set(OTHERS) <= MODULES
    assert [test for test in COVERED_BY if not (TESTS / test).exists()] == []
