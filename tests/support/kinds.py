"""Tensor types of the sort that a test needs."""

from recover.quants import ScalarType, VectorType, type_by_name


def scalar(name: str) -> ScalarType:
    """A type with one code per weight."""
    kind = type_by_name(name)
    assert isinstance(kind, ScalarType)
    return kind


def quantized(name: str) -> ScalarType | VectorType:
    """A type that weights are quantized to."""
    kind = type_by_name(name)
    assert isinstance(kind, ScalarType | VectorType)
    return kind


def vector(name: str) -> VectorType:
    """A type whose codes stand for several weights at once."""
    kind = type_by_name(name)
    assert isinstance(kind, VectorType)
    return kind
