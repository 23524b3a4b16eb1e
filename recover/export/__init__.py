"""Models as Hugging Face folders of plain weights."""
