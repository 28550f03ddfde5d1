/* priority: how much a few threads give way to the others of the process, and when they do not.
 *
 * The loader's threads work at a raised nice value while requests are served, at the process's own before
 * that, and again when somebody is in a hurry, until all that was under way then is done. Nothing here
 * takes a lock, and none should be held that a thread outside the group takes: a thread that gives way can be kept
 * off the processors for as long as the others are busy. Whoever sees that somebody waits for it all the same lends it
 * normal priority until it has let go. Knows thread ids, not what the threads do. */
#ifndef FS_PRIORITY_H
#define FS_PRIORITY_H

#include <stdatomic.h>
#include <stdbool.h>

enum {
    FS_PRIORITY_THREADS = 16,
    FS_PRIORITY_LENT = 64,
    FS_NICE_FOR_GOOD = 5, /* how far threads give way at most when nothing can raise them again */
};

typedef struct fs_priority {
    int normal;      /* the nice value of the process */
    int low;         /* of a thread that gives way */
    bool limited;    /* low is less than was asked for */
    bool can_return; /* from low to normal: a privilege (CAP_SYS_NICE, or RLIMIT_NICE) */
    atomic_bool giving_way;
    atomic_uint work; /* pieces under way, and FS_HURRY */
    atomic_int tids[FS_PRIORITY_THREADS];
    atomic_uint raises; /* how often threads were raised for good */
    /* The lender's. */
    unsigned raises_before; /* the loan */
    int n_lent;             /* threads that have normal priority meanwhile */
    int lent[FS_PRIORITY_LENT];
} fs_priority;

/* `nice` is added to the nice value of the calling thread. Tries once, in a thread of its own, whether a
 * thread can be raised again; if not, `nice` counts for FS_NICE_FOR_GOOD at most. */
void fs_priority_init(fs_priority *p, int nice);

/* The calling thread is number i of the group from now on. */
void fs_priority_join(fs_priority *p, int i);

/* From now on the group gives way; each thread when it next begins something. Any thread. */
void fs_priority_give_way(fs_priority *p);

/* A piece of work is under way until it is ended. `expect` by whoever orders it, any thread; `begin`, which sets
 * the calling thread's priority (true: it gives way), and `end` by the thread that does it. */
void fs_priority_expect(fs_priority *p);
bool fs_priority_begin(fs_priority *p);
void fs_priority_end(fs_priority *p);

/* Raises the whole group at once, in the middle of what it does, until no piece of work is left. Does nothing
 * when there is none, and no harm where threads cannot be raised. Any thread. */
void fs_priority_hurry(fs_priority *p);

/* A thread has the priority of the one that starts it. Raises those outside the group that a thread of the
 * group has started. A thread of the group. */
void fs_priority_raise_children(fs_priority *p);

/* Whether a piece of work is under way, and nobody in a hurry for it. Any thread. */
bool fs_priority_is_low(fs_priority *p);

/* Somebody else waits for what a thread that gives way may hold. Until it is taken back, all of them in the process,
 * those included that they have started, have normal priority, unless they cannot be raised. One thread lends. */
void fs_priority_lend(fs_priority *p);
void fs_priority_take_back(fs_priority *p);

#endif
