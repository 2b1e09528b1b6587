"""What a run holds, read and written by path alone."""
