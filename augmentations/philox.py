"""Philox4x32-10, the counter-based generator: random numbers as a pure function of a key and a counter.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint32)
_ROUNDS = 10


def philox4x32(key: int, counter: tuple[Words, Words, Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Four random 32-bit words for each counter.

    Args:
        key: 0 <= key < 2**64; its low word is the generator's first key word.
        counter: Four uint32 arrays that broadcast together; the generator's counter words in order.

    Returns:
        Four uint32 arrays of the broadcast shape.
    """
    shape = np.broadcast_shapes(*(word.shape for word in counter))
    even, odd = np.empty((2, *shape), dtype=np.uint32), np.empty((2, *shape), dtype=np.uint32)
    even[0], odd[0], even[1], odd[1] = counter
    keys = np.array([key & 0xFFFFFFFF, key >> 32], dtype=np.uint32)
    multipliers = _MULTIPLIERS.reshape(2, *(1 for _ in shape))
    for _ in range(_ROUNDS):
        products = np.multiply(even, multipliers, dtype=np.uint64).astype("<u8", copy=False)  # [2, ...]
        halves = products.view("<u4").reshape(2, *shape, 2)  # low and high word
        even = halves[::-1, ..., 1] ^ odd ^ keys.reshape(multipliers.shape)
        odd = halves[::-1, ..., 0]
        keys = keys + _WEYL  # modulo 2**32
    return even[0], odd[0], even[1], odd[1]
