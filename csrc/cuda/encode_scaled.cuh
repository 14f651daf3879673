// Encode with a factor, amax and a transposed copy, in one pass over memory.
//
// Two kernels, for matrices in their own order and for the transposed copy beside it. In the usual mode, ties to even
// into 8-bit codes, a thread loads 16 bytes at a time; any other mode, format and size of codes, and a fused product,
// takes one element at a time, because arithmetic limits it. Products are float32 or binary64 multiplications, all
// else is core's integers, or the quick way of core/quick.hpp, which has the same bits.
#pragma once

#include "cuda/dispatch.hpp"
#include "cuda/encode_piece.cuh"

namespace fp8sim {

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
__global__ void __launch_bounds__(kTransposingThreads, 2)
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
