/* fuzz_infer_request: any bytes as a request of Classify or Regress, and as one of MultiInference.
 *
 * What parses is decoded whole and in ranges, which must agree, exactly if its examples are said to be valid; each
 * must be as long as was counted, and lie within the input where there is nothing to merge. */
#include <stdlib.h>
#include <string.h>

#include "infer_request.h"

enum { MOST_EXAMPLES = 512, MOST_BYTES = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool cond)
{
    if (!cond)
        abort();
}

static void use_slice(fs_slice s)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < s.len; i++)
        sum ^= s.data[i];
    volatile uint8_t used = sum; /* reads every byte */
    (void)used;
}

static void use_model(const fs_model_ref *model)
{
    use_slice(model->name);
    use_slice(model->signature);
    use_slice(model->label);
}

static void use_examples(fs_examples examples)
{
    require(examples.count >= 0);
    if (examples.count > MOST_EXAMPLES || examples.bytes > MOST_BYTES)
        return;
    int64_t n = examples.count;
    fs_slice *all = malloc(((size_t)n + 1) * sizeof *all), *part = malloc(((size_t)n + 1) * sizeof *part);
    examples.room = malloc(examples.bytes + 1);
    require(all != NULL && part != NULL && examples.room != NULL);
    bool valid = fs_examples_valid(&examples);
    require((fs_examples_decode(&examples, 0, n, all) == 0) == valid);
    if (valid) {
        uint64_t bytes = 0;
        for (int64_t i = 0; i < n; i++) {
            use_slice(all[i]);
            bytes += all[i].len;
        }
        require(bytes == examples.bytes);
        for (int64_t step = 1; step <= n; step = step * 3 + 1) {
            for (int64_t first = 0; first < n; first += step * 5) {
                int64_t count = n - first < step ? n - first : step;
                require(fs_examples_decode(&examples, first, count, part) == 0);
                require(memcmp(part, all + first, (size_t)count * sizeof *part) == 0);
            }
        }
        require(fs_examples_decode(&examples, n, 1, part) != 0);
    }
    free(examples.room);
    free(part);
    free(all);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fs_slab *slab = fs_slab_new((size_t)1 << 20);
    if (slab == NULL)
        return 0;
    fs_arena arena;
    fs_arena_init(&arena, slab);
    fs_infer_request request;
    if (fs_infer_parse(&arena, data, size, &request) == 0) {
        require(request.n_tasks == 0);
        use_model(&request.model);
        use_examples(request.examples);
    }
    if (fs_multi_parse(&arena, data, size, &request) == 0) {
        require(request.model.present && request.n_tasks <= FS_MAX_TASKS);
        for (uint32_t i = 0; i < request.n_tasks; i++) {
            use_model(&request.tasks[i].model);
            use_slice(request.tasks[i].method);
        }
        use_examples(request.examples);
    }
    fs_arena_clear(&arena);
    fs_slab_release(slab);
    return 0;
}
