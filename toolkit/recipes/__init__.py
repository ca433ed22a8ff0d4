"""Ready-made recipes (TOML)."""
