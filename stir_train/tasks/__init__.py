"""The embedded synthetic reasoning tasks and the tiny model's recipe."""
