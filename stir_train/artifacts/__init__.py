"""Run directories, manifests and shards: whole, checked and traceable, or refused."""
