// What a loop cannot beat: moving the bytes, or, to see how threads scale, arithmetic without memory.
#include <cstdint>

extern "C" {

void copy_4_to_4(const uint32_t* __restrict source, uint32_t* __restrict target, int64_t size) {
    for (int64_t i = 0; i < size; ++i) target[i] = source[i] ^ 1;  // one operation keeps it from becoming a memcpy
}

void copy_4_to_1(const uint32_t* __restrict source, uint8_t* __restrict target, int64_t size) {
    for (int64_t i = 0; i < size; ++i) target[i] = static_cast<uint8_t>(source[i]);
}

void copy_1_to_4(const uint8_t* __restrict source, uint32_t* __restrict target, int64_t size) {
    for (int64_t i = 0; i < size; ++i) target[i] = source[i];
}

// `steps` rounds of a generator in each of 16 lanes; the result depends on all of them.
uint32_t arithmetic(int64_t steps) {
    uint32_t lane[16];
    for (uint32_t k = 0; k < 16; ++k) lane[k] = k + 1;
    for (int64_t step = 0; step < steps; ++step) {
        for (int k = 0; k < 16; ++k) {
            lane[k] ^= lane[k] << 13;
            lane[k] ^= lane[k] >> 17;
            lane[k] ^= lane[k] << 5;
        }
    }
    uint32_t sum = 0;
    for (uint32_t value : lane) sum += value;
    return sum;
}

}  // extern "C"
