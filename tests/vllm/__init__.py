"""vLLM as a generation backend. It lives in an environment of its own: `make test-vllm`."""
