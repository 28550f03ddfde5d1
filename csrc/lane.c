/* lane: see lane.h. What is posted is a stack that is taken whole and turned around, as in mailbox.c. */
#include "lane.h"

#include <errno.h>
#include <stddef.h>

void fs_lane_init(fs_lane *lane)
{
    atomic_init(&lane->posted, NULL);
    sem_init(&lane->tokens, 0, 0);
    pthread_mutex_init(&lane->mutex, NULL);
    lane->first = lane->last = NULL;
}

void fs_lane_destroy(fs_lane *lane)
{
    sem_destroy(&lane->tokens);
    pthread_mutex_destroy(&lane->mutex);
}

void fs_lane_post(fs_lane *lane, fs_node *node)
{
    fs_node *top = atomic_load_explicit(&lane->posted, memory_order_relaxed);
    do {
        node->next = top;
        /* release: pairs with the acquire exchange in fs_lane_take. */
    } while (!atomic_compare_exchange_weak_explicit(&lane->posted, &top, node, memory_order_release,
                                                    memory_order_relaxed));
    sem_post(&lane->tokens);
}

/* Appends what was posted since the last look. Under the mutex. */
static void collect(fs_lane *lane)
{
    /* acquire: pairs with the release push. */
    fs_node *node = atomic_exchange_explicit(&lane->posted, NULL, memory_order_acquire);
    fs_node *newest = node, *oldest = NULL;
    while (node != NULL) {
        fs_node *next = node->next;
        node->next = oldest;
        oldest = node;
        node = next;
    }
    if (oldest == NULL)
        return;
    if (lane->last == NULL)
        lane->first = oldest;
    else
        lane->last->next = oldest;
    lane->last = newest;
}

fs_node *fs_lane_take(fs_lane *lane)
{
    while (sem_wait(&lane->tokens) != 0 && errno == EINTR) {
    }
    pthread_mutex_lock(&lane->mutex);
    collect(lane);
    fs_node *node = lane->first;
    if (node != NULL) {
        lane->first = node->next;
        if (lane->first == NULL)
            lane->last = NULL;
    }
    pthread_mutex_unlock(&lane->mutex);
    return node;
}

void fs_lane_close(fs_lane *lane, int threads)
{
    for (int i = 0; i < threads; i++)
        sem_post(&lane->tokens);
}
