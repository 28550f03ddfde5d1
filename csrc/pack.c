/* pack: see pack.h.
 *
 * A piece of work is a stretch of one step's rows. Every op is one loop over values, with the kind of column
 * looked at for each: the branch is always the same one, and the hash or the search takes most of the time.
 * The dense op, where it does not, has a loop for each kind. */
#include "pack.h"

#include <math.h>
#include <stdlib.h>

#include "hash.h"

/* About 50 us of work, so that waking a helper pays and a stretch's results stay in the cache. */
#define PIECE_ITEMS 4096

/* Fewer are done before a helper on a busy machine has begun. */
#define ALONE_ITEMS (8 * PIECE_ITEMS)

/* Up to so many are compared with each value. */
#define FEW_BOUNDARIES 48

/* Longest decimal text of an integer. */
#define DIGITS 20

/* Rows of a block of the dense op: what it reads and writes is to stay in the first two caches. */
#define BLOCK_BYTES (128 * 1024)
#define BLOCK_ROWS 256

typedef struct stretch {
    const fs_pack_step *step;
    int64_t first, end;
    int64_t refused_row;
} stretch;

static void put_int(const fs_out *out, int64_t row, int64_t item, int64_t value)
{
    uint8_t *at = out->data + row * out->row_stride + item * out->item_stride;
    if (out->kind == FS_OUT_I64) {
        memcpy(at, &value, sizeof value);
    } else {
        int32_t low = (int32_t)value;
        memcpy(at, &low, sizeof low);
    }
}

/* ---- text ---------------------------------------------------------------------------------- */

/* tf.as_string of an integer or bool, in `digits`. */
static fs_slice decimal(enum fs_column_kind kind, const uint8_t *at, uint8_t digits[DIGITS])
{
    int64_t value = fs_column_int(kind, at);
    if (kind == FS_COLUMN_BOOL)
        return value ? (fs_slice){(const uint8_t *)"true", 4} : (fs_slice){(const uint8_t *)"false", 5};
    bool negative = value < 0 && kind != FS_COLUMN_U64;
    uint64_t left = negative ? 0 - (uint64_t)value : (uint64_t)value;
    uint8_t *p = digits + DIGITS;
    do {
        *--p = (uint8_t)('0' + left % 10);
        left /= 10;
    } while (left != 0);
    if (negative)
        *--p = '-';
    return (fs_slice){p, (size_t)(digits + DIGITS - p)};
}

/* An item as text, wherever it lies. `room` takes DIGITS or the column's scratch. */
static fs_slice text_of(const fs_column *column, const uint8_t *at, uint8_t *room)
{
    return fs_column_is_text(column) ? fs_column_text(column, at, room) : decimal(column->kind, at, room);
}

static bool same(fs_slice a, fs_slice b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

static int64_t bucket(const fs_hasher *hasher, fs_slice text)
{
    uint64_t hash = hasher->strong ? fs_siphash(hasher->key, text) : fs_fingerprint(text);
    return (int64_t)(hash % hasher->buckets);
}

/* ---- the ops ------------------------------------------------------------------------------- */

static void fingerprint(const stretch *s, uint8_t *room)
{
    const fs_column *column = s->step->columns;
    for (int64_t row = s->first; row < s->end; row++)
        for (int64_t i = 0; i < column->width; i++) {
            fs_slice text = text_of(column, fs_column_at(column, row, i), room);
            put_int(&s->step->out, row, i, (int64_t)fs_fingerprint(text));
        }
}

static void hash(const stretch *s, uint8_t *room)
{
    const fs_pack_step *step = s->step;
    const fs_column *column = step->columns;
    for (int64_t row = s->first; row < s->end; row++)
        for (int64_t i = 0; i < column->width; i++) {
            fs_slice text = text_of(column, fs_column_at(column, row, i), room);
            int64_t id = bucket(&step->hasher, text);
            if (step->has_mask) /* Keras keeps bucket 0 for it */
                id = same(text, step->mask) ? 0 : id + 1;
            put_int(&step->out, row, i, id);
        }
}

static void cross(const stretch *s, uint8_t *room)
{
    const fs_pack_step *step = s->step;
    for (int64_t row = s->first; row < s->end; row++) {
        uint64_t joined = step->hasher.key[0];
        for (uint32_t c = 0; c < step->n_columns; c++) {
            const fs_column *column = &step->columns[c];
            const uint8_t *at = fs_column_at(column, row, 0);
            uint64_t part = fs_column_is_text(column) ? fs_fingerprint(fs_column_text(column, at, room))
                                                      : (uint64_t)fs_column_int(column->kind, at);
            joined = fs_fingerprint_join(joined, part);
        }
        put_int(&step->out, row, 0, (int64_t)(joined % step->hasher.buckets));
    }
}

/* How many boundaries do not lie above the value, which is all of them for NaN. Where the value is cannot be
 * foreseen, so both ways do without branches: of few boundaries all are compared, many are halved. */
static int64_t rank_float(const float *boundaries, int64_t n, float value)
{
    int32_t count = 0;
    for (int32_t i = 0; i < (int32_t)n; i++)
        count += !(value < boundaries[i]);
    return count;
}

static int64_t rank(const float *boundaries, int64_t n, double value)
{
    const float *from = boundaries;
    while (n > 1) {
        int64_t half = n / 2;
        from += half * !(value < (double)from[half - 1]);
        n -= half;
    }
    return from - boundaries + (n == 1 && !(value < (double)*from));
}

static float as_float(enum fs_column_kind kind, const uint8_t *at)
{
    if (kind == FS_COLUMN_F32)
        return (float)fs_column_real(kind, at);
    int64_t value = fs_column_int(kind, at);
    return kind == FS_COLUMN_U64 ? (float)(uint64_t)value : (float)value; /* rounded once */
}

static void bucketize(const stretch *s)
{
    const fs_pack_step *step = s->step;
    const fs_column *column = step->columns;
    const float *boundaries = step->boundaries;
    int64_t n = step->n_boundaries;
    for (int64_t row = s->first; row < s->end; row++)
        for (int64_t i = 0; i < column->width; i++) {
            const uint8_t *at = fs_column_at(column, row, i);
            int64_t place;
            /* Boundaries are float, and integers are taken as such, as in TensorFlow's kernel. */
            if (column->kind == FS_COLUMN_F64)
                place = rank(boundaries, n, fs_column_real(column->kind, at));
            else if (n <= FEW_BOUNDARIES)
                place = rank_float(boundaries, n, as_float(column->kind, at));
            else
                place = rank(boundaries, n, (double)as_float(column->kind, at));
            put_int(&step->out, row, i, place);
        }
}

static int64_t unknown(const fs_pack_step *step, fs_slice text, uint64_t fingerprinted)
{
    const fs_hasher *hasher = &step->hasher;
    if (hasher->buckets <= 1)
        return step->first_unknown;
    uint64_t hash = hasher->strong ? fs_siphash(hasher->key, text) : fingerprinted;
    return step->first_unknown + (int64_t)(hash % hasher->buckets);
}

static void lookup_text(stretch *s, uint8_t *room)
{
    const fs_pack_step *step = s->step;
    const fs_column *column = step->columns;
    for (int64_t row = s->first; row < s->end; row++)
        for (int64_t i = 0; i < column->width; i++) {
            fs_slice text = fs_column_text(column, fs_column_at(column, row, i), room);
            uint64_t fingerprinted = fs_fingerprint(text);
            int64_t place = fs_vocab_find_text(step->vocab, text, fingerprinted);
            int64_t id;
            if (step->has_mask && same(text, step->mask))
                id = 0;
            else if (place >= 0)
                id = step->first_id + place;
            else if (!step->refuse_unknown)
                id = unknown(step, text, fingerprinted);
            else {
                s->refused_row = row;
                return;
            }
            put_int(&step->out, row, i, id);
        }
}

static int64_t unknown_int(const fs_pack_step *step, const fs_column *column, const uint8_t *at,
                           uint8_t *room)
{
    int64_t n = (int64_t)step->hasher.buckets;
    if (n <= 1)
        return step->first_unknown;
    if (step->unknown_mod) {
        int64_t left = fs_column_int(column->kind, at) % n;
        return step->first_unknown + (left < 0 ? left + n : left);
    }
    fs_slice text = decimal(column->kind, at, room);
    return unknown(step, text, fs_fingerprint(text));
}

static void lookup_int(stretch *s, uint8_t *room)
{
    const fs_pack_step *step = s->step;
    const fs_column *column = step->columns;
    for (int64_t row = s->first; row < s->end; row++)
        for (int64_t i = 0; i < column->width; i++) {
            const uint8_t *at = fs_column_at(column, row, i);
            int64_t place = fs_vocab_find_int(step->vocab, fs_column_int(column->kind, at));
            int64_t id;
            if (step->has_mask && same(decimal(column->kind, at, room), step->mask))
                id = 0;
            else if (place >= 0)
                id = step->first_id + place;
            else if (!step->refuse_unknown)
                id = unknown_int(step, column, at, room);
            else {
                s->refused_row = row;
                return;
            }
            put_int(&step->out, row, i, id);
        }
}

/* ---- dense --------------------------------------------------------------------------------- */

/* The loop of one kind of number. */
#define GATHER(type)                                   \
    for (int64_t r = 0; r < n; r++) {                  \
        type value;                                    \
        memcpy(&value, at + r * stride, sizeof value); \
        values[r] = (double)value;                     \
    }                                                  \
    break

/* One item of `n` rows from `first` on, as doubles. */
static void gather(const fs_column *column, int64_t first, int64_t item, int64_t n, double *values)
{
    const uint8_t *at = fs_column_at(column, first, item);
    int64_t stride = column->row_stride;
    switch (column->kind) {
    case FS_COLUMN_F32:
        GATHER(float);
    case FS_COLUMN_F64:
        GATHER(double);
    case FS_COLUMN_I64:
        GATHER(int64_t);
    case FS_COLUMN_I32:
        GATHER(int32_t);
    default:
        for (int64_t r = 0; r < n; r++)
            values[r] = fs_column_real(column->kind, at + r * stride);
    }
}

/* Numbers that are computed with at once: what every machine's vectors hold. */
enum { LANES = 2 };
typedef double reals __attribute__((vector_size(LANES * sizeof(double))));
typedef uint64_t words __attribute__((vector_size(LANES * sizeof(uint64_t))));

/* `yes` in lanes where the mask is all ones, `no` where it is 0. */
static inline words pick(words mask, words yes, words no)
{
    return (yes & mask) | (no & ~mask);
}

/* log1p to twelve digits, which floats do not tell from the exact one, without calls and branches. log(y) is
 * k log(2) + log(m), y = 2^k m, where m lies around 1 and log(m) is 2 atanh((m - 1) / (m + 1)). Near 0, where
 * 1 + x loses x's digits, it is the beginning of its own series. */
static reals log1p_of(reals x)
{
    const uint64_t root = UINT64_C(0x3fe6a09e667f3bcd); /* of 1/2, where m begins */
    const uint64_t one = UINT64_C(0x3ff0000000000000);
    const words minus_infinity = {UINT64_C(0xfff0000000000000), UINT64_C(0xfff0000000000000)};
    const words nan = {UINT64_C(0x7ff8000000000000), UINT64_C(0x7ff8000000000000)};

    reals y = 1 + x;
    words shifted = (words)y + (one - root);
    reals k = (reals)(shifted >> 52 | UINT64_C(0x4330000000000000)) - (0x1p52 + 1023);
    reals m = (reals)((shifted & UINT64_C(0x000fffffffffffff)) + root);
    reals s = (m - 1) / (m + 1), z = s * s;
    reals tail = z * (1.0 / 7 + z * (1.0 / 9 + z * (1.0 / 11 + z * (1.0 / 13))));
    reals far = k * 0x1.62e42fefa39efp-1 + 2 * s * (1 + z * (1.0 / 3 + z * (1.0 / 5 + tail)));
    reals near = x - x * x * (0.5 - x * (1.0 / 3));
    words log = pick((words)(x < 1e-4) & (words)(x > -1e-4), (words)near, (words)far);
    log = pick((words)(y == (reals)minus_infinity * -1), (words)y, log);
    log = pick((words)(y == 0), minus_infinity, log);
    return (reals)pick((words)(y >= 0), log, nan); /* not of NaN either */
}

/* `values` has room for whole LANES. */
static void log1p_all(double *values, int64_t n)
{
    for (int64_t r = n; r % LANES != 0; r++)
        values[r] = 0;
    for (int64_t r = 0; r < n; r += LANES) {
        reals x;
        memcpy(&x, values + r, sizeof x);
        x = log1p_of(x);
        memcpy(values + r, &x, sizeof x);
    }
}

static void refine(const fs_dense *dense, bool floats, double *values, int64_t n)
{
    double fill = dense->fill, mean = dense->mean, scale = dense->scale;
    for (int64_t r = 0; r < n; r++)
        values[r] = isnan(values[r]) ? fill : values[r];
    if (dense->log1p && floats)
        log1p_all(values, n);
    else if (dense->log1p)
        for (int64_t r = 0; r < n; r++)
            values[r] = log1p(values[r]);
    for (int64_t r = 0; r < n; r++)
        values[r] = (values[r] - mean) * scale;
}

static void scatter(const fs_out *out, int64_t first, int64_t item, int64_t n, const double *values)
{
    uint8_t *at = out->data + first * out->row_stride + item * out->item_stride;
    if (out->kind == FS_OUT_F64) {
        for (int64_t r = 0; r < n; r++)
            memcpy(at + r * out->row_stride, &values[r], sizeof values[r]);
        return;
    }
    for (int64_t r = 0; r < n; r++) {
        float value = (float)values[r];
        memcpy(at + r * out->row_stride, &value, sizeof value);
    }
}

/* Rows of floats that only have their NaNs filled go over as they are. */
static bool copy_floats(const fs_pack_step *step, const fs_column *column, int64_t item, int64_t first,
                        int64_t n)
{
    const fs_out *out = &step->out;
    if (step->dense != NULL || column->kind != FS_COLUMN_F32 || out->kind != FS_OUT_F32)
        return false;
    if (column->width < 4 || column->item_stride != (int64_t)sizeof(float) ||
        out->item_stride != (int64_t)sizeof(float))
        return false;
    for (int64_t r = first; r < first + n; r++) {
        const uint8_t *from = fs_column_at(column, r, 0);
        uint8_t *to = out->data + r * out->row_stride + item * out->item_stride;
        for (int64_t i = 0; i < column->width; i++) {
            float value;
            memcpy(&value, from + i * (int64_t)sizeof value, sizeof value);
            value = isnan(value) ? 0 : value;
            memcpy(to + i * (int64_t)sizeof value, &value, sizeof value);
        }
    }
    return true;
}

static const fs_dense plain = {.fill = 0, .mean = 0, .scale = 1, .log1p = false};

static void dense_block(const fs_pack_step *step, int64_t first, int64_t n)
{
    double values[BLOCK_ROWS];
    bool floats = step->out.kind == FS_OUT_F32;
    int64_t item = 0;
    for (uint32_t c = 0; c < step->n_columns; c++) {
        const fs_column *column = &step->columns[c];
        if (copy_floats(step, column, item, first, n)) {
            item += column->width;
            continue;
        }
        for (int64_t i = 0; i < column->width; i++, item++) {
            gather(column, first, i, n, values);
            refine(step->dense != NULL ? &step->dense[item] : &plain, floats, values, n);
            scatter(&step->out, first, item, n, values);
        }
    }
}

static void integers_block(const fs_pack_step *step, int64_t first, int64_t n)
{
    int64_t item = 0;
    for (uint32_t c = 0; c < step->n_columns; c++) {
        const fs_column *column = &step->columns[c];
        for (int64_t i = 0; i < column->width; i++, item++)
            for (int64_t r = first; r < first + n; r++)
                put_int(&step->out, r, item, fs_column_int(column->kind, fs_column_at(column, r, i)));
    }
}

static int64_t width_of(const fs_pack_step *step)
{
    if (step->op == FS_PACK_CROSS)
        return step->n_columns;
    int64_t width = 0;
    for (uint32_t c = 0; c < step->n_columns; c++)
        width += step->columns[c].width;
    return width;
}

static void dense(const stretch *s)
{
    bool integers = s->step->out.kind == FS_OUT_I32 || s->step->out.kind == FS_OUT_I64;
    int64_t fit = BLOCK_BYTES / (8 * (width_of(s->step) + 1));
    int64_t block = fit < 8 ? 8 : fit > BLOCK_ROWS ? BLOCK_ROWS : fit;
    for (int64_t row = s->first; row < s->end; row += block) {
        int64_t n = s->end - row < block ? s->end - row : block;
        if (integers)
            integers_block(s->step, row, n);
        else
            dense_block(s->step, row, n);
    }
}

/* ---- sharing out --------------------------------------------------------------------------- */

typedef struct work {
    stretch *stretches;
    uint8_t *scratch;
    size_t scratch_bytes; /* of one slot */
} work;

static void run_stretch(void *arg, uint64_t index, uint32_t slot)
{
    work *w = arg;
    stretch *s = &w->stretches[index];
    uint8_t digits[DIGITS];
    uint8_t *room = w->scratch_bytes > DIGITS ? w->scratch + slot * w->scratch_bytes : digits;
    switch (s->step->op) {
    case FS_PACK_FINGERPRINT:
        fingerprint(s, room);
        break;
    case FS_PACK_HASH:
        hash(s, room);
        break;
    case FS_PACK_CROSS:
        cross(s, room);
        break;
    case FS_PACK_BUCKETIZE:
        bucketize(s);
        break;
    case FS_PACK_LOOKUP:
        if (fs_column_is_text(s->step->columns))
            lookup_text(s, room);
        else
            lookup_int(s, room);
        break;
    case FS_PACK_DENSE:
        dense(s);
        break;
    }
}

/* Rows of one stretch; the dense op does several items in the time of another's one. */
static int64_t stretch_rows(const fs_pack_step *step)
{
    int64_t items = step->op == FS_PACK_DENSE ? 8 * PIECE_ITEMS : PIECE_ITEMS;
    int64_t rows = items / (width_of(step) > 0 ? width_of(step) : 1);
    return rows > 16 ? rows : 16;
}

static size_t scratch_of(const fs_pack_step *step)
{
    size_t most = 0;
    for (uint32_t c = 0; c < step->n_columns; c++) {
        size_t bytes = fs_column_scratch(&step->columns[c]);
        most = bytes > most ? bytes : most;
    }
    return most;
}

int fs_pack_run(fs_pool *pool, fs_pack_step *steps, uint32_t n_steps)
{
    uint64_t n = 0;
    work w = {NULL, NULL, 0};
    for (uint32_t i = 0; i < n_steps; i++) {
        int64_t rows = stretch_rows(&steps[i]);
        n += (uint64_t)((steps[i].rows + rows - 1) / rows);
        size_t bytes = scratch_of(&steps[i]);
        w.scratch_bytes = bytes > w.scratch_bytes ? bytes : w.scratch_bytes;
        steps[i].refused_row = -1;
    }
    /* A cache line between slots. */
    w.scratch_bytes = w.scratch_bytes > DIGITS ? (w.scratch_bytes + 127) / 64 * 64 : 0;
    w.stretches = malloc((n + 1) * sizeof *w.stretches);
    if (w.scratch_bytes > 0)
        w.scratch = malloc(fs_pool_slots(pool) * w.scratch_bytes);
    if (w.stretches == NULL || (w.scratch_bytes > 0 && w.scratch == NULL)) {
        free(w.stretches);
        free(w.scratch);
        return -FS_RESOURCE_EXHAUSTED;
    }

    uint64_t at = 0;
    uint64_t items = 0;
    for (uint32_t i = 0; i < n_steps; i++) {
        int64_t rows = stretch_rows(&steps[i]);
        for (int64_t row = 0; row < steps[i].rows; row += rows) {
            int64_t end = steps[i].rows - row < rows ? steps[i].rows : row + rows;
            w.stretches[at++] = (stretch){&steps[i], row, end, -1};
        }
        items += (uint64_t)(steps[i].rows * width_of(&steps[i]));
    }
    fs_pool_run(items > ALONE_ITEMS ? pool : NULL, n, run_stretch, &w);

    for (uint64_t i = 0; i < n; i++) {
        fs_pack_step *step = &steps[w.stretches[i].step - steps];
        if (w.stretches[i].refused_row >= 0 && step->refused_row < 0)
            step->refused_row = w.stretches[i].refused_row;
    }
    free(w.stretches);
    free(w.scratch);
    return 0;
}
