#include "cpu/mma_portable.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/mma_fast.hpp"

namespace fp8sim {
namespace {

// Rows that share one decoding of a column.
constexpr int64_t kRows = 16;

uint64_t load(const void* codes, int64_t index, int bytes) {
    uint64_t code = 0;
    std::memcpy(&code, static_cast<const char*>(codes) + index * bytes, bytes);
    return code;
}

// A row of codes as numbers, with zeros up to a whole number of instructions.
void decode_row(const void* codes, int64_t row, int64_t k, int bytes, const MmaFormat& format, Number* numbers) {
    for (int64_t i = 0; i < k; ++i) numbers[i] = decode_operand(load(codes, row * k + i, bytes), format);
}

struct Sizes {
    int64_t k;       // of whole instructions
    int64_t blocks;  // scale factors of a row
    int64_t whole_blocks;
};

Sizes sizes_of(const MmaJob& job) {
    const MmaModel& m = job.model;
    const int64_t k = (job.k + m.k - 1) / m.k * m.k;
    if (m.scale_block == 0) return {k, 0, 1};
    return {k, (job.k + m.scale_block - 1) / m.scale_block, std::max<int64_t>(k / m.scale_block, 1)};
}

// A row's scale factors; blocks beyond the last one have its factor.
void decode_scales(const uint8_t* codes, int64_t row, const Sizes& sizes, const MmaFormat& format, Number* numbers) {
    if (codes == nullptr || sizes.blocks == 0) return;
    for (int64_t i = 0; i < sizes.whole_blocks; ++i) {
        numbers[i] = decode_operand(codes[row * sizes.blocks + std::min(i, sizes.blocks - 1)], format);
    }
}

struct Rows {
    std::vector<Number> numbers;
    std::vector<Number> scales;

    Rows(const Sizes& sizes, int64_t count)
        : numbers(sizes.k * count, Number{0, 0, 0, Kind::kFinite}), scales(sizes.whole_blocks * count) {}
};

uint64_t chain(const MmaModel& model, const Number* a, const Number* b, uint64_t d, const Number* a_scales,
               const Number* b_scales, int64_t k) {
    const int64_t blocks = model.scale_block == 0 ? 0 : model.k / model.scale_block;
    for (int64_t i = 0, step = 0; i < k; i += model.k, ++step) {
        d = mma_instruction(model, a + i, b + i, d, a_scales + step * blocks, b_scales + step * blocks);
    }
    return d;
}

}  // namespace

void run_portable(const MmaJob& job, int64_t begin, int64_t end) {
    const MmaModel& model = job.model;
    const Sizes sizes = sizes_of(job);
    const int bytes = (1 + model.accumulator.exponent_bits + model.accumulator.mantissa_bits) / 8;
    Rows a(sizes, kRows), b(sizes, 1);
    for (int64_t first = begin; first < end; first += kRows) {
        const int64_t rows = std::min(kRows, end - first);
        for (int64_t r = 0; r < rows; ++r) {
            decode_row(job.a, first + r, job.k, job.operand_bytes[0], model.a, &a.numbers[r * sizes.k]);
            decode_scales(job.a_scales, first + r, sizes, model.scale, &a.scales[r * sizes.whole_blocks]);
        }
        for (int64_t column = 0; column < job.n; ++column) {
            decode_row(job.b, column, job.k, job.operand_bytes[1], model.b, b.numbers.data());
            decode_scales(job.b_scales, column, sizes, model.scale, b.scales.data());
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t index = (first + r) * job.n + column;
                const uint64_t c = job.c == nullptr ? 0 : load(job.c, index, bytes);
                const uint64_t d = chain(model, &a.numbers[r * sizes.k], b.numbers.data(), c,
                                         &a.scales[r * sizes.whole_blocks], b.scales.data(), sizes.k);
                std::memcpy(static_cast<char*>(job.d) + index * bytes, &d, bytes);
            }
        }
    }
}

namespace {

constexpr int kBinary16Fraction = 10;

MmaFormat binary32() { return {8, 23, 127, 0, 1, 1, static_cast<int32_t>(NanCodes::kIeee)}; }

// A code of one format as the code of another that has the number; NaN has no payload.
uint64_t convert(uint64_t code, const MmaFormat& from, const MmaFormat& to) {
    const Number x = decode_operand(code, from);
    const uint64_t sign = sign_of_code(x.negative, to);
    if (x.kind == Kind::kNan) return mask_of(to.exponent_bits + to.mantissa_bits);
    if (x.kind == Kind::kInfinity) return infinity_code(to) | sign;
    if (x.significand == 0) return sign;
    return round_magnitude(x.significand, x.exponent - from.mantissa_bits, to, to.mantissa_bits, true) | sign;
}

Number scale_at(const FastJob& work, const uint8_t* scales, int64_t row, int64_t step) {
    const MmaModel& model = work.job.model;
    if (model.scale_block == 0) return {1, 0, 0, Kind::kFinite};
    const int64_t blocks = (work.job.k + model.scale_block - 1) / model.scale_block;
    const int64_t block = std::min(step * work.step.terms / model.scale_block, blocks - 1);
    return decode_operand(scales[row * blocks + block], model.scale);
}

}  // namespace

uint32_t interpret_step(const FastJob& work, int64_t row, int64_t column, int64_t step, uint32_t c) {
    const MmaJob& job = work.job;
    const MmaModel& model = work.step;
    Number a[kMostProducts] = {}, b[kMostProducts] = {};
    for (int32_t i = 0; i < model.terms; ++i) {
        const int64_t k = k_of(work, step * model.terms + i);
        if (k >= job.k) continue;
        a[i] = decode_operand(load(job.a, row * job.k + k, job.operand_bytes[0]), model.a);
        b[i] = decode_operand(load(job.b, column * job.k + k, job.operand_bytes[1]), model.b);
    }
    const Number a_scale = scale_at(work, job.a_scales, row, step);
    const Number b_scale = scale_at(work, job.b_scales, column, step);
    const bool is_binary16 = model.accumulator.mantissa_bits == kBinary16Fraction;
    const uint64_t before = is_binary16 ? convert(c, binary32(), model.accumulator) : c;
    const uint64_t after = mma_step(model, a, b, before, &a_scale, &b_scale);
    return static_cast<uint32_t>(is_binary16 ? convert(after, model.accumulator, binary32()) : after);
}

}  // namespace fp8sim
