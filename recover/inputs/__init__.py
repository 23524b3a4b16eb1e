"""What the inputs are, and how they belong together."""
