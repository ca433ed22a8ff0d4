"""Classify the images of a ROS 2 topic: `image` (sensor_msgs/Image) to `classification` (vision_msgs)."""

from __future__ import annotations

import os
import sys
from typing import Any

from ament_index_python.packages import get_package_share_directory

SHARE = get_package_share_directory(__package__)
sys.path.insert(0, os.path.join(SHARE, "edgeship_runner.pyz"))

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from vision_msgs.msg import Classification, ObjectHypothesis

from edgeship.targets.runner.classifier import Classifier
from edgeship.targets.runner.failures import Failure

ENCODINGS = {"rgb8": (3, "rgb"), "bgr8": (3, "bgr"), "mono8": (1, "rgb")}  # -> channels, order


def frame(message: Any) -> tuple[Any, str]:
    """Return the pixels of a message, (H, W, 3) or (H, W), and the order of the channels.

    Raises:
        ValueError: The encoding is another one, or the data does not fit the size.
    """
    if message.encoding not in ENCODINGS:
        raise ValueError(f"encoding {message.encoding!r}, expected {', '.join(ENCODINGS)}")
    channels, color = ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    data = np.frombuffer(message.data, np.uint8)
    if not (height and width) or step < width * channels or len(data) != height * step:
        raise ValueError(f"{len(data)} bytes with rows of {step} for {width} x {height} {message.encoding}")
    rows = np.ascontiguousarray(data.reshape(height, step)[:, : width * channels])
    return (rows.reshape(height, width, channels) if channels > 1 else rows), color


class ClassifierNode(Node):  # type: ignore[misc]
    """The node."""

    def __init__(self) -> None:
        super().__init__("classifier")
        model = self.declare_parameter("model", os.path.join(SHARE, "model")).value
        self.top = int(self.declare_parameter("top", 5).value)
        threads = int(self.declare_parameter("threads", 0).value) or None  # 0: all
        self.classifier = Classifier(model, threads=threads)
        self.publisher = self.create_publisher(Classification, "classification", 10)
        self.create_subscription(Image, "image", self.classify, qos_profile_sensor_data)

    def classify(self, message: Any) -> None:
        """Publish the classes of an image; one that cannot be used is logged."""
        try:
            pixels, color = frame(message)
            best = self.classifier(pixels, color=color).top(self.top)
        except (ValueError, Failure) as error:
            self.get_logger().error(f"image not classified: {error}", throttle_duration_sec=5.0)
            return
        answer = Classification()
        answer.header = message.header
        answer.results = [ObjectHypothesis(class_id=each.label, score=each.probability) for each in best]
        self.publisher.publish(answer)


def main() -> None:
    """Run the node until it is interrupted."""
    rclpy.init()
    node = ClassifierNode()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.classifier.close()
        node.destroy_node()
        rclpy.try_shutdown()
