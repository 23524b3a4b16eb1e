"""From one file to a smaller one, byte for byte as llama.cpp quantizes."""
