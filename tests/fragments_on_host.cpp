// csrc/cuda/fragments.hpp as a host library, for tests/test_probe_kernels.py.
#include "cuda/fragments.hpp"

using namespace fp8sim;

extern "C" void place_of_a(int lane, int i, int rows, int* place) {
    const WordPlace at = fragment_a(lane, i, rows);
    place[0] = at.row;
    place[1] = at.word;
}

extern "C" void place_of_b(int lane, int i, int* place) {
    const WordPlace at = fragment_b(lane, i);
    place[0] = at.row;
    place[1] = at.word;
}

extern "C" void place_of_d(int lane, int i, int packed, int* place) {
    const WordPlace at = fragment_d(lane, i, packed != 0);
    place[0] = at.row;
    place[1] = at.word;
}

extern "C" int offset_of(int row, int byte) { return core_offset(row, byte); }

extern "C" uint64_t descriptor_of(uint32_t address) { return core_descriptor(address); }
