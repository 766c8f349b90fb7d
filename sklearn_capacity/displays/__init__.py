"""Figures of capacity: each a small object with its data, and its artists after `plot`."""

from .capacity_path import CapacityPathDisplay

__all__ = ["CapacityPathDisplay"]
