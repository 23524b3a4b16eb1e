"""What people who work in Python ask for: one tensor as arrays, and bars in notebooks."""
