/* priority: see priority.h. On Linux a nice value is a thread's own, and setpriority takes its id. */
#include "priority.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FS_HURRY 0x80000000u

enum { NICE_MAX = 19 };

/* The lowest nice value comes with the kernel's idle class: from a thread in it, whoever wakes takes the
 * processor at once. By nice alone it would finish its slice of some milliseconds first. */
static bool set_nice(int tid, int nice)
{
    const struct sched_param none = {0};
    bool idle = nice == NICE_MAX;
    bool done = sched_setscheduler(tid, idle ? SCHED_IDLE : SCHED_OTHER, &none) == 0 || idle;
    return setpriority(PRIO_PROCESS, (id_t)tid, nice) == 0 && done;
}

/* Down and up again. */
static void *try_return(void *arg)
{
    fs_priority *p = arg;
    p->can_return = set_nice(gettid(), p->low) && set_nice(gettid(), p->normal);
    return NULL;
}

void fs_priority_init(fs_priority *p, int nice)
{
    p->normal = getpriority(PRIO_PROCESS, 0);
    p->low = p->normal + nice < NICE_MAX ? p->normal + nice : NICE_MAX;
    p->can_return = false;
    atomic_init(&p->giving_way, false);
    atomic_init(&p->work, 0);
    for (int i = 0; i < FS_PRIORITY_THREADS; i++)
        atomic_init(&p->tids[i], 0);
    atomic_init(&p->raises, 0);
    p->n_lent = 0;
    pthread_t trying;
    if (pthread_create(&trying, NULL, try_return, p) == 0)
        pthread_join(trying, NULL);
    p->limited = !p->can_return && p->low > p->normal + FS_NICE_FOR_GOOD;
    if (p->limited)
        p->low = p->normal + FS_NICE_FOR_GOOD;
}

void fs_priority_join(fs_priority *p, int i)
{
    /* relaxed: a number that whoever hurries needs; who reads 0 is early, and the thread itself sees the
     * hurry in fs_priority_begin. */
    atomic_store_explicit(&p->tids[i], gettid(), memory_order_relaxed);
}

void fs_priority_give_way(fs_priority *p)
{
    atomic_store_explicit(&p->giving_way, true, memory_order_seq_cst);
}

/* seq_cst, here and where it changes: whoever hurries sets the bit and then raises the threads, a thread lowers
 * itself and then looks at the bit again, so one of them comes last and knows. */
static bool is_low(fs_priority *p)
{
    return atomic_load_explicit(&p->giving_way, memory_order_seq_cst) &&
           (atomic_load_explicit(&p->work, memory_order_seq_cst) & FS_HURRY) == 0;
}

void fs_priority_expect(fs_priority *p)
{
    atomic_fetch_add_explicit(&p->work, 1, memory_order_seq_cst);
}

bool fs_priority_begin(fs_priority *p)
{
    bool low;
    do {
        low = is_low(p);
        set_nice(gettid(), low ? p->low : p->normal);
    } while (is_low(p) != low);
    return low && p->low > p->normal;
}

void fs_priority_end(fs_priority *p)
{
    unsigned before = atomic_load_explicit(&p->work, memory_order_relaxed);
    unsigned after;
    do {
        after = before - 1;
        if (after == FS_HURRY)
            after = 0;
    } while (!atomic_compare_exchange_weak_explicit(&p->work, &before, after, memory_order_seq_cst,
                                                    memory_order_relaxed));
}

/* Before threads are raised for good: what is lent is then not taken back. */
static void note_raise(fs_priority *p)
{
    atomic_fetch_add_explicit(&p->raises, 1, memory_order_seq_cst);
}

void fs_priority_hurry(fs_priority *p)
{
    unsigned before = atomic_load_explicit(&p->work, memory_order_relaxed);
    do {
        if (before == 0)
            return;
    } while (!atomic_compare_exchange_weak_explicit(&p->work, &before, before | FS_HURRY,
                                                    memory_order_seq_cst, memory_order_relaxed));
    note_raise(p);
    for (int i = 0; i < FS_PRIORITY_THREADS; i++) {
        int tid = atomic_load_explicit(&p->tids[i], memory_order_relaxed);
        if (tid != 0)
            set_nice(tid, p->normal);
    }
}

static bool is_member(const fs_priority *p, int tid)
{
    for (int i = 0; i < FS_PRIORITY_THREADS; i++) {
        if (atomic_load_explicit(&p->tids[i], memory_order_relaxed) == tid)
            return true;
    }
    return false;
}

/* What getdents64 writes. */
typedef struct entry {
    uint64_t inode;
    int64_t next;
    unsigned short length;
    unsigned char type;
    char name[];
} entry;

static int nice_of(int tid)
{
    errno = 0;
    int nice = getpriority(PRIO_PROCESS, (id_t)tid);
    return errno == 0 ? nice : INT_MIN;
}

/* Calls `visit` with each thread of the process that gives way as much as the group does. Without malloc, for a thread
 * that gives way may have its lock. Where /proc is not to be read they stay as they are: slower, and not wrong. */
static void for_each_low(fs_priority *p, void (*visit)(fs_priority *p, int tid))
{
    _Alignas(entry) char entries[2048];
    int tasks = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (tasks < 0)
        return;
    long n;
    while ((n = syscall(SYS_getdents64, tasks, entries, sizeof entries)) > 0) {
        for (const char *at = entries; at < entries + n; at += ((const entry *)at)->length) {
            int tid = atoi(((const entry *)at)->name);
            if (tid > 0 && nice_of(tid) == p->low)
                visit(p, tid);
        }
    }
    close(tasks);
}

static void raise_child(fs_priority *p, int tid)
{
    if (!is_member(p, tid))
        set_nice(tid, p->normal);
}

void fs_priority_raise_children(fs_priority *p)
{
    if (!p->can_return || p->low == p->normal)
        return;
    note_raise(p);
    for_each_low(p, raise_child);
}

/* ---- loans -------------------------------------------------------------------------------- */

bool fs_priority_is_low(fs_priority *p)
{
    return p->low > p->normal && is_low(p) && atomic_load_explicit(&p->work, memory_order_relaxed) != 0;
}

static void lend(fs_priority *p, int tid)
{
    if (p->n_lent < FS_PRIORITY_LENT && set_nice(tid, p->normal))
        p->lent[p->n_lent++] = tid;
}

void fs_priority_lend(fs_priority *p)
{
    if (!p->can_return || p->n_lent > 0)
        return;
    p->raises_before = atomic_load_explicit(&p->raises, memory_order_seq_cst);
    for_each_low(p, lend);
}

/* seq_cst: whoever raises threads for good counts first and looks for low ones then; here they are lowered first. */
static bool still_low(fs_priority *p)
{
    return is_low(p) && atomic_load_explicit(&p->raises, memory_order_seq_cst) == p->raises_before;
}

void fs_priority_take_back(fs_priority *p)
{
    bool low = p->n_lent > 0 && still_low(p);
    for (int i = 0; i < p->n_lent && low; i++) {
        set_nice(p->lent[i], p->low);
        low = still_low(p);
        if (!low)
            set_nice(p->lent[i], p->normal);
    }
    p->n_lent = 0;
}
