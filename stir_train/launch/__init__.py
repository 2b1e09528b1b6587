"""Plan and submit runs without loading torch."""
