// Encode with a factor, amax and a transposed copy, in one pass over memory.
//
// Two kernels, for matrices in their own order and for the transposed copy beside it. In the usual mode, ties to even
// into 8-bit codes, a thread loads 16 bytes at a time; any other mode, format and size of codes, and a fused product,
// takes one element at a time, because arithmetic limits it. Products are float32 or binary64 multiplications, all
// else is core's integers, or the quick way of core/quick.hpp, which has the same bits.
#pragma once

#include "core/element.hpp"
#include "core/quick.hpp"
#include "cuda/dispatch.hpp"
#include "cuda/encode_scaled.hpp"
#include "cuda/intrinsics.cuh"
#include "cuda/quick_bits.cuh"

namespace fp8sim {

// One element.

constexpr uint32_t kMagnitude = 0x7FFFFFFF, kInfinite = 0x7F800000, kQuietNan = 0x7FC00000;

FP8SIM_HD bool is_nan(uint32_t pattern) { return (pattern & kMagnitude) > kInfinite; }

template <class From>
FP8SIM_HD uint32_t float32_pattern(From type, typename From::Storage x) {
    return widen(type, x);
}

FP8SIM_HD uint32_t float32_pattern(Float64, uint64_t x) {
    const uint32_t sign = static_cast<uint32_t>(x >> 32) & ~kMagnitude;
    const uint32_t nearest = bit_cast<uint32_t>(static_cast<float>(bit_cast<double>(x)));
    return is_nan(nearest) ? kQuietNan | sign : nearest;
}

// The product, rounded to float32. A NaN stays itself; one that the factor makes of a number is positive.
FP8SIM_HD uint32_t rounded_product(uint32_t x, float factor) {
    const uint32_t product = bit_cast<uint32_t>(bit_cast<float>(x) * factor);
    if (is_nan(x)) return x;
    return is_nan(product) ? kQuietNan : product;
}

// The exact product, in binary64; NaN likewise.
FP8SIM_HD uint64_t exact_product(uint32_t x, float factor) {
    using L = Layout<uint64_t>;
    const uint64_t sign = is_nan(x) ? uint64_t{x & ~kMagnitude} << 32 : 0;
    const uint64_t product = bit_cast<uint64_t>(double{bit_cast<float>(x)} * double{factor});
    return (product & ~L::kSignMask) > L::kInfinity ? L::kQuietNan | sign : product;
}

template <Mode mode, class Bits>
FP8SIM_HD uint32_t code_of(Bits number, const Conversion& c, const RandomBits& bits, uint64_t element) {
    if constexpr (mode == Mode::kUsual) {
        return static_cast<uint32_t>(encode<Rounding::kTiesToEven, Reach::kWithin, Bits>(number, c, 0, 32));
    } else {
        return static_cast<uint32_t>(encode_any(number, c, bits, element));
    }
}

// The number that is encoded, in 32 or 64 bits; float32 numbers are binary64 numbers, too.
FP8SIM_HD uint32_t number_in(uint32_t, uint32_t pattern) { return pattern; }
FP8SIM_HD uint64_t number_in(uint64_t, uint32_t pattern) { return exact_product(pattern, 1.0f); }

// `largest` is raised to the element's magnitude. In the usual mode no product is fused.
template <class From, Mode mode>
FP8SIM_HD uint32_t scaled_code(typename From::Storage x, Meets meets, float factor, const Conversion& c,
                               const RandomBits& bits, uint64_t element, uint32_t& largest) {
    using Bits = typename From::Bits;
    const uint32_t pattern = float32_pattern(From{}, x);
    largest = larger(largest, pattern & kMagnitude);
    if (mode == Mode::kAny && meets == Meets::kFused) {
        return code_of<Mode::kAny>(exact_product(pattern, factor), c, bits, element);
    }
    const bool alone = meets == Meets::kNothing;
    const Bits number = alone ? widen(From{}, x) : number_in(Bits{}, rounded_product(pattern, factor));
    return code_of<mode>(number, c, bits, element);
}

// Pieces of a row: what one thread loads at a time.

template <class T, int count>
struct alignas(count * sizeof(T)) Piece {
    T element[count];
};

constexpr int kLoad = 16;

template <class From, Mode mode>
constexpr int kPiece = mode == Mode::kUsual ? kLoad / static_cast<int>(sizeof(typename From::Storage)) : 1;

// `count` elements from x on, in one load if `whole`.
template <class T, int piece>
FP8SIM_DEVICE Piece<T, piece> load_piece(const T* x, int64_t count, bool whole) {
    if (whole) return *reinterpret_cast<const Piece<T, piece>*>(x);
    Piece<T, piece> loaded = {};
#pragma unroll
    for (int i = 0; i < piece; ++i) {
        if (i < count) loaded.element[i] = x[i];
    }
    return loaded;
}

FP8SIM_DEVICE void store_code(void* codes, Dtype dtype, int64_t index, uint32_t code) {
    if (dtype == Dtype::kCodes8) static_cast<uint8_t*>(codes)[index] = static_cast<uint8_t>(code);
    else if (dtype == Dtype::kCodes16) static_cast<uint16_t*>(codes)[index] = static_cast<uint16_t>(code);
    else static_cast<uint32_t*>(codes)[index] = code;
}

// 8-bit codes at once if `whole`; a single code, of any size, by itself.
template <int piece>
FP8SIM_DEVICE void store_codes(void* codes, Dtype dtype, int64_t index, const uint32_t (&code)[piece], int64_t count,
                               bool whole) {
    if constexpr (piece > 1) {
        if (whole) {
            Piece<uint8_t, piece> bytes;
#pragma unroll
            for (int i = 0; i < piece; ++i) bytes.element[i] = static_cast<uint8_t>(code[i]);
            *reinterpret_cast<Piece<uint8_t, piece>*>(static_cast<uint8_t*>(codes) + index) = bytes;
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < piece; ++i) {
        if (i < count) store_code(codes, dtype, index + i, code[i]);
    }
}

FP8SIM_DEVICE float factor_of(const KnownFactor& factor) { return factor.address ? *factor.address : factor.value; }

// All NaN are one.
FP8SIM_DEVICE void keep_amax(uint32_t* amax, uint32_t largest) {
    if (amax == nullptr) return;
    largest = warp_max(largest);
    if (thread_index() % 32 == 0) atomic_max(amax, is_nan(largest) ? kQuietNan : largest);
}

// How a kernel's elements become codes: quickly, or as the mode says.
struct Encoding {
    QuickRounding quick;
    float factor;
    float quick_factor;  // 1 where elements meet nothing: the product is the element
};

FP8SIM_DEVICE Encoding encoding_of(const EncodeScaledJob& job, const QuickRounding& quick) {
    const float factor = factor_of(job.factor);
    return {quick, factor, job.factor.meets == Meets::kNothing ? 1.0f : factor};
}

// Codes of the first `count` elements of a piece, elements `index` and on of the tensor; 0 beyond.
template <class From, Mode mode, int piece>
FP8SIM_DEVICE void encode_piece(const EncodeScaledJob& job, const Encoding& encoding,
                                const Piece<typename From::Storage, piece>& in, int64_t index, int64_t count,
                                uint32_t (&code)[piece], uint32_t& largest) {
    if constexpr (mode == Mode::kUsual) {
        uint32_t product[piece];
        bool all = true;
#pragma unroll
        for (int i = 0; i < piece; ++i) {
            const uint32_t pattern = quick_bits(From{}, in.element[i]);
            largest = larger(largest, pattern & kMagnitude);
            product[i] = bit_cast<uint32_t>(bit_cast<float>(pattern) * encoding.quick_factor);
            all = all && takes_quick_way(product[i], encoding.quick);
        }
        if (all) {
#pragma unroll
            for (int i = 0; i < piece; ++i) code[i] = quick_encode(product[i], encoding.quick);
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < piece; ++i) {
        code[i] = i < count ? scaled_code<From, mode>(in.element[i], job.factor.meets, encoding.factor, job.conversion,
                                                      job.bits, index + i, largest)
                            : 0;
    }
}

// Matrices in their own order.

constexpr int kFlatThreads = 256;

// Pieces that a thread loads before it uses the first one, so that enough of memory is on its way.
template <Mode mode>
constexpr int kPiecesAhead = mode == Mode::kUsual ? 2 : 1;

// `aligned`: x and codes are, to whole pieces.
template <class From, Mode mode>
__global__ void __launch_bounds__(kFlatThreads)
    encode_scaled_kernel(EncodeScaledJob job, QuickRounding quick, int64_t size, bool aligned) {
    using Storage = typename From::Storage;
    constexpr int piece = kPiece<From, mode>, ahead = kPiecesAhead<mode>;
    constexpr int64_t apart = int64_t{piece} * kFlatThreads;
    const Storage* x = static_cast<const Storage*>(job.x);
    const Encoding encoding = encoding_of(job, quick);
    uint32_t largest = 0;
    for (int64_t begin = ahead * apart * block_index() + piece * thread_index(); begin < size;
         begin += ahead * apart * block_count()) {
        Piece<Storage, piece> in[ahead];
#pragma unroll
        for (int i = 0; i < ahead; ++i) {
            const int64_t at = begin + i * apart;
            in[i] = load_piece<Storage, piece>(x + at, size - at, aligned && at + piece <= size);
        }
#pragma unroll
        for (int i = 0; i < ahead; ++i) {
            const int64_t at = begin + i * apart;
            uint32_t code[piece];
            encode_piece<From, mode>(job, encoding, in[i], at, size - at, code, largest);
            store_codes<piece>(job.codes, job.target_dtype, at, code, size - at, aligned && at + piece <= size);
        }
    }
    keep_amax(job.amax, largest);
}

// With the transposed copy: a block takes a tile of 64 rows and columns at a time and turns it in shared memory.

constexpr int kTransposingThreads = 256;

// The tile as words that hold one code, or in the usual mode those of four rows: [column][row], a word apart.
template <Mode mode>
struct TurnedTile {
    static constexpr int kRowsPerWord = mode == Mode::kUsual ? 4 : 1;
    static constexpr int kWords = kTile / kRowsPerWord;
    static constexpr int kStride = kWords + 1;
    static constexpr int kSize = kTile * kStride;
};

struct TileOfMatrix {
    int64_t first;  // element of the matrix's start
    int64_t row;
    int64_t column;
};

// Tiles of a matrix next to and below each other.
struct Tiling {
    uint32_t across;
    uint32_t down;
    uint32_t count;  // of all matrices
};

FP8SIM_DEVICE TileOfMatrix tile_of(const EncodeScaledJob& job, const Tiling& tiling, uint32_t index) {
    const uint32_t row = index / tiling.across, matrix = row / tiling.down;
    return {matrix * job.rows * job.columns, int64_t{row % tiling.down} * kTile,
            int64_t{index % tiling.across} * kTile};
}

// Loads, encodes and stores the tile, and keeps its codes in `turned`.
template <class From, Mode mode>
FP8SIM_DEVICE void encode_tile(const EncodeScaledJob& job, const Encoding& encoding, const TileOfMatrix& tile,
                               bool aligned, uint32_t* turned, uint32_t& largest) {
    using Storage = typename From::Storage;
    using Turned = TurnedTile<mode>;
    constexpr int piece = kPiece<From, mode>, rows = Turned::kRowsPerWord, across = kTile / piece;
    for (int unit = thread_index(); unit < Turned::kWords * across; unit += kTransposingThreads) {
        const int word = unit / across, column = unit % across * piece;
        const int64_t left = job.columns - tile.column - column;
        const auto row_of = [&](int r) { return tile.row + word * rows + r; };
        const auto index_of = [&](int r) { return tile.first + row_of(r) * job.columns + tile.column + column; };
        const bool whole = aligned && piece <= left;
        Piece<Storage, piece> in[rows];
#pragma unroll
        for (int r = 0; r < rows; ++r) {
            const bool exists = row_of(r) < job.rows && left > 0;
            in[r] = load_piece<Storage, piece>(static_cast<const Storage*>(job.x) + index_of(r), exists ? left : 0,
                                               exists && whole);
        }
        uint32_t words[piece] = {};
#pragma unroll
        for (int r = 0; r < rows; ++r) {
            if (row_of(r) >= job.rows || left <= 0) continue;
            uint32_t code[piece];
            encode_piece<From, mode>(job, encoding, in[r], index_of(r), left, code, largest);
            store_codes<piece>(job.codes, job.target_dtype, index_of(r), code, left, whole);
#pragma unroll
            for (int i = 0; i < piece; ++i) words[i] |= code[i] << 8 * r;
        }
#pragma unroll
        for (int i = 0; i < piece; ++i) turned[(column + i) * Turned::kStride + word] = words[i];
    }
}

// Stores the codes in `turned` where the transposed matrix has them; `aligned`: 16 of them at once.
template <Mode mode>
FP8SIM_DEVICE void store_turned(const EncodeScaledJob& job, const TileOfMatrix& tile, bool aligned,
                                const uint32_t* turned) {
    using Turned = TurnedTile<mode>;
    constexpr int words = mode == Mode::kUsual ? 4 : 1, piece = words * Turned::kRowsPerWord, down = kTile / piece;
    for (int unit = thread_index(); unit < kTile * down; unit += kTransposingThreads) {
        const int column = unit / down, row = unit % down * piece;
        const int64_t left = job.rows - tile.row - row;
        if (tile.column + column >= job.columns || left <= 0) continue;
        uint32_t code[piece];
#pragma unroll
        for (int w = 0; w < words; ++w) {
            const uint32_t word = turned[column * Turned::kStride + row / Turned::kRowsPerWord + w];
#pragma unroll
            for (int r = 0; r < Turned::kRowsPerWord; ++r) {
                code[w * Turned::kRowsPerWord + r] = mode == Mode::kUsual ? word >> 8 * r & 0xFF : word;
            }
        }
        const int64_t at = tile.first + (tile.column + column) * job.rows + tile.row + row;
        store_codes<piece>(job.transposed, job.target_dtype, at, code, left, aligned && piece <= left);
    }
}

template <class From, Mode mode>
__global__ void __launch_bounds__(kTransposingThreads, 3)
    encode_transposing_kernel(EncodeScaledJob job, QuickRounding quick, Tiling tiling, bool aligned,
                              bool transposed_aligned) {
    __shared__ uint32_t turned[TurnedTile<mode>::kSize];
    const Encoding encoding = encoding_of(job, quick);
    uint32_t largest = 0;
    for (uint32_t index = block_index(); index < tiling.count; index += block_count()) {
        const TileOfMatrix tile = tile_of(job, tiling, index);
        encode_tile<From, mode>(job, encoding, tile, aligned, turned, largest);
        block_sync();
        store_turned<mode>(job, tile, transposed_aligned, turned);
        block_sync();
    }
    keep_amax(job.amax, largest);
}

// What a launch needs to know of a job.

FP8SIM_HD bool is_multiple(const void* address, int64_t bytes) {
    return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

// Whether x and the codes may be moved by whole pieces: of 16 bytes of x, as many 8-bit codes.
template <class From, Mode mode>
FP8SIM_HD bool moves_pieces(const EncodeScaledJob& job) {
    constexpr int piece = kPiece<From, mode>;
    const bool rows_too = job.transposed == nullptr || job.columns % piece == 0;
    return rows_too && is_multiple(job.x, piece * sizeof(typename From::Storage)) && is_multiple(job.codes, piece);
}

FP8SIM_HD bool turns_pieces(const EncodeScaledJob& job) {
    return job.rows % kLoad == 0 && is_multiple(job.transposed, kLoad);
}

FP8SIM_HD Tiling tiling_of(const EncodeScaledJob& job) {
    const auto tiles = [](int64_t size) { return static_cast<uint32_t>((size + kTile - 1) / kTile); };
    const uint32_t across = tiles(job.columns), down = tiles(job.rows);
    return {across, down, across * down * static_cast<uint32_t>(job.matrices)};
}

// Calls run(From{}, Constant<mode>{}) with the source's tag and the mode: the usual one for 8-bit codes alone.
template <class Run>
auto for_source(const EncodeScaledJob& job, const Run& run) {
    const bool usual = is_usual<uint32_t>(job.conversion) && job.target_dtype == Dtype::kCodes8 &&
                       job.factor.meets != Meets::kFused;
    const Constant<Mode::kUsual> often{};
    const Constant<Mode::kAny> any{};
    switch (job.source_dtype) {
        case Dtype::kFloat16: return usual ? run(Float16{}, often) : run(Float16{}, any);
        case Dtype::kBfloat16: return usual ? run(Bfloat16{}, often) : run(Bfloat16{}, any);
        case Dtype::kFloat32: return usual ? run(Float32{}, often) : run(Float32{}, any);
        default: return run(Float64{}, any);
    }
}

}  // namespace fp8sim
