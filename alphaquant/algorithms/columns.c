/* The walk of a tile: some rows of one matrix go through all its columns while their steps stay in the cache. */
#include "algorithms/columns.h"

struct walk { /* mirrored by columns_in_c.py */
    struct grid grid;
    int64_t rows, columns;
    const float *felt;    /* [matrices, columns, columns]: what a column feels of those before it */
    const float *inverse; /* [matrices, columns] */
    const int64_t *group; /* [matrices, columns]: the group that a column belongs to */
    /* [matrices, groups, rows], then [matrices, columns, rows], with so many elements from one matrix to the next;
       zero and before may be none */
    const float *scale, *zero;
    float *local;
    const float *before;
    float *values, *steps;
    int64_t scale_stride, zero_stride, local_stride, before_stride, values_stride, steps_stride;
};

INLINE void walk_rows(const struct walk *walk, int64_t matrix, int64_t first, enum kind kind, int asymmetric,
                      int moving) {
    const struct grid grid = walk->grid;
    const int64_t columns = walk->columns, left = walk->rows - first, width = left < ROWS ? left : ROWS;
    const float *felt = walk->felt + matrix * columns * columns, *inverse = walk->inverse + matrix * columns;
    const int64_t *group = walk->group + matrix * columns;
    const float *scale = walk->scale + matrix * walk->scale_stride + first;
    const float *zero = asymmetric ? walk->zero + matrix * walk->zero_stride + first : 0;
    const float *before = moving ? walk->before + matrix * walk->before_stride + first : 0;
    float *local = walk->local + matrix * walk->local_stride + first;
    float *values = walk->values + matrix * walk->values_stride + first;
    float *steps = walk->steps + matrix * walk->steps_stride + first;
    line taken[TILE], here = {0}, unit, shift = {0}, stood = {0}, found;
    for (int row = 0; row < ROWS; row++)
        unit[row] = 1.0f;
    for (int64_t column = 0, at = 0; column < columns; column++, at += walk->rows) {
        copy(here, local + at, width);
        copy(unit, scale + group[column] * walk->rows, width);
        if (asymmetric)
            copy(shift, zero + group[column] * walk->rows, width);
        if (moving)
            copy(stood, before + at, width);
        take(here, felt + column * columns, taken, column);
        const float factor = inverse[column];
        for (int row = 0; row < ROWS; row++) {
            float wanted = moving ? stood[row] + here[row] * factor : here[row];
            found[row] = nearest(wanted / unit[row], shift[row], kind, &grid) * unit[row];
            taken[column][row] = moving ? found[row] - stood[row] : (here[row] - found[row]) * factor;
        }
        copy(local + at, here, width);
        copy(values + at, found, width);
        copy(steps + at, taken[column], width);
    }
}

INLINE void walk_pieces(const struct walk *walk, int64_t start, int64_t stop, enum kind kind, int asymmetric, int moving) {
    const int64_t pieces = (walk->rows + ROWS - 1) / ROWS;
    for (int64_t piece = start; piece < stop; piece++)
        walk_rows(walk, piece / pieces, piece % pieces * ROWS, kind, asymmetric, moving);
}

#define CASE(KIND, ASYMMETRIC, MOVING)                                                         \
    if (walk->grid.kind == KIND && !walk->zero == !ASYMMETRIC && !walk->before == !MOVING) \
        walk_pieces(walk, start, stop, KIND, ASYMMETRIC, MOVING)

/* Walks the pieces of ROWS rows from start to stop; a matrix begins with a new one. */
void walk_tile(const struct walk *walk, int64_t start, int64_t stop) {
    CASE(INTEGER, 0, 0);
    CASE(INTEGER, 0, 1);
    CASE(INTEGER, 1, 0);
    CASE(INTEGER, 1, 1);
    CASE(FLOATING, 0, 0);
    CASE(FLOATING, 0, 1);
    CASE(CODEBOOK, 0, 0);
    CASE(CODEBOOK, 0, 1);
}
