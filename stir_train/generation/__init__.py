"""One sampling stack: KV-cached batched decoding with capture and impulses inside the pass."""
