/* X'X of bf16 inputs with fp32 sums, which no library's product gives: by the CPU's own products of pairs. */
#include <stdint.h>
#include <string.h>

#define PANEL 32    /* columns that lie together: two vectors of pairs */
#define ROWS 8      /* columns whose products with a panel are summed in registers */
#define PAIRS 64    /* of tokens that are summed before the sums are added: longer chains lose bits, and a panel's leave the first cache */

struct gram { /* mirrored by gram_in_c.py */
    int64_t tokens, cols, stride, pairs, total_stride;
    const uint16_t *x; /* [tokens, cols], so many elements from one token to the next */
    uint32_t *packed;  /* [panels, pairs, PANEL]: a column's inputs of two tokens */
    float *total;      /* [cols, cols] */
};

/* Brings the inputs of the panels from start to stop into the order in which they are multiplied. */
void pack(const struct gram *gram, int64_t start, int64_t stop) {
    for (int64_t panel = start; panel < stop; panel++) {
        const int64_t first = panel * PANEL, left = gram->cols - first, width = left < PANEL ? left : PANEL;
        uint32_t *to = gram->packed + panel * gram->pairs * PANEL;
        for (int64_t pair = 0; pair < gram->pairs; pair++, to += PANEL) {
            const uint16_t *even = gram->x + 2 * pair * gram->stride + first;
            const uint16_t *odd = even + gram->stride;
            if (width == PANEL && 2 * pair + 1 < gram->tokens) {
                for (int column = 0; column < PANEL; column++)
                    to[column] = even[column] | (uint32_t)odd[column] << 16;
                continue;
            }
            memset(to, 0, PANEL * sizeof *to);
            for (int64_t column = 0; column < width; column++)
                to[column] = even[column] | (2 * pair + 1 < gram->tokens ? (uint32_t)odd[column] << 16 : 0);
        }
    }
}

#ifdef __AVX512BF16__
#include <immintrin.h>

static inline __m512bh both(__m512i pairs) {
    return (__m512bh)pairs;
}

/* Adds the products of ROWS columns (of which so many are there) with those of a panel (of which width are there). */
static inline void add_tile(const uint32_t *left, const uint32_t *right, int64_t pairs, float *total, int64_t stride,
                            int64_t rows, int64_t width) {
    __m512 sums[ROWS][2];
    for (int row = 0; row < ROWS; row++)
        sums[row][0] = sums[row][1] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < pairs; pair++, left += PANEL, right += PANEL) {
        __m512bh first = both(_mm512_loadu_si512(right)), second = both(_mm512_loadu_si512(right + 16));
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++) {
            __m512bh here = both(_mm512_set1_epi32((int)left[row]));
            sums[row][0] = _mm512_dpbf16_ps(sums[row][0], here, first);
            sums[row][1] = _mm512_dpbf16_ps(sums[row][1], here, second);
        }
    }
    const __mmask16 low = width >= 16 ? 0xFFFF : (__mmask16)((1u << width) - 1);
    const __mmask16 high = width >= 32 ? 0xFFFF : width <= 16 ? 0 : (__mmask16)((1u << (width - 16)) - 1);
    for (int64_t row = 0; row < rows; row++, total += stride) {
        _mm512_mask_storeu_ps(total, low, _mm512_add_ps(_mm512_maskz_loadu_ps(low, total), sums[row][0]));
        _mm512_mask_storeu_ps(total + 16, high, _mm512_add_ps(_mm512_maskz_loadu_ps(high, total + 16), sums[row][1]));
    }
}

/* Adds the pairs of panels from start to stop, of those on and above the diagonal: 0 0, 0 1, 1 1, 0 2, ... */
void add_gram(const struct gram *gram, int64_t start, int64_t stop) {
    int64_t right = 0, before = 0;
    while (before + right + 1 <= start)
        before += ++right;
    for (int64_t item = start, left = start - before; item < stop; item++, left++) {
        if (left > right) {
            right++;
            left = 0;
        }
        const int64_t down = left * PANEL, across = right * PANEL, width = gram->cols - across;
        for (int64_t pair = 0; pair < gram->pairs; pair += PAIRS) {
            const int64_t more = gram->pairs - pair, pairs = more < PAIRS ? more : PAIRS;
            const uint32_t *rows = gram->packed + (left * gram->pairs + pair) * PANEL;
            const uint32_t *panel = gram->packed + (right * gram->pairs + pair) * PANEL;
            for (int64_t row = 0; row < PANEL && down + row < gram->cols; row += ROWS) {
                const int64_t there = gram->cols - down - row;
                add_tile(rows + row, panel, pairs, gram->total + (down + row) * gram->total_stride + across,
                         gram->total_stride, there < ROWS ? there : ROWS, width < PANEL ? width : PANEL);
            }
        }
    }
}
#endif
