"""What files are, and how they belong together."""
