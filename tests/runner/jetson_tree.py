"""File trees of Jetsons for the tests, laid from the sample lines of public records: fakes, not devices."""

# ruff: noqa: E501 (file contents stay on one line)

from __future__ import annotations

from pathlib import Path

ORIN_NANO = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: x\n",
    "var/lib/dpkg/status": "Package: nvidia-l4t-core\nStatus: install ok installed\n"
    "Version: 36.4.3-20250107174145\n\nPackage: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2+b77\n\n",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/meminfo": "MemTotal:        7802696 kB\nMemAvailable:    6000000 kB\nSwapTotal:       3901340 kB\n",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd evtstrm asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
    "usr/sbin/nvpmodel": "#!/bin/sh\necho 'NVPM WARN: fan mode is not set!'\necho 'NV Power Mode: 15W'\necho 0\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}',
    "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": "",
    "sys/class/devfreq/17000000.gpu/device/of_node/name": "gpu\0",
    "sys/class/devfreq/17000000.gpu/device/load": "125\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in1_input": "5000\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input": "1080\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in2_input": "5000\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr2_input": "200\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in3_label": "VDD_SOC\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in3_input": "5000\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr3_input": "320\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in4_label": "Sum of shunt voltages\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in4_input": "9\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr4_input": "9\n",
    "sys/devices/virtual/thermal/thermal_zone0/type": "gpu-thermal\n",
    "sys/devices/virtual/thermal/thermal_zone0/temp": "47625\n",
    "sys/devices/virtual/thermal/thermal_zone1/type": "cv0-thermal\n",
    "sys/devices/virtual/thermal/thermal_zone1/temp": "-256000\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    "sys/class/hwmon/hwmon3/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon3/oc2_event_cnt": "0\n",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "4\n",
}
NANO = {
    "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64, DATE: x\n",
    "proc/device-tree/compatible": "nvidia,p3450-0000\0nvidia,tegra210\0",
    "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
    "usr/local/cuda/version.txt": "CUDA Version 10.2.300\n",
    "sys/class/devfreq/57000000.gpu/device/of_node/name": "gpu\0",
    "sys/class/devfreq/57000000.gpu/min_freq": "921600000\n",
    "sys/class/devfreq/57000000.gpu/max_freq": "921600000\n",
    "sys/class/devfreq/57000000.gpu/cur_freq": "921600000\n",
    "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_0": "POM_5V_IN\n",
    "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input": "933\n",
}


def lay(root: Path, files: dict[str, str]) -> Path:
    """Write the files of a tree below `root`; scripts become executable."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        path.chmod(0o755 if text.startswith("#!") else 0o644)
    return root
