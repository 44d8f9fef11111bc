"""Ways to break bytes: the ones that protocols trip over."""

import random
from collections.abc import Sequence

EXTREMES = (
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\xff\xff",
    b"\0\0",
    b"\xfe\xff\x00\xe0",
)


def mutate(seed: bytes, dice: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """One to four changes to a seed; pieces of `others` may come in."""
    data = bytearray(seed)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        kind = dice.randrange(8)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << dice.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = dice.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            extreme = dice.choice(EXTREMES)
            data[at : at + len(extreme)] = extreme
        elif kind == 4:
            del data[at : at + dice.randrange(1, 20)]
        elif kind == 5:
            data[at:at] = dice.randbytes(dice.randrange(1, 20))
        elif kind == 6:
            end = min(len(data), at + dice.randrange(1, 200))
            data[at:at] = data[at:end] * dice.randrange(1, 4)
        elif others:
            other = dice.choice(others)
            begin = dice.randrange(len(other))
            data[at:at] = other[begin : begin + dice.randrange(1, 300)]
    return bytes(data)
