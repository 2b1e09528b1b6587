"""The errors a user can fix: each says what was expected, what came, and what to do."""

from __future__ import annotations


class StirError(Exception):
    """Base of everything a user can fix; the command line prints it without a traceback."""


class ConfigError(StirError):
    """A configuration does not validate. The message lists every problem at once."""


class DataError(StirError):
    """A data source is missing, empty, malformed, or its splits overlap."""


class ModelError(StirError):
    """A model cannot be loaded, or its structure is not one that can be steered."""


class ArtifactError(StirError):
    """An artifact is missing, unfinished, altered, or was made for something else."""


class StageError(StirError):
    """A stage cannot do its work: an earlier stage is missing, or its input yields nothing."""


class VerificationError(StirError):
    """An exported adapter does not do what it should."""
