"""What inputs prove of the original weights: intervals, and whether a model keeps within them."""
