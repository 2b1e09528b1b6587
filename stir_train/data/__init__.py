"""Problems in, grades out: sources, splits, graders, and where a token stream can be steered."""
