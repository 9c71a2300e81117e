/* The rounding rule of grid.py, to the bit, for loops that a compiler turns into vectors. CODES is told by who compiles. */
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum kind { INTEGER, FLOATING, CODEBOOK };

struct grid { /* mirrored by grid_in_c.py */
    int32_t kind;
    float low, high;
    int32_t lowest;   /* bits of the exponent below which the step no longer shrinks */
    int32_t mantissa; /* stored bits of the fraction */
    const float *table; /* CODES elements of a codebook, then the borders between them; infinite where there are fewer */
};

INLINE float as_float(int32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE int32_t as_bits(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* The integer nearest to each |x| below 2^22, ties to even; keeps the sign of zero. */
INLINE float half_even(float x) {
    /* from 1.5 * 2^23 on, fp32 holds integers alone, and its own rounding does the work */
    float whole = (__builtin_fabsf(x) + 12582912.0f) - 12582912.0f;
    return __builtin_copysignf(whole, x);
}

INLINE float clamp(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

/* The nearest bf16 value, with |x| held to bounds that are some. */
INLINE float to_bf16(float x, float least, float most) {
    int32_t bits = as_bits(clamp(__builtin_fabsf(x), least, most));
    return __builtin_copysignf(as_float((bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF), x);
}

/* The element of the grid nearest to x, zero point taken off: fake_quantize between its scales. */
INLINE float nearest(float x, float zero, enum kind kind, const struct grid *grid) {
    if (kind == INTEGER) /* clamped first: the bounds are integers, so this is the same, and what is rounded stays small */
        return half_even(clamp(x, grid->low - zero, grid->high - zero));
    if (kind == FLOATING) {
        x = clamp(x, grid->low, grid->high);
        int32_t exponent = as_bits(x) & 0x7F800000;
        exponent = exponent < grid->lowest ? grid->lowest : exponent;
        int32_t step = exponent - (grid->mantissa << 23);
        /* a power of two: multiplying by its inverse is dividing by it */
        return half_even(x * as_float((254 << 23) - step)) * as_float(step);
    }
    float element = grid->table[0];
    for (int32_t code = 1; code < CODES; code++)
        element = x > grid->table[CODES + code - 1] ? grid->table[code] : element;
    return element;
}
