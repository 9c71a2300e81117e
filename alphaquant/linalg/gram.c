/* X'X and X'Y of bf16 inputs with fp32 sums, which no library's product gives: by the CPU's own products of pairs. */
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Told by who compiles: columns of a PANEL, which are two vectors of pairs. */
#define DOWN 8   /* columns whose products with a panel are summed in registers */
#define PAIRS 64 /* of tokens that are summed before the sums are added: longer chains lose bits, and a panel's leave the first cache */

struct packing { /* mirrored by gram_in_c.py */
    int64_t tokens, cols, stride, pairs;
    const uint16_t *x; /* [tokens, cols], so many elements from one token to the next */
    uint32_t *packed;  /* [panels, pairs, PANEL]: a column's inputs of two tokens */
};

struct product { /* mirrored by gram_in_c.py */
    int64_t pairs, rows, cols, stride;
    const uint32_t *left, *right; /* packed */
    float *total;                 /* [rows, cols], so many elements from one row to the next */
    double *found;                /* [pairs of panels on and above the diagonal] */
};

/* Brings the inputs of the panels from start to stop into the order in which they are multiplied. */
void pack(const struct packing *packing, int64_t start, int64_t stop) {
    for (int64_t panel = start; panel < stop; panel++) {
        const int64_t first = panel * PANEL, left = packing->cols - first, width = left < PANEL ? left : PANEL;
        uint32_t *to = packing->packed + panel * packing->pairs * PANEL;
        for (int64_t pair = 0; pair < packing->pairs; pair++, to += PANEL) {
            const uint16_t *even = packing->x + 2 * pair * packing->stride + first;
            const uint16_t *odd = even + packing->stride;
            const int both = 2 * pair + 1 < packing->tokens;
            if (width == PANEL && both) {
                for (int column = 0; column < PANEL; column++)
                    to[column] = even[column] | (uint32_t)odd[column] << 16;
                continue;
            }
            memset(to, 0, PANEL * sizeof *to);
            for (int64_t column = 0; column < width; column++)
                to[column] = even[column] | (both ? (uint32_t)odd[column] << 16 : 0);
        }
    }
}

#ifdef __AVX512BF16__
#include <immintrin.h>

INLINE __m512bh both(__m512i pairs) {
    return (__m512bh)pairs;
}

/* Sums the products of DOWN columns with those of a panel over some pairs. */
INLINE void sum_tile(__m512 sums[DOWN][2], const uint32_t *left, const uint32_t *right, int64_t pairs) {
    for (int row = 0; row < DOWN; row++)
        sums[row][0] = sums[row][1] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < pairs; pair++, left += PANEL, right += PANEL) {
        __m512bh first = both(_mm512_loadu_si512(right)), second = both(_mm512_loadu_si512(right + 16));
#pragma GCC unroll 8
        for (int row = 0; row < DOWN; row++) {
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

/* Adds the product of two panels to the total, or returns its sum, element by element times the total's. */
INLINE double tile(const struct product *product, int64_t left, int64_t right, int adds) {
    const int64_t across = right * PANEL, most = product->rows - left * PANEL, rows = most < PANEL ? most : PANEL;
    const __mmask16 low = of_columns(product->cols - across), high = of_columns(product->cols - across - 16);
    double found = 0.0;
    for (int64_t pair = 0; pair < product->pairs; pair += PAIRS) {
        const int64_t more = product->pairs - pair, pairs = more < PAIRS ? more : PAIRS;
        const uint32_t *down = product->left + (left * product->pairs + pair) * PANEL;
        const uint32_t *panel = product->right + (right * product->pairs + pair) * PANEL;
        for (int64_t row = 0; row < rows; row += DOWN) {
            __m512 sums[DOWN][2], weighed = _mm512_setzero_ps();
            sum_tile(sums, down + row, panel, pairs);
            float *total = product->total + (left * PANEL + row) * product->stride + across;
            for (int64_t at = 0; at < DOWN && row + at < rows; at++, total += product->stride) {
                __m512 first = _mm512_maskz_loadu_ps(low, total), second = _mm512_maskz_loadu_ps(high, total + 16);
                if (adds) {
                    _mm512_mask_storeu_ps(total, low, _mm512_add_ps(first, sums[at][0]));
                    _mm512_mask_storeu_ps(total + 16, high, _mm512_add_ps(second, sums[at][1]));
                } else {
                    weighed = _mm512_fmadd_ps(first, sums[at][0], weighed);
                    weighed = _mm512_fmadd_ps(second, sums[at][1], weighed);
                }
            }
            if (!adds)
                found += _mm512_reduce_add_ps(weighed);
        }
    }
    return found;
}

/* Adds the tiles from start to stop, panel of the right by panel: X'Y. */
void add_product(const struct product *product, int64_t start, int64_t stop) {
    const int64_t panels = (product->rows + PANEL - 1) / PANEL;
    for (int64_t item = start; item < stop; item++)
        tile(product, item % panels, item / panels, 1);
}

/* The pair of panels of an item, of those on and above the diagonal: 0 0, 0 1, 1 1, 0 2, ... */
INLINE int64_t pair_of(int64_t item, int64_t *right) {
    for (*right = 0; item > *right; item -= ++*right)
        ;
    return item;
}

/* Adds the tiles from start to stop, of those on and above the diagonal: X'X. */
void add_gram(const struct product *product, int64_t start, int64_t stop) {
    for (int64_t item = start; item < stop; item++) {
        int64_t right, left = pair_of(item, &right);
        tile(product, left, right, 1);
    }
}

/* The sum of X'X times a symmetric total by pair of panels; one beside the diagonal counts for its mirror image too. */
void multiply_gram(const struct product *product, int64_t start, int64_t stop) {
    for (int64_t item = start; item < stop; item++) {
        int64_t right, left = pair_of(item, &right);
        product->found[item] = tile(product, left, right, 0) * (left == right ? 1.0 : 2.0);
    }
}
#endif
