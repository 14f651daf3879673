// The loops of fp8sim._core without Python: reads jobs from stdin and writes their targets to stdout, so that they can be
// built for another processor and run on an emulator of it (test_aarch64.py).
#include <cstdio>
#include <cstring>
#include <vector>

#include "cpu/cast.hpp"

using namespace fp8sim;

namespace {

struct __attribute__((packed)) Header {  // as the test packs it
    uint32_t source_dtype, target_dtype;
    uint32_t source_bytes, target_bytes;  // of one element
    uint32_t conversion[kConversionFields];
    uint32_t random_bits;
    uint64_t size, seed, stream, offset;
};

}  // namespace

int main() {
    Header h;
    while (std::fread(&h, sizeof(h), 1, stdin) == 1) {
        std::vector<double> source(h.size), target(h.size);  // aligned for every type, and as wide as any
        if (std::fread(source.data(), h.source_bytes, h.size, stdin) != h.size) return 1;
        CastJob job = {};
        job.source = source.data();
        job.target = target.data();
        job.size = static_cast<int64_t>(h.size);
        job.source_dtype = static_cast<Dtype>(h.source_dtype);
        job.target_dtype = static_cast<Dtype>(h.target_dtype);
        std::memcpy(&job.conversion, h.conversion, sizeof(job.conversion));
        job.seed = h.seed;
        job.stream = h.stream;
        job.offset = h.offset;
        job.random_bits = static_cast<int>(h.random_bits);
        run(job);
        std::fwrite(target.data(), h.target_bytes, h.size, stdout);
    }
}
