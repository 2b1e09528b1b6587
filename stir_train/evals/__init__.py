"""Held-out comparison: metrics, paired statistics, report."""
