"""Accumulation of INT8 products on a CPU (Python 3.8, standard library: also runs on devices)."""

from __future__ import annotations

from typing import Iterable, Literal  # noqa: UP035 (Python 3.8)

EXACT_DOT_PRODUCTS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "dotprod", "i8mm"})


def int8_sums(arch: str, instruction_sets: Iterable[str]) -> Literal["exact", "pairs"] | None:
    """Return the accumulation of INT8 products of a CPU (see `quant.Accumulation`); None: unknown."""
    if EXACT_DOT_PRODUCTS.intersection(instruction_sets):
        return "exact"
    return "pairs" if arch in {"x86_64", "AMD64"} else None
