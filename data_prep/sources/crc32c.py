"""CRC-32C (Castagnoli), the checksum of TFRecords, at 100 MB/s and more with NumPy alone.

The data is cut into lanes that are summed side by side; a CRC being linear over GF(2), the sums are
then put together: crc(a b) = crc(a) moved over as many zeros as b is long, xor crc(b).
"""

import functools

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8

Words = NDArray[np.uint32]


def crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes."""
    if len(data) < 4:
        crc = 0xFFFFFFFF
        for byte in data:
            crc = int(_table()[(crc ^ byte) & 0xFF]) ^ (crc >> 8)
        return crc ^ 0xFFFFFFFF

    # Lanes; zeros in front change nothing, as the sum begins with 0.
    words = -(-len(data) // 4)
    lanes = 1 << (words.bit_length() * 3 // 5)
    steps = -(-words // lanes)
    padded = np.zeros(lanes * steps * 4, np.uint8)
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[-len(data) :][:4] ^= 0xFF  # the usual first value, all ones
    rows = np.ascontiguousarray(padded.view("<u4").reshape(lanes, steps).T)

    # Sum up.
    low, high = _word_tables()
    crcs = np.zeros(lanes, np.uint32)
    for row in rows:
        crcs ^= row
        crcs = low[crcs & 0xFFFF] ^ high[crcs >> 16]

    # Put together.
    while len(crcs) > 1:
        crcs = _moved(crcs[0::2], _over_zeros(steps)) ^ crcs[1::2]
        steps *= 2
    return int(crcs[0]) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """The form in which TFRecords store it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


@functools.cache
def _table() -> Words:
    """What one byte does to the sum."""
    table: Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ ((table & np.uint32(1)) * np.uint32(_POLYNOMIAL))
    return table


@functools.cache
def _word_tables() -> tuple[Words, Words]:
    """What the low and the high half of a 32-bit word do to the sum."""
    one = _table()
    two = one[one & 0xFF] ^ (one >> 8)
    three = one[two & 0xFF] ^ (two >> 8)
    four = one[three & 0xFF] ^ (three >> 8)
    halves = np.arange(2**16, dtype=np.uint32)
    first, second = halves & 0xFF, halves >> 8
    return four[first] ^ three[second], two[first] ^ one[second]


@functools.lru_cache(maxsize=256)
def _over_zeros(words: int) -> Words:
    """What `words` zero words do to each bit of the sum."""
    low, high = _word_tables()
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    power, result = low[bits & 0xFFFF] ^ high[bits >> 16], bits
    while words:
        if words & 1:
            result = _moved(result, power)
        power = _moved(power, power)
        words >>= 1
    return result


def _moved(crcs: Words, move: Words) -> Words:
    """Apply a linear map, given by what it makes of each bit."""
    bits = crcs[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)
    moved: Words = np.bitwise_xor.reduce(bits * move, axis=1)
    return moved
