"""Who am I among ranks."""
