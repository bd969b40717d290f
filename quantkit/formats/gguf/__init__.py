"""GGUF: the container (`container`), ggml's tensor types (`types`), and their blocks to the bit (`blocks`)."""
