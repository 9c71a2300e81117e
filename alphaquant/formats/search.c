/* The search for scales: every candidate is tried on a group while the group is in registers or near them. */
#include "formats/grid.h"

struct search { /* mirrored by search_in_c.py */
    struct grid grid;
    int64_t width, total, per_matrix, groups, candidates;
    const float *values;  /* [total, width] */
    const float *weights; /* [matrices, groups, width], or none */
    const float *scales;  /* [candidates, total] */
    const float *zeros;   /* [candidates, total], or none */
    int32_t *chosen;      /* [total] */
};

INLINE float error_of(const float *x, const float *weight, int64_t width, float scale, float zero,
                      enum kind kind, const struct grid *grid, int weighted) {
    /* Which of two elements a tie goes to changes no error, so a product with the inverse will do; where that overflows,
       squares vanish, and the first candidate is as good as any. */
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

INLINE void choose(const struct search *search, int64_t start, int64_t stop, enum kind kind, int weighted) {
    const struct grid grid = search->grid;
    for (int64_t group = start; group < stop; group++) {
        const float *x = search->values + group * search->width;
        int64_t place = group / search->per_matrix * search->groups + group % search->groups;
        const float *weight = weighted ? search->weights + place * search->width : x;
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

#define CASE(KIND)                                   \
    case KIND:                                       \
        if (search->weights)                         \
            choose(search, start, stop, KIND, 1);    \
        else                                         \
            choose(search, start, stop, KIND, 0);    \
        break

/* The candidate of least squared error for each of the groups from start to stop; the first of equals. */
void best_candidates(const struct search *search, int64_t start, int64_t stop) {
    switch (search->grid.kind) {
        CASE(INTEGER);
        CASE(FLOATING);
        CASE(CODEBOOK);
    }
}
