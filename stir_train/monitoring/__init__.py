"""What people watch: sentences and progress on the console, figures in metric sinks.

`console` is the one place that styles text, `metrics` the one that imports wandb. To add a sink, write a class
with the methods of `MetricsFile` in `metrics` and open it in `open_metrics`.
"""
