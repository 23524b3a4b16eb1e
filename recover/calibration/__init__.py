"""What is learned on a model whose original is known, and used on one whose original is lost."""
