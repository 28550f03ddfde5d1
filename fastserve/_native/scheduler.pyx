"""The batching scheduler: pure functions of what waits, what runs cost and what time it is.

Executors call `pick` and `plan` from C without the GIL, several at once; tests call `pick_queue` and
`plan_rows` with tables, of a plug-in too. Knows no queue, no thread and no clock: those are csrc/executor.c's.
"""

from fastserve._native.c_policy cimport FS_MAX_BUCKETS, fs_plan_view, fs_policy, fs_queue_view
from fastserve._native.c_runtime cimport fs_error, fs_policy_plugin
from fastserve._native.runtime cimport check
from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.stdlib cimport calloc, free


cdef int pick(const fs_queue_view *queues, int n, int64_t now_us, int64_t *wait_until_us) noexcept nogil:
    """The ripe queue whose model has had the least, of equals the one that has waited longest.

    Models share the executors by weighted fair queueing: `virtual_us` is the time a model was given, divided
    by its weight, so whoever has had the least is next, and a slow model cannot take more than its share.
    """
    cdef int best = -1
    cdef int i
    wait_until_us[0] = INT64_MAX
    for i in range(n):
        if queues[i].ready_us > now_us:
            if queues[i].ready_us < wait_until_us[0]:
                wait_until_us[0] = queues[i].ready_us
            continue
        if (
            best < 0
            or queues[i].virtual_us < queues[best].virtual_us
            or (
                queues[i].virtual_us == queues[best].virtual_us
                and queues[i].oldest_us < queues[best].oldest_us
            )
        ):
            best = i
    return best


cdef int64_t plan(const fs_plan_view *view) noexcept nogil:
    """The rows of the next batch: all that wait, unless a smaller bucket serves rows faster.

    Unpadded batches take what is there, up to max_rows. Padded ones choose the bucket with the most useful
    rows for its cost: 70 rows are two runs of 64 and 8 rather than one of 128, if that is what 128 costs. A
    cost that is not known is taken to grow with the rows from the known one below, so that the bucket is
    tried and its cost learned.
    """
    cdef int64_t rows = view.rows if view.rows > 0 else 1
    cdef int64_t limit = view.max_rows
    cdef int64_t useful, best_rows = 0
    cdef double rate, cost_us, us_a_row = 0, best_rate = 0
    cdef uint32_t b
    if view.n_buckets == 0:
        return rows if rows < limit else limit
    for b in range(view.n_buckets):
        if view.bucket_rows[b] > limit:
            break
        useful = rows if rows < view.bucket_rows[b] else view.bucket_rows[b]
        if view.cost_us[b] > 0:
            us_a_row = view.cost_us[b] / <double>view.bucket_rows[b]
        cost_us = us_a_row * view.bucket_rows[b]
        if cost_us > 0:
            rate = useful / cost_us
            # Of nearly equal ones the larger: it leaves less behind. Beyond the first that holds everything
            # there is nothing to gain.
            if rate >= 0.95 * best_rate:
                if rate > best_rate:
                    best_rate = rate
                best_rows = view.bucket_rows[b]
        else:
            best_rows = view.bucket_rows[b]
        if view.bucket_rows[b] >= rows:
            break
    return best_rows if best_rows > 0 else 1


cdef fs_policy policy() noexcept nogil:
    cdef fs_policy p
    p.pick = pick
    p.plan = plan
    return p


cdef int plug_in(str library, fs_policy *policy) except -1:
    """Puts a plug-in's functions into `policy`. RuntimeFailure, with policy as it was, when it is no good."""
    cdef fs_error err
    return check(fs_policy_plugin(library.encode(), policy, &err), &err)


cdef fs_policy policy_of(str library) except *:
    cdef fs_policy p = policy()
    if library:
        plug_in(library, &p)
    return p


def check_library(str library) -> None:
    """RuntimeFailure, in words for the user, when `library` is not the path of a batcher."""
    cdef fs_policy p = policy()
    plug_in(library, &p)


def pick_queue(list queues, int64_t now_us, str library="") -> tuple[int, int | None]:
    """`pick` for a table of (oldest_us, ready_us, virtual_us, weight) rows; without a weight it is 1.

    Returns the index of the row to serve, or -1 and the time at which that may change. `library`: the path of
    a batcher that is asked instead.
    """
    cdef fs_policy p = policy_of(library)
    cdef fs_queue_view *views = <fs_queue_view *>calloc(len(queues) + 1, sizeof(fs_queue_view))
    cdef int64_t wait_until_us
    cdef int chosen
    if views is NULL:
        raise MemoryError
    try:
        for i, (oldest_us, ready_us, virtual_us, *weight) in enumerate(queues):
            views[i].oldest_us = oldest_us
            views[i].ready_us = ready_us
            views[i].virtual_us = virtual_us
            views[i].weight = weight[0] if weight else 1.0
        chosen = p.pick(views, <int>len(queues), now_us, &wait_until_us)
    finally:
        free(views)
    return chosen, None if wait_until_us == INT64_MAX else wait_until_us


def plan_rows(int64_t rows, int64_t max_rows, dict costs_us, str library="") -> int:
    """`plan` for `rows` waiting rows and a table bucket -> microseconds (0: not known; empty: unpadded), of
    the batcher at `library` if given."""
    cdef fs_policy p = policy_of(library)
    cdef fs_plan_view view
    view.rows = rows
    view.max_rows = max_rows
    view.n_buckets = 0
    if len(costs_us) > FS_MAX_BUCKETS:
        raise ValueError(f"at most {FS_MAX_BUCKETS} buckets")
    for bucket in sorted(costs_us):
        view.bucket_rows[view.n_buckets] = bucket
        view.cost_us[view.n_buckets] = costs_us[bucket]
        view.n_buckets += 1
    return p.plan(&view)
