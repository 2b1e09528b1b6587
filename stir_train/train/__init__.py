"""The one training loop, its schedules and its early stopping."""
