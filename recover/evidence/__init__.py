"""What stored codes say of the original weights: cells, densities, and both for a tile."""
