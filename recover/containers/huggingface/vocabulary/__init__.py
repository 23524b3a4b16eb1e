"""Vocabularies: from the metadata of GGUF files to the files of Hugging Face's tokenizers."""
