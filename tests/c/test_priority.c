/* test_priority: when threads give way, when they do not, and what an unprivileged process makes of it.
 *
 * Without the privilege to raise threads again, only two of these have anything to look at. */
#include "priority.h"

#include "check.h"

#include <pthread.h>
#include <semaphore.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static int nice_now(void)
{
    return getpriority(PRIO_PROCESS, 0);
}

/* A member of the group, doing as it is told, one thing at a time. */
typedef struct member {
    fs_priority *p;
    int number;
    void (*act)(fs_priority *p);
    int nice; /* after the act */
    sem_t go, done;
    pthread_t thread;
} member;

static void *be(void *arg)
{
    member *m = arg;
    fs_priority_join(m->p, m->number);
    for (;;) {
        sem_wait(&m->go);
        if (m->act == NULL)
            return NULL;
        m->act(m->p);
        m->nice = nice_now();
        sem_post(&m->done);
    }
}

static int told(member *m, void (*act)(fs_priority *p))
{
    m->act = act;
    sem_post(&m->go);
    sem_wait(&m->done);
    return m->nice;
}

static void look(fs_priority *p)
{
    (void)p;
}

static void begin(fs_priority *p)
{
    bool gives_way = fs_priority_begin(p);
    CHECK_EQ(gives_way, nice_now() > p->normal);
}

static void open_member(member *m, fs_priority *p, int number)
{
    *m = (member){.p = p, .number = number};
    sem_init(&m->go, 0, 0);
    sem_init(&m->done, 0, 0);
    REQUIRE(pthread_create(&m->thread, NULL, be, m) == 0);
    told(m, look);
}

static void close_member(member *m)
{
    m->act = NULL;
    sem_post(&m->go);
    pthread_join(m->thread, NULL);
    sem_destroy(&m->go);
    sem_destroy(&m->done);
}

static void test_threads_give_way_once_they_shall(int normal)
{
    fs_priority p;
    fs_priority_init(&p, 7);
    CHECK_EQ(p.normal, normal);
    CHECK_EQ(p.low, normal + 7);
    member m;
    open_member(&m, &p, 0);
    fs_priority_expect(&p);
    CHECK_EQ(told(&m, begin), normal);
    fs_priority_give_way(&p);
    CHECK_EQ(told(&m, fs_priority_end), normal);
    fs_priority_expect(&p);
    CHECK_EQ(told(&m, begin), normal + 7);
    CHECK_EQ(nice_now(), normal); /* nobody else */
    told(&m, fs_priority_end);
    close_member(&m);
}

static void test_a_hurry_raises_all_until_nothing_is_left(int normal)
{
    fs_priority p;
    fs_priority_init(&p, 19);
    int low = normal + 19 < 19 ? normal + 19 : 19;
    fs_priority_give_way(&p);
    member first, second;
    open_member(&first, &p, 0);
    open_member(&second, &p, 1);

    fs_priority_hurry(&p); /* for nothing */
    for (int i = 0; i < 3; i++)
        fs_priority_expect(&p);
    CHECK_EQ(told(&first, begin), low);
    CHECK_EQ(told(&second, begin), low);
    fs_priority_hurry(&p);
    CHECK_EQ(told(&first, look), normal);
    CHECK_EQ(told(&second, look), normal);
    told(&first, fs_priority_end);
    CHECK_EQ(told(&first, begin), normal); /* the third, which had waited */
    told(&first, fs_priority_end);
    told(&second, fs_priority_end);

    fs_priority_expect(&p);
    CHECK_EQ(told(&first, begin), low);
    told(&first, fs_priority_end);
    close_member(&first);
    close_member(&second);
}

static int child_nice;
static sem_t child_looks, child_is_there;

static void *be_a_child(void *arg)
{
    (void)arg;
    sem_post(&child_is_there);
    sem_wait(&child_looks);
    child_nice = nice_now();
    return NULL;
}

static pthread_t child;

static void have_a_child(fs_priority *p)
{
    (void)p;
    REQUIRE(pthread_create(&child, NULL, be_a_child, NULL) == 0);
    sem_wait(&child_is_there);
}

static void raise_children(fs_priority *p)
{
    fs_priority_raise_children(p);
}

/* A group of one that gives way, with a piece of work under way, and may have children. */
static void begin_low(fs_priority *p, member *m, int nice)
{
    fs_priority_init(p, nice);
    fs_priority_give_way(p);
    sem_init(&child_looks, 0, 0);
    sem_init(&child_is_there, 0, 0);
    open_member(m, p, 0);
    fs_priority_expect(p);
    CHECK_EQ(told(m, begin), p->normal + nice);
}

static void end_low(fs_priority *p, member *m)
{
    told(m, fs_priority_end);
    CHECK(!fs_priority_is_low(p));
    close_member(m);
    sem_destroy(&child_looks);
    sem_destroy(&child_is_there);
}

static void test_what_a_low_thread_starts_can_be_raised(int normal)
{
    fs_priority p;
    member m;
    begin_low(&p, &m, 9);
    for (int raise = 0; raise < 2; raise++) {
        told(&m, have_a_child);
        if (raise)
            CHECK_EQ(told(&m, raise_children), normal + 9); /* the thread itself stays where it is */
        sem_post(&child_looks);
        pthread_join(child, NULL);
        CHECK_EQ(child_nice, raise ? normal : normal + 9);
    }
    end_low(&p, &m);
}

/* `then`: what happens to the thread and its child while they have normal priority; and whether they are low again after
 * it was taken back. */
static void lend_to(int normal, void (*then)(fs_priority *p), bool low_again)
{
    fs_priority p;
    member m;
    begin_low(&p, &m, 9);
    CHECK(fs_priority_is_low(&p));
    told(&m, have_a_child);
    fs_priority_take_back(&p); /* nothing */
    CHECK_EQ(told(&m, look), normal + 9);
    fs_priority_lend(&p);
    fs_priority_lend(&p); /* no more than once */
    CHECK_EQ(told(&m, look), normal);
    CHECK_EQ(nice_now(), normal);
    if (then != NULL)
        told(&m, then);
    CHECK_EQ(fs_priority_is_low(&p), then != fs_priority_hurry);
    fs_priority_take_back(&p);
    CHECK_EQ(told(&m, look), low_again ? normal + 9 : normal);
    sem_post(&child_looks);
    pthread_join(child, NULL);
    CHECK_EQ(child_nice, low_again ? normal + 9 : normal);
    CHECK_EQ(nice_now(), normal);
    end_low(&p, &m);
}

static void test_what_is_lent_is_taken_back(int normal)
{
    lend_to(normal, NULL, true);
    /* Raised for good meanwhile, they stay so. */
    lend_to(normal, fs_priority_hurry, false);
    lend_to(normal, raise_children, false);
}

/* Hurries and ends of work, from two sides at once: when all is done nobody is in a hurry. */
static void *hurry_often(void *arg)
{
    for (int i = 0; i < 20000; i++)
        fs_priority_hurry(arg);
    return NULL;
}

static void test_hurries_race_with_the_end_of_work(void)
{
    fs_priority p;
    fs_priority_init(&p, 1);
    pthread_t hurried;
    REQUIRE(pthread_create(&hurried, NULL, hurry_often, &p) == 0);
    for (int i = 0; i < 20000; i++) {
        fs_priority_expect(&p);
        fs_priority_expect(&p);
        fs_priority_end(&p);
        fs_priority_end(&p);
    }
    pthread_join(hurried, NULL);
    CHECK_EQ(atomic_load(&p.work), 0);
}

/* In a process of its own, which has nothing of what would let it come back. */
static void test_without_the_privilege_threads_give_way_a_little(int normal)
{
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        setrlimit(RLIMIT_NICE, &(struct rlimit){0, 0});
        if (getuid() == 0 && setuid(65534) != 0)
            _exit(9);
        fs_priority p;
        fs_priority_init(&p, 19);
        bool right = !p.can_return && p.limited && p.low == normal + FS_NICE_FOR_GOOD && nice_now() == normal;
        fs_priority_init(&p, 2);
        right = right && !p.limited && p.low == normal + 2;
        fs_priority_init(&p, 0);
        right = right && p.low == normal;
        fs_priority_expect(&p);
        fs_priority_hurry(&p); /* harmless, as these are */
        fs_priority_lend(&p);
        fs_priority_take_back(&p);
        _exit(right ? 0 : 1);
    }
    int status;
    REQUIRE(waitpid(pid, &status, 0) == pid);
    CHECK_EQ(status, 0);
}

int main(void)
{
    int normal = nice_now();
    test_without_the_privilege_threads_give_way_a_little(normal); /* first: a fork, while there is one thread */
    fs_priority p;
    fs_priority_init(&p, 1);
    if (p.can_return) {
        test_threads_give_way_once_they_shall(normal);
        test_a_hurry_raises_all_until_nothing_is_left(normal);
        test_what_a_low_thread_starts_can_be_raised(normal);
        test_what_is_lent_is_taken_back(normal);
    }
    test_hurries_race_with_the_end_of_work();
    return check_done();
}
