"""Philox4x32-10, the counter-based generator: random numbers as a pure function of a key and a counter.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]  # each holds 32 bits: 64 bits of room for the products

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
_ROUNDS = 10


def philox4x32(key: int, counter: tuple[Words, Words, Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Four random 32-bit words for each counter.

    Args:
        key: 0 <= key < 2**64; its low word is the generator's first key word.
        counter: Four arrays that broadcast together, each entry < 2**32; the generator's counter words in order.

    Returns:
        Four arrays of the broadcast shape, each entry uniform in 0 <= word < 2**32.
    """
    key0, key1 = key & _LOW, key >> 32
    word0, word1, word2, word3 = counter
    for _ in range(_ROUNDS):
        product0, product1 = word0 * _MULTIPLIERS[0], word2 * _MULTIPLIERS[1]
        word0, word1, word2, word3 = (
            (product1 >> np.uint64(32)) ^ word1 ^ np.uint64(key0),
            product1 & np.uint64(_LOW),
            (product0 >> np.uint64(32)) ^ word3 ^ np.uint64(key1),
            product0 & np.uint64(_LOW),
        )
        key0, key1 = (key0 + _WEYL[0]) & _LOW, (key1 + _WEYL[1]) & _LOW
    return word0, word1, word2, word3
