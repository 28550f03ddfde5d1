/* test_late: who is late and sleeps from one look to the next waits; who runs, is in time, or has begun something else
 * meanwhile does not. */
#include "late.h"

#include "check.h"

#include <pthread.h>

enum { MS = 1000, LOOKS = 20, PATIENCE_LOOKS = 5000 };

static const int64_t NOW_US = 1000000;

static fs_late late;
enum { NEW, JOINED, SLEEPING, BUSY, GONE };

static int wanted = JOINED;
static atomic_int is = NEW;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void *serve(void *arg)
{
    (void)arg;
    fs_late_join(&late);
    pthread_mutex_lock(&mutex);
    while (wanted != GONE) {
        atomic_store(&is, wanted);
        if (wanted != BUSY) {
            pthread_cond_wait(&changed, &mutex);
            continue;
        }
        do {
            pthread_mutex_unlock(&mutex);
            for (volatile int i = 0; i < 1000; i++)
                ;
            pthread_mutex_lock(&mutex);
        } while (wanted == BUSY);
    }
    pthread_mutex_unlock(&mutex);
    return NULL;
}

static void have_it(int state)
{
    pthread_mutex_lock(&mutex);
    wanted = state;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&mutex);
    while (state != GONE && atomic_load(&is) != state)
        usleep(100);
}

/* Whether a look says so within a while, and whether none of some does. */
static bool waits(int64_t now_us)
{
    for (int i = 0; i < PATIENCE_LOOKS; i++) {
        if (fs_late_look(&late, now_us))
            return true;
        usleep(MS);
    }
    return false;
}

static bool never_waits(int64_t now_us)
{
    for (int i = 0; i < LOOKS; i++) {
        if (fs_late_look(&late, now_us))
            return false;
        usleep(MS);
    }
    return true;
}

static void test_nobody(void)
{
    fs_late_begin(&late, NOW_US, 0);
    CHECK(never_waits(NOW_US + 1000 * MS));
    fs_late_end(&late);
}

static void test_who_sleeps(void)
{
    have_it(SLEEPING);
    CHECK(never_waits(NOW_US)); /* but has no work */
    fs_late_begin(&late, NOW_US, 0);
    CHECK(never_waits(NOW_US + MS - 1)); /* not late */
    CHECK(waits(NOW_US + MS));
    fs_late_begin(&late, NOW_US, 3 * MS);
    CHECK(never_waits(NOW_US + 6 * MS - 1));
    CHECK(waits(NOW_US + 6 * MS));
    CHECK(waits(NOW_US + 7 * MS)); /* still */
    fs_late_end(&late);
    CHECK(never_waits(NOW_US + 100 * MS));
}

static void test_each_piece_of_work_is_seen_twice(void)
{
    for (int64_t now_us = NOW_US; now_us < NOW_US + LOOKS; now_us++) {
        fs_late_begin(&late, now_us, 0);
        CHECK(!fs_late_look(&late, now_us + MS));
    }
    CHECK(fs_late_look(&late, NOW_US + LOOKS + MS));
    fs_late_end(&late);
}

static void test_who_runs(void)
{
    have_it(BUSY);
    fs_late_begin(&late, NOW_US, 0);
    CHECK(never_waits(NOW_US + 100 * MS));
    have_it(SLEEPING);
    CHECK(waits(NOW_US + 101 * MS));
    have_it(BUSY);
    CHECK(never_waits(NOW_US + 102 * MS));
    fs_late_end(&late);
}

int main(void)
{
    test_nobody();
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, serve, NULL) == 0);
    while (atomic_load(&is) == NEW)
        usleep(100);
    test_who_sleeps();
    test_each_piece_of_work_is_seen_twice();
    test_who_runs();
    have_it(GONE);
    pthread_join(thread, NULL);
    return check_done();
}
