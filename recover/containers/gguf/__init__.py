"""The GGUF container: headers, mapped files, and output that appears only when complete."""
