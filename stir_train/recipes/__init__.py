"""One stage each: config to objects to run. The only place that wires."""
