// Registers of an instruction's sum as asm statements name and bind them.
//
// FP8SIM_REGISTERS_64 is "%0, ..., %63"; FP8SIM_VALUES_64(C, s, 0) binds s[0] to s[63] to them, as C says: "+f" or "+r".
#pragma once

#define FP8SIM_VALUES_2(C, s, i) C(s[i]), C(s[i + 1])
#define FP8SIM_VALUES_4(C, s, i) FP8SIM_VALUES_2(C, s, i), FP8SIM_VALUES_2(C, s, i + 2)
#define FP8SIM_VALUES_8(C, s, i) FP8SIM_VALUES_4(C, s, i), FP8SIM_VALUES_4(C, s, i + 4)
#define FP8SIM_VALUES_16(C, s, i) FP8SIM_VALUES_8(C, s, i), FP8SIM_VALUES_8(C, s, i + 8)
#define FP8SIM_VALUES_32(C, s, i) FP8SIM_VALUES_16(C, s, i), FP8SIM_VALUES_16(C, s, i + 16)
#define FP8SIM_VALUES_64(C, s, i) FP8SIM_VALUES_32(C, s, i), FP8SIM_VALUES_32(C, s, i + 32)
#define FP8SIM_VALUES_128(C, s, i) FP8SIM_VALUES_64(C, s, i), FP8SIM_VALUES_64(C, s, i + 64)

#define FP8SIM_TEN(t)                                                                                          \
    "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define FP8SIM_FIRST_TEN "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "
#define FP8SIM_FIRST_SIXTY FP8SIM_FIRST_TEN FP8SIM_TEN(1) FP8SIM_TEN(2) FP8SIM_TEN(3) FP8SIM_TEN(4) FP8SIM_TEN(5)

#define FP8SIM_REGISTERS_2 "%0, %1"
#define FP8SIM_REGISTERS_4 "%0, %1, %2, %3"
#define FP8SIM_REGISTERS_16 FP8SIM_FIRST_TEN "%10, %11, %12, %13, %14, %15"
#define FP8SIM_REGISTERS_32 FP8SIM_FIRST_TEN FP8SIM_TEN(1) FP8SIM_TEN(2) "%30, %31"
#define FP8SIM_REGISTERS_64 FP8SIM_FIRST_SIXTY "%60, %61, %62, %63"
#define FP8SIM_REGISTERS_128                                                                                   \
    FP8SIM_FIRST_SIXTY FP8SIM_TEN(6) FP8SIM_TEN(7) FP8SIM_TEN(8) FP8SIM_TEN(9) FP8SIM_TEN(10) FP8SIM_TEN(11)   \
        "%120, %121, %122, %123, %124, %125, %126, %127"
