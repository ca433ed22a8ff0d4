"""Facts gathered from whole file trees, power while something runs, and the verdict on a measurement."""

import copy
import json
import time

import pytest
from runner import jetson_tree

from edgeship.targets import _energy
from edgeship.targets.runner import backend, power, probe, sysfs, timing
from edgeship.toolkit.core import statistics


@pytest.fixture
def orin(tmp_path):
    return sysfs.Tree(str(jetson_tree.lay(tmp_path, jetson_tree.ORIN_NANO)))


def test_probe_of_a_laid_tree_without_any_sdk(run_fake, tmp_path):
    root = jetson_tree.lay(tmp_path / "root", jetson_tree.ORIN_NANO)
    answer = run_fake("8.2", "probe", "--root", root)
    found = answer.result["facts"]
    assert found["jetson"] == {
        "module": "NVIDIA Jetson Orin Nano Developer Kit",
        "chip": "Orin",
        "sm": "8.7",
        "l4t": "36.4.3",
        "jetpack": "6.2",
        "jetpack_from": "package",
        "dla_cores": 0,
        "gpu_int8": True,
    }
    assert found["power"] == {
        "mode": "15W",
        "mode_id": 0,
        "modes": ["15W", "25W", "MAXN_SUPER"],
        "mode_ids": {"15W": 0, "25W": 1, "MAXN_SUPER": 2},
    }
    assert found["clocks"]["gpu"] == {
        "device": "17000000.gpu",
        "min_hz": 306000000,
        "max_hz": 1020000000,
        "current_hz": 306000000,
        "governor": "nvhost_podgov",
        "locked": False,
        "load_percent": 12.5,
    }
    assert found["clocks"]["cpu"]["current_hz"] == 1510400000
    assert found["rails"] == {
        "source": "ina3221",
        "rails_mw": {"VDD_IN": 5400, "VDD_CPU_GPU_CV": 1000, "VDD_SOC": 1600},
        "total_mw": 5400,
        "total_from": "VDD_IN",
        "gpu_rail": "VDD_CPU_GPU_CV",
    }
    assert found["thermal"]["temperatures_c"] == {"gpu-thermal": 47.625}
    assert found["sdk"]["cuda"] == "12.6.68"
    assert found["sdk"]["tensorrt_library"] == "10.3.0"
    assert found["memory"]["total_bytes"] == 7802696 * 1024
    assert found["cpu"]["instruction_sets"] == ["neon", "dotprod"]
    codes = [problem["code"] for problem in answer.result["problems"]]
    assert codes == ["tensorrt-too-old", "power-mode", "clocks-free", "over-current", "no-backend"]
    assert all(problem["cause"] and problem["cure"] for problem in answer.result["problems"])
    assert "sudo nvpmodel -m 2 (MAXN_SUPER)" in answer.result["problems"][1]["cure"]


def test_a_jetson_without_tensorrt_is_told_what_to_install_and_runs_onnx_runtime(run, tmp_path):
    root = jetson_tree.lay(tmp_path / "root", jetson_tree.ORIN_NANO)
    answer = run("probe", "--root", root)
    assert answer.result["problems"][0]["code"] == "tensorrt-missing"
    assert "nvidia-jetpack" in answer.result["problems"][0]["cure"]
    assert answer.result["backends"]["onnxruntime"]["available"] is True


def test_a_nano_on_jetpack_4(tmp_path):
    found = sysfs.gather(sysfs.Tree(str(jetson_tree.lay(tmp_path, jetson_tree.NANO))), str(tmp_path))
    assert found["jetson"]["jetpack"] == "4.6.1"
    assert found["jetson"]["jetpack_from"] == "table of L4T versions"
    assert (found["jetson"]["sm"], found["jetson"]["gpu_int8"]) == ("5.3", False)
    assert found["clocks"]["gpu"]["locked"] is True
    assert (found["rails"]["total_mw"], found["rails"]["total_from"]) == (933, "POM_5V_IN")
    assert found["sdk"]["cuda"] == "10.2.300"


def test_int8_is_refused_from_the_device_tree_alone(run_fake, tmp_path):
    root = jetson_tree.lay(tmp_path / "root", jetson_tree.NANO)
    (tmp_path / "g").write_text(json.dumps({"shape": [1, 3, 4, 4], "classes": 2}))
    arguments = [
        "build",
        "--graph",
        tmp_path / "g",
        "--out",
        tmp_path / "e",
        "--backend",
        "tensorrt",
        "--root",
        root,
    ]
    answer = run_fake("8.5", *arguments, "--precision", "int8", EDGESHIP_FAKE_SM="5.3")
    assert answer.result["error"]["code"] == "precision-refused"


def test_an_empty_tree_gives_nulls_and_no_numbers(tmp_path):
    found = sysfs.gather(sysfs.Tree(str(tmp_path)), str(tmp_path / "no such folder"))
    assert found["jetson"] is None
    assert found["rails"]["total_mw"] is None
    assert found["clocks"] == {
        "gpu": None,
        "cpu": {"min_hz": None, "max_hz": None, "current_hz": None, "governor": None},
        "memory_hz": None,
    }
    assert found["memory"] == {"total_bytes": None, "available_bytes": None, "swap_bytes": None}
    assert found["disk"]["free_bytes"] is None


@pytest.mark.parametrize("content", ["", "12", "x\n", "-\n", "0x10\n", "1 2\n", "9" * 40 + "\n"])
def test_damaged_sensor_files_give_null_and_their_rail_is_left_out(content, tmp_path):
    name = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input"
    tree = sysfs.Tree(str(jetson_tree.lay(tmp_path, {**jetson_tree.ORIN_NANO, name: content})))
    assert sysfs.rails(tree) == {"VDD_CPU_GPU_CV": 1000, "VDD_SOC": 1600}


def test_rails_come_from_tegrastats_where_the_sensors_are_hidden(tmp_path):
    line = "GR3D_FREQ 10%@1300 tj@46.5C VDD_GPU_SOC 2390mW/2390mW VDD_CPU_CV 796mW/796mW"
    script = f"#!/bin/sh\nwhile true; do echo '{line}'; sleep 0.1; done\n"
    found = sysfs.gather(sysfs.Tree(str(jetson_tree.lay(tmp_path, {"usr/bin/tegrastats": script}))), "/")
    assert found["rails"] == {
        "source": "tegrastats",
        "rails_mw": {"VDD_GPU_SOC": 2390, "VDD_CPU_CV": 796},
        "total_mw": 3186,
        "total_from": "sum of rails without VIN_SYS_5V0",
        "gpu_rail": "VDD_GPU_SOC",
    }


THOR_5V = {
    f"sys/bus/i2c/drivers/ina3221/2-0040/hwmon/hwmon5/{name}": f"{value}\n"
    for name, value in {
        "in1_label": "VDD_GPU", "in1_input": 19864, "curr1_input": 1889,
        "in2_label": "VDD_CPU_SOC_MSS", "in2_input": 19856, "curr2_input": 955,
        "in3_label": "VIN_SYS_5V0", "in3_input": 4984, "curr3_input": 3678,
        "in7_label": "Sum of shunt voltages", "in7_input": 680,
    }.items()
}  # fmt: skip
THOR_VIN = {
    f"sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon4/{name}": f"{value}\n"
    for name, value in {
        "label": "VIN",
        "power1_input": 87426000,
        "in1_input": 19900,
        "curr1_input": 4393,
    }.items()
}
VIN_STATS = (
    "#!/bin/sh\necho 'VDD_GPU 5mW/5mW VDD_CPU_SOC_MSS 6mW/6mW VIN_SYS_5V0 7mW/7mW VIN 90000mW/1mW/1mW'\n"
)


@pytest.mark.parametrize(
    ("change", "total_mw", "origin", "source"),
    [
        ({}, 87426, "VIN", "ina3221 and ina238"),
        ({"power1_input": "x\n"}, 87421, "VIN", "ina3221 and ina238"),  # volts times amperes
        ({"label": ""}, 74816, "sum of rails without VIN, may count twice", "ina3221 and ina238"),
        ({"label": "", "tegrastats": VIN_STATS}, 90000, "VIN", "tegrastats"),
    ],
    ids=["all", "no power", "no label", "no label, but tegrastats"],
)
def test_the_power_of_a_thor_is_its_input_rail(change, total_mw, origin, source, tmp_path):
    files = {**THOR_5V, **THOR_VIN}
    for name, content in change.items():
        place = (
            "usr/bin/tegrastats"
            if name == "tegrastats"
            else f"sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon4/{name}"
        )
        files[place] = content
    found = sysfs.gather(sysfs.Tree(str(jetson_tree.lay(tmp_path, files))), "/")["rails"]
    assert (found["total_mw"], found["total_from"], found["gpu_rail"]) == (total_mw, origin, "VDD_GPU")
    assert found["source"] == (source if "label" not in change or source == "tegrastats" else "ina3221")


def test_energy_of_an_inference_on_a_thor_is_that_of_its_input_rail(tmp_path):
    tree = sysfs.Tree(str(jetson_tree.lay(tmp_path, {**THOR_5V, **THOR_VIN})))
    calls = []

    def run():
        calls.append(time.perf_counter())
        time.sleep(0.01)

    started = time.perf_counter()
    seconds = _energy.per_call_mj(run, 1.0, tree) * len(calls) / 87426
    assert max(1.0, calls[-1] - calls[0]) <= seconds <= time.perf_counter() - started
    assert _energy.how(tree).endswith("power from VIN")


def test_energy_of_an_unknown_structure_names_the_doubt(tmp_path):
    files = {name: text.replace("VDD_GPU", "CARRIER_12V") for name, text in THOR_5V.items()}
    tree = sysfs.Tree(str(jetson_tree.lay(tmp_path, files)))
    assert _energy.how(tree).endswith("power from sum of rails, may count twice")
    assert _energy.how(sysfs.Tree(str(tmp_path / "none"))) == _energy.HOW


def test_an_agx_orin_counts_the_memory_rail_once_and_reads_negative_rails(tmp_path):
    folder = "sys/bus/i2c/drivers/ina3221/1-004"
    rails = {  # label -> (folder, channel, mV, mA)
        "VDD_GPU_SOC": (0, 1, 19864, 180), "VDD_CPU_CV": (0, 2, 19864, 721),
        "VIN_SYS_5V0": (0, 3, 4968, 1000), "VDDQ_VDD2_1V8AO": (1, 2, 4960, 220),
    }  # fmt: skip
    files = {f"{folder}1/hwmon/hwmon4/in1_label": "NC\n"}
    for label, (number, channel, millivolts, milliamperes) in rails.items():
        place = f"{folder}{number}/hwmon/hwmon{3 + number}"
        files[f"{place}/in{channel}_label"] = f"{label}\n"
        files[f"{place}/in{channel}_input"] = f"{millivolts}\n"
        files[f"{place}/curr{channel}_input"] = f"{milliamperes}\n"
    tree = sysfs.Tree(str(jetson_tree.lay(tmp_path, files)))
    found = sysfs.gather(tree, "/")["rails"]
    assert (found["total_mw"], found["total_from"]) == (22866, "sum of rails")
    jetson_tree.lay(tmp_path, {f"{folder}0/hwmon/hwmon3/curr2_input": "-30\n"})
    assert sysfs.rails(tree)["VDD_CPU_CV"] == -596
    assert sysfs.gather(tree, "/")["rails"]["total_mw"] == 3576 - 596 + 4968


def test_jetpack_4_without_power_files_multiplies_voltage_and_current(tmp_path):
    folder = "sys/bus/i2c/drivers/ina3221x/7-0040/iio:device0"
    files = {f"{folder}/rail_name_0": "VDD_IN\n", f"{folder}/in_voltage0_input": "5000\n"}
    files[f"{folder}/in_current0_input"] = "660\n"
    assert sysfs.rails(sysfs.Tree(str(jetson_tree.lay(tmp_path, files)))) == {"VDD_IN": 3300}


def test_zones_of_constants_and_absent_sensors_are_left_out(tmp_path):
    zones = {"AO-therm": 29500, "PMIC-Die": 100000, "cv0-thermal": -256000, "CPU-therm": 31500}
    files = {}
    for number, (name, milli) in enumerate(zones.items()):
        folder = f"sys/devices/virtual/thermal/thermal_zone{number}"
        files.update({f"{folder}/type": f"{name}\n", f"{folder}/temp": f"{milli}\n"})
    tree = sysfs.Tree(str(jetson_tree.lay(tmp_path, files)))
    assert sysfs.heat(tree) == {"AO-therm": 29.5, "CPU-therm": 31.5}


@pytest.mark.parametrize(
    ("mode", "ids", "cure"),
    [
        (
            "MODE_15W_6CORE",
            {"MODE_15W_2CORE": 0, "MODE_15W_6CORE": 2, "MODE_20W_6CORE": 8},
            "-m 8 (MODE_20W_6CORE)",
        ),
        ("15W", {"MAXN": 3, "15W": 0, "MAXN_SUPER": 1}, "-m 3 (MAXN) or sudo nvpmodel -m 1 (MAXN_SUPER)"),
        ("50W", {"MAXN": 0, "50W": 3}, "-m 0 (MAXN)"),
        ("MAXN", {"MAXN": 0, "MAXN_SUPER": 2}, None),
        ("MODE_20W_6CORE", {"MODE_15W_2CORE": 0, "MODE_20W_6CORE": 8}, None),
        ("15W", {}, None),
        (None, {"MAXN": 0}, None),
        ("custom", {"MAXN": 0, "custom": 7}, None),
    ],
)
def test_the_cure_of_a_power_mode_has_the_ids_that_were_read(mode, ids, cure):
    problems = probe._power_mode({"mode": mode, "mode_ids": ids})
    assert len(problems) == (cure is not None)
    assert cure is None or f"sudo nvpmodel {cure};" in problems[0]["cure"]


def test_a_module_on_another_carrier_has_its_own_dla_cores(tmp_path):
    files = {
        "proc/device-tree/compatible": "seeed,j401+p3767-0000\0nvidia,tegra234\0",
        "proc/device-tree/model": "reComputer J4012\0",
    }
    assert sysfs.jetson(sysfs.Tree(str(jetson_tree.lay(tmp_path, files))))["dla_cores"] == 2


def test_the_gpu_of_a_thor_is_known_by_its_device_name(tmp_path):
    files = {
        "sys/class/devfreq/gpu-nvd-0/cur_freq": "1\n",
        "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000\n",
    }
    found = sysfs.gpu_clock(sysfs.Tree(str(jetson_tree.lay(tmp_path, files))))
    assert (found["device"], found["current_hz"], found["locked"]) == ("gpu-gpc-0", 1575000000, None)


def test_only_cooling_that_slows_counts_as_throttling(tmp_path):
    names = ("pwm-fan", "TCC Offset", "cpufreq-cpu0", "Processor", "gpu-throttle-alert")
    files = {}
    for number, name in enumerate(names):
        folder = f"sys/class/thermal/cooling_device{number}"
        files.update({f"{folder}/type": f"{name}\n", f"{folder}/cur_state": f"{number}\n"})
    counters = sysfs.throttle_counters(sysfs.Tree(str(jetson_tree.lay(tmp_path, files))))
    assert counters == {
        "cooling_device2/cpufreq-cpu0": 2,
        "cooling_device3/Processor": 3,
        "cooling_device4/gpu-throttle-alert": 4,
    }


def test_a_tool_that_hangs_or_fails_is_no_fact(tmp_path):
    tree = sysfs.Tree(str(jetson_tree.lay(tmp_path, {"usr/sbin/nvpmodel": "#!/bin/sh\nexec sleep 600\n"})))
    started = time.monotonic()
    assert tree.tool("/usr/sbin/nvpmodel", "-q", limit_s=0.2) == ""
    assert time.monotonic() - started < 100


def test_power_is_the_mean_of_the_board_rail_over_the_run(orin):
    with power.Meter(orin) as measured:
        time.sleep(power._SHORTEST_S + 0.1)
    assert measured.mean_mw == pytest.approx(5400)
    assert measured.source == "VDD_IN"


def test_samples_of_another_sum_are_left_out(tmp_path, monkeypatch):
    sums = [{"VIN": 1000}, {"VIN": 1000}, {"VDD_GPU": 9}, {"VIN": 1000}]
    monkeypatch.setattr(power.sysfs, "rails", lambda _: sums.pop(0) if len(sums) > 1 else sums[0])
    with power.Meter(sysfs.Tree(str(tmp_path))) as measured:
        time.sleep(power._SHORTEST_S + 0.1)
    assert (measured.mean_mw, measured.source) == (pytest.approx(1000), "VIN")


def test_a_run_too_short_for_the_sensors_has_no_power(orin, monkeypatch):
    monkeypatch.setattr(power, "_SHORTEST_S", 600.0)
    with power.Meter(orin) as measured:
        time.sleep(0.05)
    assert measured.mean_mw is None


def test_uneven_samples_are_weighted_by_their_time():
    assert power._mean([(0.0, 1000), (3.0, 1000), (4.0, 5000)]) == pytest.approx((3 * 1000 + 3000) / 4)


@pytest.mark.parametrize("after", [3_000_000, 262_143_328_850 - 1_000_000], ids=["plain", "wrapped"])
def test_rapl_energy_becomes_power_and_survives_its_wrap(tmp_path, after, monkeypatch):
    zone = "sys/class/powercap/intel-rapl:0"
    before = 1_000_000 if after == 3_000_000 else after
    last = after if after == 3_000_000 else 1_000_000
    files = {f"{zone}/energy_uj": f"{before}\n", f"{zone}/max_energy_range_uj": "262143328850\n"}
    tree = sysfs.Tree(str(jetson_tree.lay(tmp_path, files)))
    clock = iter([10.0, 12.0])  # two seconds
    monkeypatch.setattr(power.time, "perf_counter", lambda: next(clock))
    with power.Meter(tree) as measured:
        (tmp_path / zone / "energy_uj").write_text(f"{last}\n")
    assert measured.mean_mw == pytest.approx(1000)  # 2 J in 2 s
    assert measured.source == "rapl package"


def test_energy_of_an_image_is_power_times_time_over_images():
    subject = timing.Subject("e", None, {"backend": "tensorrt", "precision": "int8"}, 4)
    subject.samples["wall_ms"] = [10.0] * 50
    subject.busy_s, subject.powers_mw, subject.power_source = 0.5, [6000.0, 4000.0], "VDD_IN"
    found = subject.result(False, True)
    assert found["energy_mj"] == pytest.approx(5000 * 0.5 / (50 * 4))  # mW x s / images
    assert found["throughput_ips"] == pytest.approx(400)
    assert found["power_of"] == "VDD_IN"


def test_percentiles_follow_trtexec():
    values = [float(v) for v in range(1, 101)]
    assert [timing.percentile(values, p) for p in (90, 95, 99)] == [90.0, 95.0, 99.0]
    assert [timing.percentile(values[:10], p) for p in (90, 99)] == [9.0, 10.0]
    assert timing.percentile([7.0], 99) == 7.0
    found = timing.summary([4.0, 1.0, 3.0, 2.0])
    assert (found["median"], found["mean"], found["min"], found["max"]) == (2.5, 2.5, 1.0, 4.0)
    assert found["cv"] == pytest.approx(1.118033988749895 / 2.5)
    assert timing.summary([]) is None


def test_noise_is_what_the_host_calls_noise():
    pauses = [2.0, 1.0, 1.1] * 30 + [500.0] * 4
    assert timing.summary(pauses)["cv"] == pytest.approx(statistics.variation(pauses))
    assert timing._SPREAD_LIMIT == statistics.NOISY


def _snapshot(**more):
    clock = {"min_hz": 100, "max_hz": 100, "current_hz": 100, "locked": True}
    return {
        "gpu_clock": {**clock, **more.pop("clock", {})},
        "power_mode": "MAXN",
        "throttle_counters": {},
        **more,
    }


OC, ALARM, FAN = "hwmon3/oc3_event_cnt", "hwmon1/curr1_crit_alarm", "cooling_device1/cpufreq"


@pytest.mark.parametrize(
    ("before", "after", "throttled", "mark"),
    [
        ({}, {}, None, None),
        ({"throttle_counters": {OC: 4}}, {"throttle_counters": {OC: 4}}, False, None),
        ({"throttle_counters": {OC: 4}}, {"throttle_counters": {OC: 5}}, True, "from 4 to 5"),
        ({"throttle_counters": {ALARM: 0}}, {"throttle_counters": {ALARM: 1}}, True, "from 0 to 1"),
        ({"throttle_counters": {FAN: 2}}, {"throttle_counters": {FAN: 2}}, True, "is at 2"),
        ({}, {"clock": {"current_hz": 60}}, True, "below its locked"),
        ({}, {"clock": {"min_hz": 50, "locked": False}}, None, "min_hz changed"),
        ({}, {"power_mode": "15W"}, None, "power mode changed"),
    ],
)
def test_a_measurement_is_marked_for_every_reason_to_doubt_it(before, after, throttled, mark):
    verdict, marks = timing.compare_snapshots(
        _snapshot(**copy.deepcopy(before)), _snapshot(**copy.deepcopy(after))
    )
    assert verdict is throttled
    assert any(mark in text for text in marks) if mark else marks == []


def test_a_host_that_cannot_keep_up_is_told_to_use_a_graph():
    subject = timing.Subject("e", None, {"backend": "tensorrt", "precision": "int8"}, 1)
    subject.samples.update({"wall_ms": [1.0] * 20, "gpu_ms": [0.5] * 20, "enqueue_ms": [0.45] * 20})
    subject.busy_s = subject.first_ms = 1.0
    assert ["--cuda-graph" in mark for mark in subject.result(False, True)["marks"]] == [True]


@pytest.mark.parametrize(
    ("sold_gb", "total_kib", "mib"),
    [
        (2, 2_027_000, 256),
        (4, 4_059_000, 512),
        (8, 7_802_696, 1024),
        (16, 16_300_000, 1024),
        (64, 64_300_000, 1024),
    ],
)
def test_small_boards_build_with_less_scratch_memory(sold_gb, total_kib, mib):
    assert backend.workspace_mib(total_kib * 1024) == mib
    assert backend.workspace_mib(None) == 1024


def test_a_board_with_4_gb_builds_with_512_mib_and_may_be_told_another(run_fake, tmp_path):
    root = jetson_tree.lay(tmp_path / "root", {"proc/meminfo": "MemTotal:        4059000 kB\n"})
    (tmp_path / "g").write_text(json.dumps({"shape": [1, 3, 4, 4], "classes": 2}))
    arguments = [
        "build",
        "--graph",
        tmp_path / "g",
        "--out",
        tmp_path / "e",
        "--backend",
        "tensorrt",
        "--root",
        root,
    ]
    assert ["set_memory_pool_limit", 512 << 20] in run_fake("8.5", *arguments).calls
    assert ["set_memory_pool_limit", 64 << 20] in run_fake("8.5", *arguments, "--workspace-mib", 64).calls
