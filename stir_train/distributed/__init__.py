"""The process environment; ranks come here."""
