/* The search for scales: every candidate is tried on a group while the group is in registers or near them. */
#include "formats/grid.h"

struct search { /* mirrored by search_in_c.py */
    struct grid grid;
    int64_t width, total, per_matrix, groups, candidates, refits;
    const float *values;  /* [total, width] */
    const float *weights; /* [matrices, groups, width], or none */
    const float *scales;  /* [candidates, total] */
    const float *zeros;   /* [candidates, total], or none */
    int32_t *chosen;      /* [total] */
    float *moved;         /* [total] */
    float least_scale, most_scale;
};

INLINE float error_of(const float *x, const float *weight, int64_t width, float scale, float zero,
                      enum kind kind, const struct grid *grid, int weighted) {
    /* Which of two elements a tie goes to changes no error, so a product with the inverse will do. Where that overflows,
       squares of what is rounded would vanish in fp32: the first candidate is as good as any. */
    const float inverse = 1.0f / scale;
    float error = 0.0f;
#pragma omp simd reduction(+ : error)
    for (int64_t at = 0; at < width; at++) {
        float difference = nearest(x[at] * inverse, zero, kind, grid) * scale - x[at];
        float square = difference * difference;
        error += weighted ? square * weight[at] : square;
    }
    return error;
}

/* What the elements of a group count; all rows of a matrix share that. */
INLINE const float *weight_of(const struct search *search, int64_t group, int weighted) {
    int64_t place = group / search->per_matrix * search->groups + group % search->groups;
    return weighted ? search->weights + place * search->width : 0;
}

INLINE void choose(const struct search *search, int64_t start, int64_t stop, enum kind kind, int weighted) {
    const struct grid grid = search->grid;
    for (int64_t group = start; group < stop; group++) {
        const float *x = search->values + group * search->width, *weight = weight_of(search, group, weighted);
        float least = __builtin_inff();
        int32_t best = 0;
        for (int64_t candidate = 0; candidate < search->candidates; candidate++) {
            int64_t at = candidate * search->total + group;
            float scale = search->scales[at], zero = search->zeros ? search->zeros[at] : 0.0f;
            float error = error_of(x, weight, search->width, scale, zero, kind, &grid, weighted);
            if (error < least) {
                least = error;
                best = (int32_t)candidate;
            }
        }
        search->chosen[group] = best;
    }
}

/* Moves each group's bf16 scale to the one of least squared error for the codes that it gives, while that is better. */
INLINE void move(const struct search *search, int64_t start, int64_t stop, enum kind kind, int weighted) {
    const struct grid grid = search->grid;
    for (int64_t group = start; group < stop; group++) {
        const float *x = search->values + group * search->width, *weight = weight_of(search, group, weighted);
        const float zero = search->zeros ? search->zeros[group] : 0.0f;
        float scale = search->scales[group];
        float least = error_of(x, weight, search->width, scale, zero, kind, &grid, weighted);
        for (int64_t refit = 0; refit < search->refits; refit++) {
            const float inverse = 1.0f / scale;
            float mixed = 0.0f, square = 0.0f;
#pragma omp simd reduction(+ : mixed, square)
            for (int64_t at = 0; at < search->width; at++) {
                float element = nearest(x[at] * inverse, zero, kind, &grid);
                float counts = weighted ? element * weight[at] : element;
                mixed += x[at] * counts;
                square += element * counts;
            }
            float ratio = mixed / square;
            if (!__builtin_isfinite(ratio))
                break;
            float tried = to_bf16(ratio, search->least_scale, search->most_scale);
            float error = error_of(x, weight, search->width, tried, zero, kind, &grid, weighted);
            if (!(error < least))
                break;
            least = error;
            scale = tried;
        }
        search->moved[group] = scale;
    }
}

#define CASE(DOES, KIND)                              \
    if (search->grid.kind == KIND && search->weights) \
        DOES(search, start, stop, KIND, 1);           \
    else if (search->grid.kind == KIND)               \
    DOES(search, start, stop, KIND, 0)

/* The candidate of least squared error for each of the groups from start to stop; the first of equals. */
void best_candidates(const struct search *search, int64_t start, int64_t stop) {
    CASE(choose, INTEGER);
    CASE(choose, FLOATING);
    CASE(choose, CODEBOOK);
}

/* Better scales than the given ones for the groups from start to stop. */
void refitted(const struct search *search, int64_t start, int64_t stop) {
    CASE(move, INTEGER);
    CASE(move, FLOATING);
    CASE(move, CODEBOOK);
}
