/* test_late: who is late and sleeps from one look to the next waits; who runs, is in time, or has begun something else
 * meanwhile does not. */
#include "late.h"

#include "check.h"

#include <pthread.h>

enum { MS = 1000, FEW_LOOKS = 20, MANY_LOOKS = 5000 };

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

/* Whether one of so many looks, a millisecond apart, says so. */
static bool waits(int64_t now_us, int looks)
{
    for (int i = 0; i < looks; i++) {
        if (fs_late_look(&late, now_us))
            return true;
        usleep(MS);
    }
    return false;
}

static void test_nobody(void)
{
    fs_late_begin(&late, NOW_US, 0);
    CHECK(!waits(NOW_US + 1000 * MS, FEW_LOOKS));
    fs_late_end(&late);
}

static void test_who_sleeps(void)
{
    have_it(SLEEPING);
    CHECK(!waits(NOW_US, FEW_LOOKS)); /* but has no work */
    fs_late_begin(&late, NOW_US, 0);
    CHECK(!waits(NOW_US + MS - 1, FEW_LOOKS)); /* not late */
    CHECK(waits(NOW_US + MS, MANY_LOOKS));
    fs_late_begin(&late, NOW_US, 3 * MS);
    CHECK(!waits(NOW_US + 6 * MS - 1, FEW_LOOKS));
    CHECK(waits(NOW_US + 6 * MS, MANY_LOOKS));
    CHECK(waits(NOW_US + 7 * MS, MANY_LOOKS)); /* still */
    fs_late_end(&late);
    CHECK(!waits(NOW_US + 100 * MS, FEW_LOOKS));
}

static void test_each_piece_of_work_is_seen_twice(void)
{
    for (int64_t now_us = NOW_US; now_us < NOW_US + FEW_LOOKS; now_us++) {
        fs_late_begin(&late, now_us, 0);
        CHECK(!fs_late_look(&late, now_us + MS));
    }
    CHECK(fs_late_look(&late, NOW_US + FEW_LOOKS + MS));
    fs_late_end(&late);
}

static void test_who_runs(void)
{
    have_it(BUSY);
    fs_late_begin(&late, NOW_US, 0);
    CHECK(!waits(NOW_US + 100 * MS, FEW_LOOKS));
    have_it(SLEEPING);
    CHECK(waits(NOW_US + 101 * MS, MANY_LOOKS));
    have_it(BUSY);
    CHECK(!waits(NOW_US + 102 * MS, FEW_LOOKS));
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
