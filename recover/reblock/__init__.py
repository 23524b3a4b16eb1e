"""Integer originals to GGUF without changing a value."""
