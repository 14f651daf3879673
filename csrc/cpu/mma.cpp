#include "cpu/mma.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/float_environment.hpp"
#include "cpu/isa.hpp"
#include "cpu/mma_fast.hpp"
#include "cpu/mma_portable.hpp"
#include "cpu/parallel.hpp"

namespace fp8sim {
namespace {

constexpr int64_t kPortableRows = 16;
constexpr int64_t kTileRows = 64;  // that a thread takes of a tile's columns
constexpr int64_t kRowGrain = 4;   // rows that loops take together
constexpr int32_t kShortFraction = 13;
constexpr int32_t kLongFraction = 25;
constexpr int32_t kFactorBits = 14;  // of a factor whose sign bit stays clear, less the hidden bit

bool has_fast_loops() {
#if defined(FP8SIM_HAVE_AVX2)
    if (current_isa() == Isa::kAvx2) return true;
#endif
#if defined(FP8SIM_HAVE_AVX512)
    if (current_isa() == Isa::kAvx512) return true;
#endif
    return false;
}

FastLoops fast_loops(bool is_short, bool is_binary16) {
#if defined(FP8SIM_HAVE_AVX512)
    if (current_isa() == Isa::kAvx512) return fast_loops_avx512(is_short, is_binary16);
#endif
#if defined(FP8SIM_HAVE_AVX2)
    if (current_isa() == Isa::kAvx2) return fast_loops_avx2(is_short, is_binary16);
#endif
    (void)is_short;
    (void)is_binary16;
    return {};
}

bool is_fast_operand(const MmaFormat& f) { return f.is_signed && f.has_zero && f.mantissa_bits <= 10; }

// Whether the loops' arithmetic covers the model. The accumulator is a term of every step and its exponent is at least
// the zero exponent, so that a product that is zero never decides the largest one.
bool is_fast(const MmaJob& job) {
    const MmaModel& m = job.model;
    const Adder adder = static_cast<Adder>(m.adder);
    const bool truncates = adder == Adder::kTruncated || adder == Adder::kEmulated || adder == Adder::kBlockScaled;
    if (!has_fast_loops() || !truncates || job.k == 0) return false;
    if (!is_fast_operand(m.a) || !is_fast_operand(m.b) || m.scale.mantissa_bits != 0) return false;
    const int32_t own_bits = m.a.mantissa_bits + m.b.mantissa_bits;
    if (m.fraction_bits < own_bits || m.fraction_bits > kLongFraction || m.terms % 2 != 0) return false;
    if (m.accumulator.mantissa_bits > 23 || m.zero_exponent > 1 - m.accumulator.bias) return false;
    const bool is_binary16 = m.accumulator.mantissa_bits == 10;
    return is_binary16 ? m.rounds_to_nearest && m.kept_bits == 10 : !m.rounds_to_nearest;
}

// Memory that starts on a boundary of 64 bytes. The thread's next product uses it again unless it is large: the pages
// of a new allocation cost a tenth of a 512^3 product.
class Planes {
public:
    explicit Planes(int64_t count) : size_(count + kSlack) {
        if (kept().size >= size_) {
            size_ = kept().size;
            storage_ = std::move(kept().storage);
            kept().size = 0;
        } else {
            storage_.reset(new int16_t[size_]);
        }
        void* first = storage_.get();
        std::size_t space = size_ * sizeof(int16_t);
        start_ = static_cast<int16_t*>(std::align(64, count * sizeof(int16_t), first, space));
    }
    ~Planes() {
        if (size_ <= kMostKept && size_ > kept().size) kept() = {std::move(storage_), size_};
    }
    Planes(const Planes&) = delete;
    Planes& operator=(const Planes&) = delete;
    int16_t* get() const { return start_; }

private:
    struct Kept {
        std::unique_ptr<int16_t[]> storage;
        int64_t size = 0;
    };
    static Kept& kept() {
        static thread_local Kept memory;
        return memory;
    }
    static constexpr int64_t kSlack = 32;
    static constexpr int64_t kMostKept = int64_t{1} << 24;
    int64_t size_;
    std::unique_ptr<int16_t[]> storage_;
    int16_t* start_;
};

int64_t rounded_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

FastJob cut_into_steps(const MmaJob& job, bool is_short) {
    const MmaModel& m = job.model;
    FastJob work = {};
    work.job = job;
    work.step = m;
    work.emulated = m.adder == static_cast<int32_t>(Adder::kEmulated);
    if (work.emulated) work.step.terms = m.k / 2;
    if (work.emulated) work.step.adder = static_cast<int32_t>(Adder::kTruncated);
    work.per_instruction = m.k / work.step.terms;
    work.steps = (job.k + m.k - 1) / m.k * work.per_instruction;
    work.pairs = work.step.terms / 2;
    const int32_t total = m.fraction_bits - m.a.mantissa_bits - m.b.mantissa_bits;
    work.shift[0] = is_short ? 0 : std::min(total, kFactorBits - m.a.mantissa_bits);
    work.shift[1] = total - work.shift[0];
    return work;
}

// parallel_for over things of which each counts as `weight` elements.
template <class Body>
void each(int64_t count, int64_t grain, int64_t weight, Body body) {
    parallel_for(count * weight, grain * weight, [&](int64_t begin, int64_t end) {
        const ScopedFloatEnvironment environment;
        body(begin / weight, end / weight);
    });
}

void run_fast(const MmaJob& job) {
    const bool is_short = job.model.fraction_bits <= kShortFraction && job.a_scales == nullptr;
    FastJob work = cut_into_steps(job, is_short);
    const FastLoops loops = fast_loops(is_short, job.model.accumulator.mantissa_bits == 10);
    const int64_t rows = rounded_up(job.m, kRowGrain), tiles = (job.n + loops.columns - 1) / loops.columns;
    const int64_t panels = tiles * (loops.columns / loops.lanes), products = work.steps * work.step.terms;

    const int64_t a_size = rounded_up(rows * products * kPlanes, 32);
    const int64_t b_size = panels * products * loops.lanes * kPlanes;
    const Planes planes(a_size + b_size);
    std::vector<StepFlags> a_flags(rows * work.steps), b_flags(panels * work.steps);
    std::vector<int32_t> a_exponents, b_exponents;
    if (job.a_scales != nullptr) {
        a_exponents.resize(rows * work.steps);
        b_exponents.resize(panels * work.steps * loops.lanes);
    }
    work.a = {planes.get(), a_flags.data(), job.a_scales == nullptr ? nullptr : a_exponents.data()};
    work.b = {planes.get() + a_size, b_flags.data(), job.b_scales == nullptr ? nullptr : b_exponents.data()};
    each(rows, 16, products, [&](int64_t begin, int64_t end) { loops.pack_rows(work, begin, end); });
    each(panels, 1, products * loops.lanes, [&](int64_t begin, int64_t end) { loops.pack_panels(work, begin, end); });

    const int64_t parts = (rows + kTileRows - 1) / kTileRows;
    each(tiles * parts, 1, kTileRows * loops.columns * products, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t first = i % parts * kTileRows;
            loops.run(work, i / parts, first, std::min(rows, first + kTileRows));
        }
    });
}

}  // namespace

void run(const MmaJob& job) {
    if (job.m == 0 || job.n == 0) return;
    if (is_fast(job)) return run_fast(job);
    each(job.m, kPortableRows, job.n * (job.k + 1),
         [&](int64_t begin, int64_t end) { run_portable(job, begin, end); });
}

}  // namespace fp8sim
