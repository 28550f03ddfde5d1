/* priority: a batcher that serves models strictly by weight.
 *
 * While a model of the largest weight has ripe requests, it alone runs; of equal weights the request that has
 * waited longest goes first. FastServe's own policy shares the executors instead: a model of weight 2 gets twice
 * the time of one of weight 1, and never all of it. How many rows make a batch stays FastServe's decision. */
#include <fastserve/plugin.h>

static int pick(const fs_queue_view *queues, int n, int64_t now_us, int64_t *wait_until_us)
{
    int best = -1;
    *wait_until_us = INT64_MAX;
    for (int i = 0; i < n; i++) {
        const fs_queue_view *queue = &queues[i];
        if (queue->ready_us > now_us) {
            if (queue->ready_us < *wait_until_us)
                *wait_until_us = queue->ready_us;
            continue;
        }
        if (best < 0 || queue->weight > queues[best].weight ||
            (queue->weight == queues[best].weight && queue->oldest_us < queues[best].oldest_us))
            best = i;
    }
    return best;
}

const fs_plugin *fastserve_plugin(void)
{
    static const fs_plugin plugin = {
        .abi = FS_PLUGIN_ABI,
        .kind = FS_PLUGIN_BATCHER,
        .name = "priority",
        .batcher = {.pick = pick},
    };
    return &plugin;
}
