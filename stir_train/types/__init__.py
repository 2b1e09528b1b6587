"""Frozen records with shapes: what the stages hand to each other. No input or output here."""
