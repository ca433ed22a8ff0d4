"""Report of a run: gates, verdicts, charts, and renderers."""
