/* Threads against csrc/{pool,vocab,pack}.c: one pool, one vocabulary, many callers at once.
 *
 * Each caller looks up and hashes its own column into its own array with the help of the pool that all share,
 * and checks every result. Now and then a pool is made, used and freed beside them.
 *
 * stress_pack [rows] */
#include "pack.h"

#include <pthread.h>

#include "check.h"
#include "hash.h"

enum { CALLERS = 3, HELPERS = 3, TERMS = 5000, ROUND_ROWS = 40000 };

typedef struct field {
    fs_pool *pool;
    fs_vocab *vocab;
    unsigned long rounds;
} field;

typedef struct caller {
    const field *f;
    int64_t from;
} caller;

static void check_round(const fs_pool *pool, const field *f, const int64_t *numbers, int64_t *out)
{
    fs_column column = {(const uint8_t *)numbers, ROUND_ROWS, 1, 8, 8, 8, FS_COLUMN_I64};
    fs_pack_step steps[2] = {0};
    for (int i = 0; i < 2; i++) {
        steps[i].columns = &column;
        steps[i].n_columns = 1;
        steps[i].rows = ROUND_ROWS;
        steps[i].out = (fs_out){(uint8_t *)(out + i), 16, 8, FS_OUT_I64};
    }
    steps[0].op = FS_PACK_LOOKUP;
    steps[0].vocab = f->vocab;
    steps[0].first_id = 1;
    steps[1].op = FS_PACK_CROSS;
    steps[1].hasher.buckets = 1000;
    REQUIRE(fs_pack_run((fs_pool *)pool, steps, 2) == 0);
    unsigned long wrong = 0;
    for (int64_t i = 0; i < ROUND_ROWS; i++) {
        bool known = numbers[i] % 3 == 0 && numbers[i] < 3 * (int64_t)TERMS;
        wrong += out[2 * i] != (known ? numbers[i] / 3 + 1 : 0);
        wrong += out[2 * i + 1] != (int64_t)(fs_fingerprint_join(0, (uint64_t)numbers[i]) % 1000);
    }
    CHECK_EQ(wrong, 0);
}

static void *call(void *arg)
{
    const caller *c = arg;
    int64_t *numbers = malloc(ROUND_ROWS * sizeof *numbers);
    int64_t *out = malloc(2 * ROUND_ROWS * sizeof *out);
    REQUIRE(numbers != NULL && out != NULL);
    for (unsigned long round = 0; round < c->f->rounds; round++) {
        for (int64_t i = 0; i < ROUND_ROWS; i++)
            numbers[i] = (i + c->from * 7 + (int64_t)round) % (4 * TERMS);
        check_round(c->f->pool, c->f, numbers, out);
        if (round % 4 == 0) {
            fs_pool *own = fs_pool_new(1);
            REQUIRE(own != NULL);
            check_round(own, c->f, numbers, out);
            fs_pool_free(own);
        }
    }
    free(numbers);
    free(out);
    return NULL;
}

int main(int argc, char **argv)
{
    unsigned long rows = argc > 1 ? strtoul(argv[1], NULL, 10) : 300000;
    int64_t terms[TERMS];
    for (int64_t i = 0; i < TERMS; i++)
        terms[i] = 3 * i;
    fs_column column = {(const uint8_t *)terms, TERMS, 1, 8, 8, 8, FS_COLUMN_I64};
    int64_t repeated;
    field f = {fs_pool_new(HELPERS), fs_vocab_new(&column, &repeated), rows / ROUND_ROWS + 1};
    REQUIRE(f.pool != NULL && f.vocab != NULL);
    pthread_t threads[CALLERS];
    caller callers[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (caller){&f, i};
        REQUIRE(pthread_create(&threads[i], NULL, call, &callers[i]) == 0);
    }
    for (int i = 0; i < CALLERS; i++)
        pthread_join(threads[i], NULL);
    fs_pool_free(f.pool);
    fs_vocab_free(f.vocab);
    return check_done();
}
