"""Files that hold tensors: how they are laid out, read and mapped."""
