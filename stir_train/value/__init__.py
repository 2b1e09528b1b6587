"""Train the value head on control-point states of graded rollouts, and say how good it is."""
