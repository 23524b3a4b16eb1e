"""Files on web servers and on the Hugging Face Hub, read by ranges of bytes."""
