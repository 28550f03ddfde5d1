/* pack: columns of features to what a model takes: hashed, crossed, bucketised, looked up, dense.
 *
 * Called by the client's bindings, on any thread, without the GIL. Each step reads columns and writes one
 * array; steps and rows are independent of each other, so a pool's threads share them out. What an op does to
 * a value is TensorFlow's definition of the op that it is named after. */
#ifndef FS_PACK_H
#define FS_PACK_H

#include "column.h"
#include "pool.h"
#include "vocab.h"

enum fs_pack_op {
    FS_PACK_FINGERPRINT, /* Fingerprint64; integers as decimal text, as in all hashes but CROSS */
    FS_PACK_HASH,        /* tf.strings.to_hash_bucket_fast or _strong */
    FS_PACK_CROSS,       /* tf.sparse.cross_hashed of columns of width 1 */
    FS_PACK_BUCKETIZE,   /* tf.raw_ops.Bucketize */
    FS_PACK_LOOKUP,      /* a vocabulary's ids */
    FS_PACK_DENSE,       /* numbers side by side */
};

enum fs_out_kind { FS_OUT_I32, FS_OUT_I64, FS_OUT_F32, FS_OUT_F64 };

/* Where results go: item j of row r lies at data + r * row_stride + j * item_stride (bytes, any sign). */
typedef struct fs_out {
    uint8_t *data;
    int64_t row_stride;
    int64_t item_stride;
    enum fs_out_kind kind;
} fs_out;

/* A hash function and how many results it may have. */
typedef struct fs_hasher {
    bool strong;     /* SipHash with `key`; else Fingerprint64 */
    uint64_t key[2];
    uint64_t buckets;
} fs_hasher;

/* What becomes of one column of the dense result: (log1p(x) - mean) * scale, where x is `fill` if it was NaN.
 * In double precision; log1p to twelve digits where the result is float. */
typedef struct fs_dense {
    double fill, mean, scale;
    bool log1p;
} fs_dense;

typedef struct fs_pack_step {
    enum fs_pack_op op;
    const fs_column *columns; /* one, but for CROSS and DENSE */
    uint32_t n_columns;
    int64_t rows;
    fs_out out;               /* I32 or I64, but for DENSE; integers of DENSE are not changed but in size */

    fs_hasher hasher;         /* HASH, CROSS (key[0] only); LOOKUP: of unknown terms */
    bool has_mask;            /* HASH and LOOKUP: `mask` (a decimal text of an integer) gives 0 */
    fs_slice mask;

    const float *boundaries;  /* BUCKETIZE: ascending */
    int64_t n_boundaries;

    const fs_vocab *vocab;    /* LOOKUP */
    int64_t first_id;         /* of terms */
    int64_t first_unknown;    /* an unknown term gets this, plus its hash where hasher.buckets is not 0 */
    bool unknown_mod;         /* that hash is an integer's own value, modulo the buckets as Python takes it */
    bool refuse_unknown;

    const fs_dense *dense;    /* DENSE: one for each item of a row of the result; NULL: only 0 for NaN */

    int64_t refused_row;      /* result: the first row with a term that is refused, or -1 */
} fs_pack_step;

/* Runs all steps, with the pool's help where there is enough to do. 0; -FS_RESOURCE_EXHAUSTED. Outputs must
 * not overlap each other or a column. */
int fs_pack_run(fs_pool *pool, fs_pack_step *steps, uint32_t n_steps);

#endif
