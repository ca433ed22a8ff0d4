"""Formats of updates, one file each."""
