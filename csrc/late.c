/* late: see late.h. That a thread sleeps, only the kernel can say, in a file of some hundred bytes: it is read for those
 * that are late alone. */
#include "late.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

void fs_late_join(fs_late *late)
{
    if (pthread_getcpuclockid(pthread_self(), &late->clock) != 0)
        return;
    /* release: its clock, for who looks. */
    atomic_store_explicit(&late->thread, gettid(), memory_order_release);
}

/* "1234 (any name) S ..." */
static bool sleeps(pid_t thread)
{
    char path[48], text[128];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return false;
    text[n] = '\0';
    const char *name_end = strrchr(text, ')');
    return name_end != NULL && name_end[1] == ' ' && (name_end[2] == 'S' || name_end[2] == 'D');
}

bool fs_late_look(fs_late *late, int64_t now_us)
{
    int64_t from_us = atomic_load_explicit(&late->from_us, memory_order_relaxed);
    pid_t thread = atomic_load_explicit(&late->thread, memory_order_acquire);
    struct timespec spent;
    if (from_us == 0 || now_us < from_us || thread == 0 || clock_gettime(late->clock, &spent) != 0)
        return false;
    int64_t spent_ns = spent.tv_sec * INT64_C(1000000000) + spent.tv_nsec;
    bool ran = late->seen_us != from_us || late->spent_ns != spent_ns;
    late->seen_us = from_us;
    late->spent_ns = spent_ns;
    return !ran && sleeps(thread);
}
