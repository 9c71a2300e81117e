/* A block of columns on its way down: scales are refitted and codes moved while some rows of it stay in the cache. */
#include "algorithms/columns.h"

enum scales { BF16, E4M3, E8M0 };

struct descent { /* mirrored by descent_in_c.py */
    struct grid grid, scale_grid; /* of the elements, and of E4M3 scales */
    int64_t scales, rows, columns, width; /* the type of scales; columns of a group */
    int64_t refits, moves;                /* whether scales are refitted, and codes moved */
    float least_scale, most_scale;
    const float *felt;    /* [matrices, columns, columns], symmetric */
    const float *inverse; /* [matrices, columns] */
    const float *factor;  /* [matrices]: what each scale is multiplied by */
    const float *slope;   /* [matrices, columns, rows] */
    /* [matrices, groups, rows], then [matrices, columns, rows], with so many elements from one matrix to the next;
       there may be no zero points */
    float *scale;
    const float *zero;
    float *values, *left;
    int64_t scale_stride, zero_stride, values_stride, left_stride;
};

/* The storable scale that lies nearest; bf16 ones keep the sign. */
INLINE float nearest_scale(float raw, const struct descent *descent, enum scales scales) {
    const float least = descent->least_scale, most = descent->most_scale;
    if (scales == BF16)
        return to_bf16(raw, least, most);
    raw = raw < 0x1p-126f ? 0x1p-126f : raw;
    if (scales == E4M3)
        return clamp(nearest(raw, 0.0f, FLOATING, &descent->scale_grid), least, most);
    /* half a fraction on top: between two powers of two the middle is at 1.5 */
    int32_t exponent = (as_bits(raw) + (1 << 22)) >> 23;
    return clamp(as_float((exponent > 254 ? 254 : exponent) << 23), least, most);
}

/* Moves the scale of a group to its minimum; values and slopes of the block's columns follow. */
INLINE void refit(const struct descent *descent, line *now, line *slope, int64_t first, int64_t stop, const float *felt,
                  float factor, float *scale, enum scales scales) {
    line elements[TILE], pulls[TILE], rise = {0}, curvature = {0}, change;
    const int64_t columns = descent->columns, width = stop - first;
    for (int64_t at = 0; at < width; at++)
        for (int row = 0; row < ROWS; row++)
            elements[at][row] = now[first + at][row] / (scale[row] * factor);
    for (int64_t at = 0; at < width; at++) {
        float *pull = pulls[at]; /* the other way round: what is taken from nothing */
        memset(pull, 0, sizeof(line));
        take(pull, felt + (first + at) * columns + first, elements, width);
        for (int row = 0; row < ROWS; row++) {
            rise[row] = plus(rise[row], elements[at][row], slope[first + at][row]);
            curvature[row] = plus(curvature[row], elements[at][row], -pull[row]);
        }
    }
    for (int row = 0; row < ROWS; row++) {
        float found = nearest_scale(scale[row] + rise[row] / (curvature[row] * factor), descent, scales);
        found = curvature[row] > 0.0f ? found : scale[row];
        change[row] = (found - scale[row]) * factor;
        scale[row] = found;
    }
    for (int64_t at = 0; at < width; at++)
        for (int row = 0; row < ROWS; row++) {
            now[first + at][row] = elements[at][row] * (scale[row] * factor);
            slope[first + at][row] = plus(slope[first + at][row], pulls[at][row], change[row]);
            elements[at][row] *= change[row];
        }
    for (int64_t column = 0; column < columns; column++)
        if (column < first || column >= stop)
            take(slope[column], felt + column * columns + first, elements, width);
}

INLINE void descend_rows(const struct descent *descent, int64_t matrix, int64_t first, enum kind kind, int asymmetric,
                         enum scales scales) {
    const struct grid grid = descent->grid;
    const int64_t rows = descent->rows, columns = descent->columns, more = rows - first;
    const int64_t width = more < ROWS ? more : ROWS;
    const float *felt = descent->felt + matrix * columns * columns, *inverse = descent->inverse + matrix * columns;
    const float factor = descent->factor[matrix], *slopes = descent->slope + matrix * columns * rows + first;
    float *scale = descent->scale + matrix * descent->scale_stride + first;
    const float *zero = asymmetric ? descent->zero + matrix * descent->zero_stride + first : 0;
    float *values = descent->values + matrix * descent->values_stride + first;
    float *left = descent->left + matrix * descent->left_stride + first;
    line now[TILE], slope[TILE], steps[TILE], unit, shift = {0}, wanted, found;
    for (int row = 0; row < ROWS; row++)
        unit[row] = 1.0f;
    for (int64_t column = 0; column < columns; column++) {
        if (width < ROWS)
            memset(now[column], 0, sizeof(line)), memset(slope[column], 0, sizeof(line));
        copy(now[column], values + column * rows, width);
        copy(slope[column], slopes + column * rows, width);
    }
    for (int64_t start = 0; descent->refits && start < columns; start += descent->width) {
        const int64_t stop = start + descent->width < columns ? start + descent->width : columns;
        float *here = scale + start / descent->width * rows;
        copy(unit, here, width);
        refit(descent, now, slope, start, stop, felt, factor, unit, scales);
        copy(here, unit, width);
    }
    for (int64_t column = 0; descent->moves && column < columns; column++) {
        const int64_t group = column / descent->width * rows;
        copy(unit, scale + group, width);
        if (asymmetric)
            copy(shift, zero + group, width);
        take(slope[column], felt + column * columns, steps, column);
        for (int row = 0; row < ROWS; row++) {
            unit[row] *= factor;
            wanted[row] = now[column][row] + slope[column][row] * inverse[column];
        }
        for (int row = 0; row < ROWS; row++)
            found[row] = nearest(wanted[row] / unit[row], shift[row], kind, &grid) * unit[row];
        for (int row = 0; row < ROWS; row++) {
            steps[column][row] = found[row] - now[column][row];
            now[column][row] = found[row];
        }
    }
    for (int64_t column = 0; column < columns; column++) {
        float *lost = left + column * rows, *value = values + column * rows;
        for (int64_t row = 0; row < width; row++) {
            lost[row] -= now[column][row] - value[row];
            value[row] = now[column][row];
        }
    }
}

INLINE void descend_pieces(const struct descent *descent, int64_t start, int64_t stop, enum kind kind, int asymmetric,
                           enum scales scales) {
    const int64_t pieces = (descent->rows + ROWS - 1) / ROWS;
    for (int64_t piece = start; piece < stop; piece++)
        descend_rows(descent, piece / pieces, piece % pieces * ROWS, kind, asymmetric, scales);
}

#define CASE(KIND, ASYMMETRIC, SCALES)                                                                 \
    if (descent->grid.kind == KIND && !descent->zero == !ASYMMETRIC && descent->scales == SCALES) \
        descend_pieces(descent, start, stop, KIND, ASYMMETRIC, SCALES)

/* Takes the pieces of ROWS rows from start to stop down; a matrix begins with a new one. */
void descend(const struct descent *descent, int64_t start, int64_t stop) {
    CASE(INTEGER, 0, BF16);
    CASE(INTEGER, 1, BF16);
    CASE(FLOATING, 0, BF16);
    CASE(FLOATING, 0, E4M3);
    CASE(FLOATING, 0, E8M0);
    CASE(CODEBOOK, 0, E4M3);
}
