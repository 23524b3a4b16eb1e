"""Pickles of arrays, written opcode by opcode."""


def text(value: str) -> bytes:
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


# The parts of an array's pickle, written by hand.
HEAD = b"\x80\x04"
RECONSTRUCT = name("numpy._core.multiarray", "_reconstruct")
EMPTY = RECONSTRUCT + name("numpy", "ndarray") + b"K\0\x85C\x01b\x87R"
F4 = name("numpy", "dtype") + text("f4") + b"\x89\x88\x87R(K\x03" + text("<") + b"NNNJ"
F4 += b"\xff" * 4 + b"J" + b"\xff" * 4 + b"K\0tb"


def array(
    shape: bytes = b"K\x02K\x03\x86",
    dtype: bytes = F4,
    fortran: bytes = b"\x89",
    data: bytes = b"C\x18" + bytes(24),
) -> bytes:
    return EMPTY + b"(K\x01" + shape + dtype + fortran + data + b"tb"
