"""Random bits: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), device functions.

The same streams as `csrc/core/random.hpp`. Key: the seed, low word first. Counter: words 0 and 1 are j, words 2 and 3
the stream, low words first. Element e of a tensor (row-major index plus offset, modulo 2^64) takes output word
(e / 16) mod 4 of counter j = 16 * (e / 64) + e mod 16, so that a group of 64 elements is the four words of 16 counters:

    e       0..15   16..31   32..47   48..63 | 64..79 ...
    j       0..15    0..15    0..15    0..15 | 16..31 ...
    word      0        1        2        3   |    0   ...
"""

import triton
import triton.language as tl


@triton.jit
def random_integers(group, seed, stream, GROUPS: tl.constexpr, RANDOM_BITS: tl.constexpr):
    """The random integers of RANDOM_BITS bits, uint32, of the 64 * GROUPS elements from 64 * `group` on.

    `group`, `seed` and `stream` are uint64 scalars.
    """
    # Indices are taken modulo 2^64, so groups modulo 2^58.
    groups = group + tl.arange(0, GROUPS).to(tl.uint64)[:, None] & (1 << 58) - 1
    counter = groups * 16 + tl.arange(0, 16).to(tl.uint64)[None, :]
    stream_words = counter & 0 | stream
    w0, w1, w2, w3 = _philox(
        counter.to(tl.uint32),
        (counter >> 32).to(tl.uint32),
        stream_words.to(tl.uint32),
        (stream_words >> 32).to(tl.uint32),
        seed.to(tl.uint32),
        (seed >> 32).to(tl.uint32),
    )
    # [GROUPS, 16] each -> [GROUPS, 16, 4], words in order -> element order.
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (GROUPS, 16, 4))
    words = tl.reshape(tl.permute(words, (0, 2, 1)), (GROUPS * 64,))
    return words >> (32 - RANDOM_BITS)


@triton.jit
def random_integers_at(element, seed, stream, RANDOM_BITS: tl.constexpr):
    """The random integers of RANDOM_BITS bits, uint32, of elements in any order: four times the work of a run of them.

    `element` is uint64, of any shape; `seed` and `stream` are uint64 scalars.
    """
    counter = (element >> 6) * 16 + (element & 15)
    stream_words = counter & 0 | stream
    w0, w1, w2, w3 = _philox(
        counter.to(tl.uint32),
        (counter >> 32).to(tl.uint32),
        stream_words.to(tl.uint32),
        (stream_words >> 32).to(tl.uint32),
        seed.to(tl.uint32),
        (seed >> 32).to(tl.uint32),
    )
    first_half = tl.where((element & 16) == 0, w0, w1)
    second_half = tl.where((element & 16) == 0, w2, w3)
    return tl.where((element & 32) == 0, first_half, second_half) >> (32 - RANDOM_BITS)


@triton.jit
def _philox(c0, c1, c2, c3, key0, key1):
    """Ten rounds on a counter of four words, uint32."""
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        low0 = c0 * 0xD2511F53
        high2 = tl.umulhi(c2, 0xCD9E8D57)
        low2 = c2 * 0xCD9E8D57
        c0 = high2 ^ c1 ^ key0
        c1 = low2
        c2 = high0 ^ c3 ^ key1
        c3 = low0
        key0 = key0 + 0x9E3779B9
        key1 = key1 + 0xBB67AE85
    return c0, c1, c2, c3
