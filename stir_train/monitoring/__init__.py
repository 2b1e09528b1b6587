"""What people watch: logging, metric sinks, progress bars."""
