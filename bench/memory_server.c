/* memory_server: answers every gRPC call with the same bytes, for measuring load generators. A program of its
 * own.
 *
 *   memory_server REPLY_BYTES PROCESSOR SPIN_NS
 *
 * Listens on a port of 127.0.0.1 that it prints, and ends with its standard input. PROCESSOR -1: any. It
 * spins SPIN_NS before each answer, so that it can be what limits the rate. It looks at the frames of HTTP/2
 * but not into headers, and its answer is one block of bytes with the stream's number filled in, so that what
 * limits a measurement is the generator and the kernel. It keeps flow control and answers SETTINGS and PING;
 * it is no server for anything else. One thread, one epoll. Knows nothing of FastServe. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    IN_BYTES = 256 << 10,
    SMALL = 64,              /* payloads that are looked at are no longer */
    WINDOW = 1 << 30,        /* that the client has for sending */
    FRAME_BYTES = 16384,     /* the longest DATA frame that every client takes */
};

enum { DATA = 0, HEADERS = 1, SETTINGS = 4, PING = 6, WINDOW_UPDATE = 8 };

typedef struct conn {
    int fd;
    bool writable_wanted;
    uint8_t preface_left;
    uint8_t head[9], head_have;
    uint8_t small[SMALL];
    uint32_t payload_len, payload_have;
    uint64_t received;       /* of DATA, since the client was last given room */
    int64_t window;          /* that we have for sending */
    uint32_t *waiting;       /* streams to be answered when there is window */
    size_t n_waiting, waiting_room;
    uint8_t *out;
    size_t out_len, out_at, out_room;
} conn;

typedef struct answer {
    uint8_t *bytes;
    size_t len;
    size_t data_bytes;       /* that count against the window */
    size_t *stream_at;       /* where the stream's number goes */
    size_t n_streams;
    int64_t spin_ns;
} answer;

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(1);
}

static void *must(void *memory)
{
    if (memory == NULL)
        die("memory");
    return memory;
}

static void put32(uint8_t *dst, uint32_t value)
{
    dst[0] = (uint8_t)(value >> 24);
    dst[1] = (uint8_t)(value >> 16);
    dst[2] = (uint8_t)(value >> 8);
    dst[3] = (uint8_t)value;
}

static uint32_t get32(const uint8_t *src)
{
    return (uint32_t)src[0] << 24 | (uint32_t)src[1] << 16 | (uint32_t)src[2] << 8 | src[3];
}

static uint8_t *frame(uint8_t *dst, size_t len, int type, int flags, uint32_t stream)
{
    put32(dst, (uint32_t)len << 8 | (uint32_t)type);
    dst[4] = (uint8_t)flags;
    put32(dst + 5, stream);
    return dst + 9;
}

static void answer_add(answer *a, const void *payload, size_t len, int type, int flags)
{
    a->bytes = must(realloc(a->bytes, a->len + 9 + len));
    a->stream_at = must(realloc(a->stream_at, (a->n_streams + 1) * sizeof *a->stream_at));
    a->stream_at[a->n_streams++] = a->len + 5;
    memcpy(frame(a->bytes + a->len, len, type, flags, 0), payload, len);
    a->len += 9 + len;
}

/* HEADERS, the message in DATA frames, trailers: HPACK without a dynamic table is the same for each stream. */
static answer make_answer(size_t reply_bytes)
{
    static const uint8_t headers[] = "\x88\x0f\x10\x10" "application/grpc";
    static const uint8_t trailers[] = "\x00\x0b" "grpc-status" "\x01" "0";
    answer a = {.data_bytes = 5 + reply_bytes};
    uint8_t *message = must(calloc(1, a.data_bytes));
    put32(message + 1, (uint32_t)reply_bytes);
    for (size_t i = 0; i < reply_bytes; i++)
        message[5 + i] = (uint8_t)(i * 37);
    answer_add(&a, headers, sizeof headers - 1, HEADERS, 4);
    for (size_t at = 0; at < a.data_bytes; at += FRAME_BYTES) {
        size_t left = a.data_bytes - at;
        answer_add(&a, message + at, left < FRAME_BYTES ? left : FRAME_BYTES, DATA, 0);
    }
    answer_add(&a, trailers, sizeof trailers - 1, HEADERS, 5);
    free(message);
    return a;
}

static uint8_t *room(conn *c, size_t len)
{
    if (c->out_at == c->out_len)
        c->out_at = c->out_len = 0;
    if (c->out_len + len > c->out_room) {
        c->out_room = (c->out_len + len) * 2;
        c->out = must(realloc(c->out, c->out_room));
    }
    c->out_len += len;
    return c->out + c->out_len - len;
}

static void spin(int64_t ns)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t begin_ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    do {
        clock_gettime(CLOCK_MONOTONIC, &t);
    } while ((int64_t)t.tv_sec * 1000000000 + t.tv_nsec - begin_ns < ns);
}

static void reply(conn *c, const answer *a, uint32_t stream)
{
    uint8_t *dst = room(c, a->len);
    memcpy(dst, a->bytes, a->len);
    for (size_t i = 0; i < a->n_streams; i++)
        put32(dst + a->stream_at[i], stream);
    c->window -= (int64_t)a->data_bytes;
}

static void reply_to_waiting(conn *c, const answer *a)
{
    size_t n = 0;
    while (n < c->n_waiting && c->window >= (int64_t)a->data_bytes)
        reply(c, a, c->waiting[n++]);
    memmove(c->waiting, c->waiting + n, (c->n_waiting - n) * sizeof *c->waiting);
    c->n_waiting -= n;
}

static void request_is_whole(conn *c, const answer *a, uint32_t stream)
{
    if (a->spin_ns > 0)
        spin(a->spin_ns);
    if (c->n_waiting == 0 && c->window >= (int64_t)a->data_bytes) {
        reply(c, a, stream);
        return;
    }
    if (c->n_waiting == c->waiting_room) {
        c->waiting_room = c->waiting_room * 2 + 16;
        c->waiting = must(realloc(c->waiting, c->waiting_room * sizeof *c->waiting));
    }
    c->waiting[c->n_waiting++] = stream;
}

static void give_window(conn *c, uint32_t bytes)
{
    put32(frame(room(c, 13), 4, WINDOW_UPDATE, 0, 0), bytes);
}

/* A frame is whole; of its payload the first bytes are in c->small. */
static void on_frame(conn *c, const answer *a)
{
    int type = c->head[3], flags = c->head[4];
    uint32_t stream = get32(c->head + 5) & 0x7fffffff;
    if (type == DATA) {
        c->received += c->payload_len;
        if (c->received > WINDOW / 2) {
            give_window(c, (uint32_t)c->received);
            c->received = 0;
        }
    }
    if ((type == DATA || type == HEADERS) && (flags & 1) != 0) {
        request_is_whole(c, a, stream);
    } else if (type == SETTINGS && (flags & 1) == 0) {
        frame(room(c, 9), 0, SETTINGS, 1, 0);
    } else if (type == PING && (flags & 1) == 0) {
        memcpy(frame(room(c, 17), 8, PING, 1, 0), c->small, 8);
    } else if (type == WINDOW_UPDATE && stream == 0) {
        c->window += get32(c->small) & 0x7fffffff;
        reply_to_waiting(c, a);
    }
}

static void receive(conn *c, const answer *a, const uint8_t *data, size_t len)
{
    while (len > 0) {
        size_t n;
        if (c->preface_left > 0) {
            n = len < c->preface_left ? len : c->preface_left;
            c->preface_left -= (uint8_t)n;
        } else if (c->head_have < 9) {
            n = len < 9u - c->head_have ? len : 9u - c->head_have;
            memcpy(c->head + c->head_have, data, n);
            c->head_have += (uint8_t)n;
            c->payload_len = get32(c->head) >> 8;
            c->payload_have = 0;
        } else {
            n = len < c->payload_len - c->payload_have ? len : c->payload_len - c->payload_have;
            size_t kept = c->payload_have < SMALL ? SMALL - c->payload_have : 0;
            if (kept > 0)
                memcpy(c->small + c->payload_have, data, n < kept ? n : kept);
            c->payload_have += (uint32_t)n;
        }
        data += n;
        len -= n;
        if (c->preface_left == 0 && c->head_have == 9 && c->payload_have == c->payload_len) {
            on_frame(c, a);
            c->head_have = 0;
        }
    }
}

static void close_conn(conn *c)
{
    close(c->fd);
    free(c->waiting);
    free(c->out);
    free(c);
}

/* False: the connection is gone. */
static bool send_out(int epoll, conn *c)
{
    while (c->out_at < c->out_len) {
        ssize_t n = send(c->fd, c->out + c->out_at, c->out_len - c->out_at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN)
            return false;
        if (n < 0)
            break;
        c->out_at += (size_t)n;
    }
    bool wanted = c->out_at < c->out_len; /* then it is not read from either */
    if (wanted != c->writable_wanted) {
        struct epoll_event event = {.events = wanted ? EPOLLOUT : EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
        c->writable_wanted = wanted;
    }
    return true;
}

static void accept_conn(int epoll, int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
    if (fd < 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    conn *c = must(calloc(1, sizeof *c));
    c->fd = fd;
    c->preface_left = 24;
    c->window = 65535;
    static const uint8_t settings[] = {0, 3, 0, 1, 0, 0, 0, 4, 0x40, 0, 0, 0}; /* 65536 streams, 1 GiB each */
    memcpy(frame(room(c, 9 + sizeof settings), sizeof settings, SETTINGS, 0, 0), settings, sizeof settings);
    give_window(c, WINDOW - 65535);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0 || !send_out(epoll, c))
        close_conn(c);
}

static void serve(int epoll, int listener, const answer *a)
{
    static uint8_t in[IN_BYTES];
    struct epoll_event events[128];
    for (;;) {
        int n = epoll_wait(epoll, events, 128, -1);
        for (int i = 0; i < n; i++) {
            conn *c = events[i].data.ptr;
            if (c == NULL) {
                accept_conn(epoll, listener);
                continue;
            }
            if ((void *)c == (void *)a)
                return; /* standard input has ended */
            bool open = true;
            if ((events[i].events & ~(uint32_t)EPOLLOUT) != 0) {
                ssize_t got = recv(c->fd, in, sizeof in, MSG_DONTWAIT);
                if (got > 0)
                    receive(c, a, in, (size_t)got);
                else
                    open = got < 0 && errno == EAGAIN;
            }
            if (!open || !send_out(epoll, c))
                close_conn(c);
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: memory_server REPLY_BYTES PROCESSOR SPIN_NS\n");
        return 2;
    }
    if (atoi(argv[2]) >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((unsigned)atoi(argv[2]), &set);
        if (sched_setaffinity(0, sizeof set, &set) != 0)
            die("sched_setaffinity");
    }
    answer a = make_answer((size_t)atol(argv[1]));
    a.spin_ns = atol(argv[3]);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), epoll = epoll_create1(0);
    if (listener < 0 || epoll < 0 || bind(listener, (struct sockaddr *)&address, len) != 0 ||
        listen(listener, 4096) != 0 || getsockname(listener, (struct sockaddr *)&address, &len) != 0)
        die("listen");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) != 0)
        die("epoll");
    event = (struct epoll_event){.events = EPOLLIN, .data.ptr = &a};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event) != 0)
        die("standard input is nothing to wait for");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    serve(epoll, listener, &a);
    return 0;
}
