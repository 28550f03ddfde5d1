/* fuzz_infer_reply: any bytes as a ClassificationResponse and as a RegressionResponse.
 *
 * What the first pass counts the second must fill, exactly, and labels must lie within the input. */
#include <stdlib.h>
#include <string.h>

#include "infer_reply.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool cond)
{
    if (!cond)
        abort();
}

static void classes(fs_slice reply)
{
    int64_t examples, found;
    if (!fs_classes_count(reply, &examples, &found))
        return;
    int64_t *counts = malloc(((size_t)examples + 1) * sizeof *counts);
    fs_class *all = malloc(((size_t)found + 1) * sizeof *all);
    require(counts != NULL && all != NULL);
    memset(all, 0xa5, ((size_t)found + 1) * sizeof *all);
    fs_classes_read(reply, counts, all);
    int64_t sum = 0;
    for (int64_t i = 0; i < examples; i++)
        sum += counts[i];
    require(sum == found);
    for (int64_t i = 0; i < found; i++)
        if (all[i].label.len > 0)
            require(all[i].label.data >= reply.data &&
                    all[i].label.data + all[i].label.len <= reply.data + reply.len);
    free(all);
    free(counts);
}

static void regressions(fs_slice reply)
{
    int64_t n = fs_regressions_count(reply);
    if (n < 0)
        return;
    float *values = malloc(((size_t)n + 1) * sizeof *values);
    require(values != NULL);
    fs_regressions_read(reply, values);
    free(values);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    classes((fs_slice){data, size});
    regressions((fs_slice){data, size});
    return 0;
}
