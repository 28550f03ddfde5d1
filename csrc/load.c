/* load: see load.h. This is the outside: how a generator is made, started, watched and ended. */
#include "load.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "load_own.h"

enum { STALL_US = 60000000 };

static const size_t SLAB_CACHE_BYTES = (size_t)256 << 20;

static size_t http_head(const fs_load_config *config, uint32_t body, uint8_t *dst, size_t room)
{
    return fs_http1_head_write(dst, room, config->path, config->authority, config->headers,
                               config->n_headers, config->bodies[body].len);
}

/* Heads and bodies in one, so that a request is one write. */
static bool make_requests(fs_load *load)
{
    const fs_load_config *config = &load->config;
    size_t bytes = 0;
    for (uint32_t i = 0; i < config->n_bodies; i++)
        bytes += http_head(config, i, NULL, 0) + config->bodies[i].len;
    load->requests = calloc(config->n_bodies, sizeof *load->requests);
    load->request_bytes = malloc(bytes);
    if (load->requests == NULL || load->request_bytes == NULL)
        return false;
    uint8_t *at = load->request_bytes;
    for (uint32_t i = 0; i < config->n_bodies; i++) {
        fs_slice body = config->bodies[i];
        load->requests[i].data = at;
        at += http_head(config, i, at, bytes);
        if (body.len > 0)
            memcpy(at, body.data, body.len);
        at += body.len;
        load->requests[i].len = (size_t)(at - load->requests[i].data);
    }
    return true;
}

static void fill_target(fs_load *load)
{
    const fs_load_config *config = &load->config;
    load->target = (fs_load_target){
        .address = config->address,
        .address_len = config->address_len,
        .http = config->http,
        .link = {.tls = config->tls, .server_name = config->server_name, .authority = config->authority},
        .path = config->path,
        .headers = config->headers,
        .n_headers = config->n_headers,
        .timeout_us = config->send_deadline ? config->timeout_us : 0,
        .messages = config->http ? load->requests : config->bodies,
        .connect_timeout_us = config->connect_timeout_us,
        .stall_timeout_us = STALL_US,
        .slab = load->slab,
        .on_end = fs_load_on_end,
        .ctx = load,
    };
    fs_load_target_init(&load->target);
}

static bool make_conns(fs_load *load)
{
    const fs_load_config *config = &load->config;
    uint32_t each = config->http ? 1 : config->in_flight;
    load->conns = calloc(config->connections, sizeof *load->conns);
    if (load->conns == NULL)
        return false;
    for (uint32_t i = 0; i < config->connections; i++)
        load->conns[i].target = &load->target;
    if (fs_load_is_open(load)) {
        uint64_t room = 16;
        while (room < config->max_outstanding)
            room *= 2;
        load->queue_mask = room - 1;
        load->queue = malloc(room * sizeof *load->queue);
        return load->queue != NULL;
    }
    load->calls = calloc((size_t)config->connections * each, sizeof *load->calls);
    if (load->calls == NULL)
        return false;
    for (uint32_t i = 0; i < config->connections * each; i++) {
        fs_load_call *call = &load->calls[i];
        call->next = load->conns[i / each].idle;
        load->conns[i / each].idle = call;
    }
    return true;
}

static bool make_fds(fs_load *load)
{
    load->epoll = epoll_create1(EPOLL_CLOEXEC);
    load->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    load->over_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    return load->epoll >= 0 && load->stop_fd >= 0 && load->over_fd >= 0 &&
           epoll_ctl(load->epoll, EPOLL_CTL_ADD, load->stop_fd, &event) == 0;
}

fs_load *fs_load_new(const fs_load_config *config, fs_error *err)
{
    fs_load *load = calloc(1, sizeof *load);
    if (load == NULL) {
        fs_fail(err, FS_RESOURCE_EXHAUSTED, "no memory for a load generator");
        return NULL;
    }
    load->config = *config;
    load->epoll = load->stop_fd = load->over_fd = -1;
    if (config->kind == FS_LOAD_CONSTANT)
        fs_arrivals_constant(&load->arrivals, config->rate);
    else if (config->kind == FS_LOAD_POISSON)
        fs_arrivals_poisson(&load->arrivals, config->rate, config->seed);
    else if (config->kind == FS_LOAD_REPLAY)
        fs_arrivals_recorded(&load->arrivals, config->times_us, config->n_times);
    if (!make_fds(load)) {
        fs_fail(err, FS_RESOURCE_EXHAUSTED, "no descriptors for a load generator: %s", strerror(errno));
        fs_load_free(load);
        return NULL;
    }
    load->slab = fs_slab_new(SLAB_CACHE_BYTES);
    load->in = malloc(FS_LOAD_BUFFER_BYTES);
    load->out = malloc(FS_LOAD_BUFFER_BYTES);
    if (load->slab == NULL || load->in == NULL || load->out == NULL ||
        fs_load_tally_open(&load->tally, config->n_bodies, config->interval_ns, config->max_records) != 0 ||
        (config->http && !make_requests(load)) || !make_conns(load)) {
        fs_fail(err, FS_RESOURCE_EXHAUSTED, "no memory for %u connections and %u bodies", config->connections,
                config->n_bodies);
        fs_load_free(load);
        return NULL;
    }
    fill_target(load);
    return load;
}

int fs_load_start(fs_load *load, fs_error *err)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    int rc = 0;
    if (load->config.processor >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        if (load->config.processor < CPU_SETSIZE)
            CPU_SET((unsigned)load->config.processor, &set);
        rc = pthread_attr_setaffinity_np(&attributes, sizeof set, &set);
    }
    /* Signals are for the caller's threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (rc == 0)
        rc = pthread_create(&load->thread, &attributes, fs_load_run, load);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (rc == EINVAL && load->config.processor >= 0)
        return fs_fail(err, FS_INVALID_ARGUMENT, "there is no processor %d to run on",
                       load->config.processor);
    if (rc != 0)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "cannot start a thread: %s", strerror(rc));
    load->started = true;
    pthread_setname_np(load->thread, "fs-load-gen");
    return 0;
}

bool fs_load_wait(fs_load *load, int timeout_ms)
{
    struct pollfd poll_fd = {.fd = load->over_fd, .events = POLLIN};
    return poll(&poll_fd, 1, timeout_ms) > 0;
}

fs_load_progress fs_load_read(const fs_load *load)
{
    int64_t begin_ns = atomic_load_explicit(&load->shown_begin_ns, memory_order_relaxed);
    return (fs_load_progress){
        .elapsed_ns = begin_ns > 0 ? fs_load_clock_ns() - begin_ns : 0,
        .measuring = atomic_load_explicit(&load->shown_measuring, memory_order_relaxed),
        .sent = atomic_load_explicit(&load->shown_sent, memory_order_relaxed),
        .done = atomic_load_explicit(&load->shown_done, memory_order_relaxed),
        .failed = atomic_load_explicit(&load->shown_failed, memory_order_relaxed),
        .outstanding = atomic_load_explicit(&load->shown_outstanding, memory_order_relaxed),
    };
}

static void wake(fs_load *load)
{
    uint64_t one = 1;
    while (write(load->stop_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

void fs_load_stop(fs_load *load)
{
    atomic_store_explicit(&load->stop, true, memory_order_relaxed);
    wake(load);
}

void fs_load_finish(fs_load *load)
{
    atomic_store_explicit(&load->finish, true, memory_order_relaxed);
    wake(load);
}

const fs_load_result *fs_load_join(fs_load *load)
{
    if (load->started && !load->joined)
        pthread_join(load->thread, NULL);
    load->joined = true;
    return &load->tally.result;
}

void fs_load_free(fs_load *load)
{
    if (load == NULL)
        return;
    if (load->started && !load->joined) {
        fs_load_stop(load);
        fs_load_join(load);
    }
    while (load->spare != NULL) {
        fs_load_call *call = load->spare;
        load->spare = call->next;
        fs_slab_free(call);
    }
    if (load->epoll >= 0)
        close(load->epoll);
    if (load->stop_fd >= 0)
        close(load->stop_fd);
    if (load->over_fd >= 0)
        close(load->over_fd);
    fs_load_tally_free(&load->tally);
    free(load->queue);
    free(load->calls);
    free(load->conns);
    free(load->requests);
    free(load->request_bytes);
    free(load->in);
    free(load->out);
    if (load->slab != NULL)
        fs_slab_release(load->slab);
    free(load);
}
