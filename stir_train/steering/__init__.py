"""Retrieve, weigh, and commit: the controller that steers at control points."""
