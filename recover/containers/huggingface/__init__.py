"""Hugging Face folders: safetensors files and ``config.json``, quantized in any way or not."""
