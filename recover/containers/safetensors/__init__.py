"""Files in the safetensors format: a JSON header with every tensor's place, then the bytes."""
