"""The control basis: entries of high quality and diverse keys, and what can be said of them."""
