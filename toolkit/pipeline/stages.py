"""The main path of the product: what happens in which order."""

from __future__ import annotations

from toolkit.pipeline.stage import Stage

STAGES: tuple[Stage, ...] = ()
