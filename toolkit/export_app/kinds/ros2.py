"""ROS 2 package with a node that classifies images of a topic."""

from __future__ import annotations

import re
from pathlib import Path
from xml.sax.saxutils import escape

from edgeship.targets import runner
from edgeship.toolkit.core.artifact import write_bytes, write_text
from edgeship.toolkit.export_app import Readme, program
from edgeship.toolkit.export_app.source import Source

TARGETS = ("openvino", "onnxruntime", "tensorrt")
SUMMARY = "ROS 2 package: a node that classifies the images of a topic"
SOURCE = "REP 149 (package.xml) and the ament_python template of `ros2 pkg create`"
PACKAGE = """\
<?xml version="1.0"?>
<package format="3">
  <name>{package}</name>
  <version>0.1.0</version>
  <description>Classifies images with {description}; written by edgeship.</description>
  <maintainer email="maintainer@example.com">maintainer</maintainer>
  <license>Proprietary</license>
  <exec_depend>ament_index_python</exec_depend>
  <exec_depend>python3-numpy</exec_depend>
  <exec_depend>rclpy</exec_depend>
  <exec_depend>sensor_msgs</exec_depend>
  <exec_depend>vision_msgs</exec_depend>
  <export>
    <build_type>ament_python</build_type>
  </export>
</package>
"""
SETUP = '''\
"""Build {package}."""

from glob import glob

from setuptools import setup

setup(
    name="{package}",
    version="0.1.0",
    packages=["{package}"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/{package}"]),
        ("share/{package}", ["package.xml", *glob("share/*.pyz")]),
        ("share/{package}/model", glob("share/model/*")),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    entry_points={{"console_scripts": ["classifier = {package}.node:main"]}},
)
'''
SETUP_CFG = """\
[develop]
script_dir=$base/lib/{package}
[install]
install_scripts=$base/lib/{package}
"""


def write(source: Source, folder: Path) -> Readme:
    """Write the package."""
    package = "edgeship_" + re.sub("[^a-z0-9]+", "_", source.name.lower()).strip("_")
    root = folder / package
    source.copy_engine(root / "share" / "model")
    write_bytes(root / "share" / runner.FILE_NAME, runner.source())
    description = " ".join(str(source.record["name"]).split())
    write_text(root / "package.xml", PACKAGE.format(package=package, description=escape(description)))
    write_text(root / "setup.py", SETUP.format(package=package))
    write_text(root / "setup.cfg", SETUP_CFG.format(package=package))
    write_text(root / "resource" / package, "")
    write_text(root / package / "__init__.py", "")
    write_text(root / package / "node.py", program("ros2_node.py"))
    runtime = source.variant.target
    pip = "" if runtime == "tensorrt" else f"python3 -m pip install {runtime}\n"
    return Readme(
        start=f"{pip}colcon build --packages-select {package} && . install/setup.sh\n"
        f"ros2 run {package} classifier --ros-args -r image:=/camera/image_raw",
        text=(
            "The node reads `image` (sensor_msgs/Image: rgb8, bgr8 or mono8; others are refused) and "
            "publishes `classification` (vision_msgs/Classification, ROS 2 Humble and newer) with the header "
            "of the image. Parameters: `model` (a release to follow, e.g. /opt/edgeship/current), `top`, "
            "`threads`.",
        ),
        checked=f"the node runs in edgeship's tests with stand-ins for rclpy and the messages: padded rows, "
        f"encodings, classes of the library. ROS itself: not run here. The package follows {SOURCE}.",
    )
