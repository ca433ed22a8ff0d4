"""Shipping engines to devices."""
