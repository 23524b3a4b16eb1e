"""Files with seeded damage: bits, numbers, lengths, cuts, and parts from other places."""

import copy
import json
import random
import struct
from collections.abc import Iterator, Sequence
from typing import Any

_NUMBERS = (
    *(0, 1, 2, 7, 8, 31, 32, 127, 128, 255, 256, 65_535, 65_536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1),
)
_WORDS = (b"\x1b[31m", b"\n", b"\r", b"\0", b"\xff", b"\xe2\x80\xae", b"nan", b"1e999", b"[[", b'"')


def mutated(seeds: Sequence[bytes], n: int, seed: int) -> Iterator[bytes]:
    """So many damaged copies of some files, always the same."""
    rng = random.Random(seed)
    for number in range(n):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            _damage(data, rng, seeds)
        yield bytes(data)


_VALUES: tuple[object, ...] = (
    *(None, True, False, 0, 1, -1, 3, 10**6, 2**31, 2**63, 10**40, 0.5, -1e-300, 1e300),
    *("", "x", "llama3", "\x1b[31m\n", "\u202e", "\ud800", "../a", "\0", [], {}, [1], {"a": 1}),
)


def mutated_json(document: dict[str, Any], n: int, seed: int) -> Iterator[bytes]:
    """So many copies of a document: some with damaged bytes, some with other values or keys."""
    rng = random.Random(seed)
    damaged = mutated([json.dumps(document).encode()], n, seed)
    for raw in damaged:
        if rng.random() < 0.3:
            yield raw
            continue
        changed = copy.deepcopy(document)
        for _ in range(rng.choice((1, 1, 2, 4))):
            _change(changed, rng)
        yield json.dumps(changed).encode()


def _change(value: Any, rng: random.Random) -> None:
    """Go down to some place, and put something else there, remove it, or give it another key."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.8:
            value = value[key]
            continue
        match rng.randrange(4):
            case 0:
                del value[key]
            case 1 if isinstance(value, dict):
                value[str(rng.choice(_VALUES))] = value.pop(key)
            case _:
                value[key] = copy.deepcopy(rng.choice(_VALUES))
        return


def _damage(data: bytearray, rng: random.Random, seeds: Sequence[bytes]) -> None:
    # Most of what decides is near the beginning.
    reach = len(data) if rng.random() < 0.5 else min(len(data), 256)
    at = rng.randrange(reach) if reach else 0
    match rng.randrange(9):
        case 0:
            data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)]) if data else b""
        case 1:
            data[at : at + 1] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF))])
        case 2:
            data[at : at + 4] = struct.pack("<I", rng.choice(_NUMBERS) & 0xFFFFFFFF)
        case 3:
            data[at : at + 8] = struct.pack("<Q", rng.choice(_NUMBERS))
        case 4:
            del data[at : at + rng.choice((1, 4, 8, 100))]
        case 5:
            data[at:at] = rng.choice(_WORDS) * rng.choice((1, 1, 20))
        case 6:
            data[at:at] = data[rng.randrange(len(data) + 1) :][: rng.choice((1, 8, 64))]
        case 7:
            del data[at:]
        case _:
            other = rng.choice(seeds)
            data[at : at + 16] = other[rng.randrange(len(other)) :][:16]
