# The batching scheduler: executors ask it which queue to serve and how many rows to take.
from fastserve._native.c_policy cimport fs_plan_view, fs_policy, fs_queue_view
from libc.stdint cimport int64_t

cdef int pick(const fs_queue_view *queues, int n, int64_t now_us, int64_t *wait_until_us) noexcept nogil
cdef int64_t plan(const fs_plan_view *view) noexcept nogil
cdef fs_policy policy() noexcept nogil
cdef int plug_in(str library, fs_policy *policy) except -1
