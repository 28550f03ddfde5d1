/* compare: how far two versions' answers to one request are apart.
 *
 * Called by the shadows' thread. Knows PredictResponses, not who gave them. */
#ifndef FS_COMPARE_H
#define FS_COMPARE_H

#include "predict.h"

/* Differences of numbers are relative to what was expected, or to this where that is less. */
#define FS_COMPARE_TINY 1e-6

/* What stands for a difference without a measure: a number against a NaN, or an infinity. */
#define FS_COMPARE_FAR 1e300

typedef struct fs_difference {
    int64_t rows;              /* the first dimension of the largest output; 1 for scalars */
    int64_t different_rows;    /* with an element that differs by more than is allowed, in whatever output */
    uint32_t missing_outputs;  /* that only one of the two has; then every row is different */
    double largest;            /* of any two numbers */
} fs_difference;

/* Compares the outputs of `got` with those of `expected`, both serialized PredictResponses. Numbers may differ by
 * the share `allowed`; two NaNs are alike. Strings, and dtypes without arithmetic here, must be the same. Where
 * dtypes or shapes differ, every row does. 0; -FS_INTERNAL: not PredictResponses; -FS_RESOURCE_EXHAUSTED. */
int fs_compare_replies(fs_slab *slab, fs_slice expected, fs_slice got, double allowed, fs_difference *out);

#endif
