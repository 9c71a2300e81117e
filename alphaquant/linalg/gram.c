/* X'X of bf16 inputs with fp32 sums, which no library's product gives: by the CPU's own products of pairs. */
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#define PANEL 32    /* columns that lie together: two vectors of pairs */
#define ROWS 8      /* columns whose products with a panel are summed in registers */
#define PAIRS 64    /* of tokens that are summed before the sums are added: longer chains lose bits, and a panel's leave the first cache */

struct gram { /* mirrored by gram_in_c.py */
    int64_t tokens, cols, stride, pairs, total_stride;
    const uint16_t *x; /* [tokens, cols], so many elements from one token to the next */
    uint32_t *packed;  /* [panels, pairs, PANEL]: a column's inputs of two tokens */
    float *total;      /* [cols, cols], symmetric */
    double *found;     /* [pairs of panels on and above the diagonal] */
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

INLINE __m512bh both(__m512i pairs) {
    return (__m512bh)pairs;
}

/* Sums the products of ROWS columns with those of a panel over some pairs. */
INLINE void sum_tile(__m512 sums[ROWS][2], const uint32_t *left, const uint32_t *right, int64_t pairs) {
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
}

/* Which of 16 columns are there, of so many that are left. */
INLINE __mmask16 of_columns(int64_t left) {
    return left >= 16 ? 0xFFFF : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
}

/* Goes through the tiles of the pairs of panels from start to stop, of those on and above the diagonal: 0 0, 0 1, 1 1, 0 2, ...;
   adds their products to the total, or returns the sum of both's products. */
INLINE double tiles(const struct gram *gram, int64_t start, int64_t stop, int adds) {
    int64_t right = 0, before = 0;
    double found = 0.0;
    while (before + right + 1 <= start)
        before += ++right;
    for (int64_t item = start, left = start - before; item < stop; item++, left++) {
        if (left > right) {
            right++;
            left = 0;
        }
        const int64_t across = right * PANEL, most = gram->cols - left * PANEL, rows = most < PANEL ? most : PANEL;
        const __mmask16 low = of_columns(gram->cols - across), high = of_columns(gram->cols - across - 16);
        double here = 0.0;
        for (int64_t pair = 0; pair < gram->pairs; pair += PAIRS) {
            const int64_t more = gram->pairs - pair, pairs = more < PAIRS ? more : PAIRS;
            const uint32_t *down = gram->packed + (left * gram->pairs + pair) * PANEL;
            const uint32_t *panel = gram->packed + (right * gram->pairs + pair) * PANEL;
            for (int64_t row = 0; row < rows; row += ROWS) {
                __m512 sums[ROWS][2];
                sum_tile(sums, down + row, panel, pairs);
                float *total = gram->total + (left * PANEL + row) * gram->total_stride + across;
                __m512 products = _mm512_setzero_ps();
                for (int64_t at = 0; at < ROWS && row + at < rows; at++, total += gram->total_stride) {
                    __m512 first = _mm512_maskz_loadu_ps(low, total), second = _mm512_maskz_loadu_ps(high, total + 16);
                    if (adds) {
                        _mm512_mask_storeu_ps(total, low, _mm512_add_ps(first, sums[at][0]));
                        _mm512_mask_storeu_ps(total + 16, high, _mm512_add_ps(second, sums[at][1]));
                    } else {
                        products = _mm512_fmadd_ps(first, sums[at][0], products);
                        products = _mm512_fmadd_ps(second, sums[at][1], products);
                    }
                }
                if (!adds)
                    here += _mm512_reduce_add_ps(products);
            }
        }
        found += left == right ? here : 2.0 * here;
    }
    return found;
}

/* Adds X'X of some pairs of panels to the total. */
void add_gram(const struct gram *gram, int64_t start, int64_t stop) {
    tiles(gram, start, stop, 1);
}

/* The sum of X'X times the total by pair of panels; one beside the diagonal counts for its mirror image too. */
void multiply_gram(const struct gram *gram, int64_t start, int64_t stop) {
    for (int64_t item = start; item < stop; item++)
        gram->found[item] = tiles(gram, item, item + 1, 0);
}
#endif
