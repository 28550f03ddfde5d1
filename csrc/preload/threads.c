/* threads: what a thread that takes breaks makes takes them too, until it ends or is raised.
 *
 * TensorFlow reads large variables, and XLA compiles, on threads that they make for it. Part of the library that the
 * dynamic linker puts before the C library (see pread.c). On whichever thread makes one. Knows only breaks.h. */
#include "own.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>

typedef int create_thread(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

typedef struct begin {
    void *(*run)(void *);
    void *arg;
    fs_breaks parents;
} begin;

_Thread_local const fs_breaks *fs_own_breaks;

FS_SHARED void fs_breaks_note(const fs_breaks *breaks)
{
    fs_own_breaks = breaks;
}

static void stop(void *breaks)
{
    fs_breaks_stop(breaks);
}

static void *run_with_breaks(void *arg)
{
    begin given = *(begin *)arg;
    free(arg);
    void *result;
    fs_breaks breaks;
    fs_breaks_inherit(&breaks, &given.parents);
    pthread_cleanup_push(stop, &breaks);
    result = given.run(given.arg);
    pthread_cleanup_pop(1);
    return result;
}

FS_SHARED int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *arg)
{
    create_thread *next;
    *(void **)&next = dlsym(RTLD_NEXT, "pthread_create");
    begin *given = fs_own_breaks != NULL ? malloc(sizeof *given) : NULL;
    if (given == NULL)
        return next(thread, attributes, run, arg);
    *given = (begin){.run = run, .arg = arg, .parents = *fs_own_breaks};
    int code = next(thread, attributes, run_with_breaks, given);
    if (code != 0)
        free(given);
    return code;
}
