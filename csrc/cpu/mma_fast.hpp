// What the vectorised loops of matrix products work on: operands decoded once, and the tiles of the result.
#pragma once

#include <cstdint>

#include "cpu/mma.hpp"

namespace fp8sim {

// The columns of a panel are the lanes of a vector; a pair is two consecutive k, side by side in a lane.
//
// Of each number there are three integers of 16 bits: exponent, magnitude (shifted so that products have the fraction
// bits that the adder keeps) and sign. Zeros have kNoExponent16, and so have infinities and NaN, which flags report.
constexpr int16_t kNoExponent16 = -8192;
constexpr int kPlanes = 3;

enum Plane { kExponents, kMagnitudes, kSigns };

// Both, of one step: bit masks over the columns of a panel; for rows of a, 0 or all ones.
struct StepFlags {
    uint16_t special;  // an infinity or NaN
    uint16_t nan;      // a NaN, or a NaN scale factor
};

// Plain pointers: a function of the standard library that is compiled for one instruction set might be used for all.
struct PackedOperand {
    int16_t* planes;     // rows: [rows, planes, products]; panels: [panels, pairs, planes, lanes, 2], 64-byte vectors
    StepFlags* flags;    // [rows or panels, steps]
    int32_t* exponents;  // of scale factors, [rows, steps] or [panels, steps, lanes]; null if there are none
};

// A matrix product cut into steps.
struct FastJob {
    MmaJob job;
    MmaModel step;     // the adder of one step: truncating
    int64_t steps;     // of all instructions
    int32_t per_instruction;
    bool emulated;     // each instruction starts at 0 and its result is added to d
    int32_t pairs;     // of one step
    int32_t shift[2];  // of the magnitudes of a and b
    PackedOperand a;
    PackedOperand b;
};

struct FastLoops {
    int lanes;
    int columns;  // of a tile
    void (*pack_rows)(const FastJob& work, int64_t begin, int64_t end);
    void (*pack_panels)(const FastJob& work, int64_t begin, int64_t end);
    // Rows [begin, end) of the tile's columns.
    void (*run)(const FastJob& work, int64_t tile, int64_t begin, int64_t end);
};

// For products of at most 15 bits, else of at most 27; for an accumulator in binary16, else in binary32.
FastLoops fast_loops_avx2(bool is_short, bool is_binary16);
FastLoops fast_loops_avx512(bool is_short, bool is_binary16);

// k of the i-th product of a step, counted over all steps; beyond job.k lie zeros.
FP8SIM_HD int64_t k_of(const FastJob& work, int64_t product) {
    if (!work.emulated) return product;
    const int64_t half = work.step.terms, instruction = product / (2 * half), i = product % half;
    return instruction * 2 * half + 4 * (i / 2) + 2 * (product / half % 2) + i % 2;
}

// One step of one element by the interpreter. `c` and the result are binary32 bits whatever the accumulator is.
uint32_t interpret_step(const FastJob& work, int64_t row, int64_t column, int64_t step, uint32_t c);

}  // namespace fp8sim
