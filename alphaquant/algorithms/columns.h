/* Rows that go through the columns of a tile together: a column of them is a line of memory, and a few vectors. */
#include "formats/grid.h"

/* Told by who compiles: ROWS that go together, TILE columns at most, CODES of a codebook. */
#define AT_ONCE 8 /* earlier columns whose steps are summed before the sum is taken */

typedef float line[ROWS] __attribute__((aligned(64)));

/* Copies a line, or as much as there is at the end of a matrix. */
INLINE void copy(float *to, const float *from, int64_t width) {
    memcpy(to, from, width == ROWS ? sizeof(line) : width * sizeof(float));
}

/* Sums are taken in one rounding where the CPU can; what is stored never is. */
INLINE float plus(float sum, float left, float right) {
#ifdef __FP_FAST_FMAF
    return __builtin_fmaf(left, right, sum);
#else
    return sum + left * right;
#endif
}

/* Takes from a column what it feels of the steps of those before it. */
INLINE void take(float *here, const float *felt, line *steps, int64_t columns) {
    int64_t column = 0;
    for (; column + AT_ONCE <= columns; column += AT_ONCE) {
        const float *by = felt + column;
        line *step = steps + column;
        for (int row = 0; row < ROWS; row++) {
            float even = by[0] * step[0][row], odd = by[1] * step[1][row];
            for (int next = 2; next < AT_ONCE; next += 2) {
                even = plus(even, by[next], step[next][row]);
                odd = plus(odd, by[next + 1], step[next + 1][row]);
            }
            here[row] -= even + odd;
        }
    }
    for (; column < columns; column++)
        for (int row = 0; row < ROWS; row++)
            here[row] = plus(here[row], -felt[column], steps[column][row]);
}
