"""How far a model is from the truth."""
