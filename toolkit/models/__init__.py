"""The ResNet family: definition, checkpoints, export, training."""
