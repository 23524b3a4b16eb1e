"""Integers from which stored weights were made: how they are found and proven."""
