// For ggml's AMX kernels. GCC 12's _tile_loadconfig tells the compiler that it reads 8 bytes of the 64 that the instruction
// reads; the others are optimised away, and the first tile instruction crashes.
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char (*)[64])(config)))
