/* channel_wires: see channel_own.h: endpoints and their connections. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "channel_own.h"

enum {
    /* A connection that is lost so soon, without an answer, counts as refused. */
    SOON_US = 1000000,
    /* A link that says that it is due again and again is not asked more often than this. */
    TICK_LEAST_US = 1000,
    /* A server is not dialled more often than this, whatever the configuration says: an address that fails at
     * once would be dialled again and again within one round of work. */
    REST_LEAST_US = 1000,
};

static void on_end(void *ctx, fs_exchange *exchange)
{
    fs_channel *channel = ctx;
    fs_attempt *attempt = (fs_attempt *)exchange;
    attempt->ended = true;
    attempt->next_ended = NULL;
    *channel->ended_last = attempt;
    channel->ended_last = &attempt->next_ended;
}

const fs_h2_client_handler fs_channel_handler = {.on_end = on_end};

/* ---- servers ------------------------------------------------------------------------------------ */

/* The name without its port, and without the brackets of an IPv6 address. */
static void host_of(const char *name, char *host, size_t room)
{
    size_t len = strlen(name);
    const char *colon = strrchr(name, ':');
    if (colon != NULL && colon[1] != '\0' && strspn(colon + 1, "0123456789") == strlen(colon + 1))
        len = (size_t)(colon - name);
    if (len >= 2 && name[0] == '[' && name[len - 1] == ']') {
        name++;
        len -= 2;
    }
    len = len < room ? len : room - 1;
    memcpy(host, name, len);
    host[len] = '\0';
}

fs_server *fs_server_new(fs_channel *channel, const fs_endpoint *endpoint)
{
    fs_server *server = calloc(1, sizeof *server);
    if (server == NULL || fs_timers_promise(&channel->timers) != 0) {
        free(server);
        return NULL;
    }
    const fs_channel_config *config = &channel->config;
    server->timer.kind = FS_TIMER_ENDPOINT;
    server->peer.id = ++channel->next_id;
    server->fresh = true;
    server->endpoint = *endpoint;
    server->rest_us = config->reconnect_first_us;
    bool local = endpoint->address.ss_family == AF_UNIX;
    if (config->authority[0] != '\0')
        memcpy(server->authority, config->authority, sizeof server->authority);
    else
        strcpy(server->authority, local ? "localhost" : endpoint->name);
    if (config->server_name[0] != '\0')
        memcpy(server->server_name, config->server_name, sizeof server->server_name);
    else if (local)
        strcpy(server->server_name, "localhost");
    else
        host_of(endpoint->name, server->server_name, sizeof server->server_name);
    server->link = (fs_link_config){
        .limits = &channel->limits,
        .handler = &fs_channel_handler,
        .ctx = channel,
        .tls = config->tls,
        .server_name = server->server_name,
        .authority = fs_slice_of(server->authority),
        .connect_timeout_us = config->connect_timeout_us,
        .stall_timeout_us = config->stall_timeout_us,
    };
    if (config->hedge_percentile > 0) {
        server->paces = calloc(FS_CHANNEL_PATHS, sizeof *server->paces);
        if (server->paces == NULL) {
            fs_server_free(channel, server);
            return NULL;
        }
    }
    return server;
}

void fs_server_free(fs_channel *channel, fs_server *server)
{
    fs_timers_forget(&channel->timers, &server->timer);
    free(server->paces);
    free(server);
}

void fs_server_retire(fs_channel *channel, fs_server *server)
{
    server->gone = true;
    server->next_gone = channel->gone;
    channel->gone = server;
    for (fs_wire *wire = server->wires; wire != NULL; wire = wire->next)
        fs_wire_touch(channel, wire); /* which closes it when no call is on it */
}

void fs_server_failed(fs_channel *channel, fs_server *server, bool probe)
{
    fs_eject_rule rule = {.failures = channel->config.eject_failures,
                          .out_us = channel->config.eject_us,
                          .at_most = channel->config.eject_at_most};
    server->failures++;
    if (fs_balance_failed(channel->peers, server->gone ? 0 : channel->n, &server->peer, probe, &rule,
                          channel->now_us))
        server->ejections++;
}

/* No connection could be had, or only one that was of no use. */
static void refused(fs_channel *channel, fs_server *server, const char *why, bool blame)
{
    const fs_channel_config *config = &channel->config;
    server->refusal = ++channel->refusals;
    size_t len = strnlen(why, sizeof server->why - 1);
    memcpy(server->why, why, len);
    server->why[len] = '\0';
    /* A fifth more or less, so that many clients of a server that comes back do not all call at once. */
    double jitter = 0.8 + 0.4 * fs_channel_random(channel);
    int64_t rest_us = (int64_t)((double)server->rest_us * jitter);
    server->peer.rest_until_us = channel->now_us + (rest_us > REST_LEAST_US ? rest_us : REST_LEAST_US);
    int64_t twice_us = server->rest_us * 2;
    server->rest_us = twice_us < config->reconnect_max_us ? twice_us : config->reconnect_max_us;
    if (blame)
        fs_server_failed(channel, server, false);
    channel->serve = true;
}

void fs_server_look(fs_channel *channel, fs_server *server)
{
    enum fs_standing standing = FS_PEER_IDLE;
    server->n_wires = 0;
    for (fs_wire *wire = server->wires; wire != NULL; wire = wire->next) {
        /* Calls could be started before the server has said its SETTINGS. But whether it has seen them would
         * be unknown if it never does, and a listener's backlog says nothing of a process behind it. */
        enum fs_standing is = wire->link.state < FS_LINK_SETTLING ? FS_PEER_DIALLING
                              : !fs_link_accepts(&wire->link)     ? FS_PEER_IDLE
                              : wire->link.state == FS_LINK_OPEN  ? FS_PEER_READY
                                                                  : FS_PEER_DIALLING;
        server->n_wires += is != FS_PEER_IDLE; /* the others only finish what is on them */
        standing = is > standing ? is : standing;
    }
    if (standing != server->peer.standing)
        channel->serve = true;
    server->peer.standing = standing;
}

fs_wire *fs_server_wire(fs_channel *channel, fs_server *server)
{
    fs_wire *best = NULL;
    bool spare = false; /* one more is on its way */
    for (fs_wire *wire = server->wires; wire != NULL; wire = wire->next) {
        if (wire->link.state != FS_LINK_OPEN)
            spare |= wire->link.state != FS_LINK_CLOSED;
        else if (fs_link_accepts(&wire->link) && (best == NULL || wire->outstanding < best->outstanding))
            best = wire;
    }
    if (best != NULL && best->outstanding > 0 && !spare)
        fs_server_dial(channel, server);
    return best;
}

void fs_servers_watch(fs_channel *channel)
{
    for (uint32_t i = 0; i < channel->n; i++) {
        fs_server *server = fs_server_of(channel->peers[i]);
        bool rests = server->peer.standing == FS_PEER_IDLE && server->peer.rest_until_us > channel->now_us;
        fs_timers_set(&channel->timers, &server->timer, rests ? server->peer.rest_until_us : INT64_MAX);
    }
}

/* ---- connections -------------------------------------------------------------------------------- */

/* A free place in the table, which grows if need be; UINT32_MAX when out of memory. */
static uint32_t free_place(fs_channel *channel)
{
    for (uint32_t i = 0; i < channel->wires_room; i++) {
        if (channel->wires[i] == NULL)
            return i;
    }
    uint32_t before = channel->wires_room, room = before == 0 ? 8 : before * 2;
    fs_wire **wires = realloc(channel->wires, room * sizeof *wires);
    if (wires == NULL)
        return UINT32_MAX;
    memset(wires + before, 0, (room - before) * sizeof *wires);
    channel->wires = wires;
    channel->wires_room = room;
    return before;
}

fs_wire *fs_wire_find(fs_channel *channel, uint64_t key)
{
    uint32_t place = (uint32_t)key;
    fs_wire *wire = place < channel->wires_room ? channel->wires[place] : NULL;
    return wire != NULL && wire->key == key ? wire : NULL;
}

void fs_wire_touch(fs_channel *channel, fs_wire *wire)
{
    if (wire->touched || wire->closed)
        return;
    wire->touched = true;
    wire->next_touched = channel->touched;
    channel->touched = wire;
}

void fs_server_dial(fs_channel *channel, fs_server *server)
{
    uint32_t most = channel->config.connections > 0 ? channel->config.connections : 1;
    if (server->gone || server->n_wires >= most || server->peer.rest_until_us > channel->now_us)
        return;
    fs_wire *wire = calloc(1, sizeof *wire);
    uint32_t place = wire != NULL ? free_place(channel) : UINT32_MAX;
    if (place == UINT32_MAX || fs_timers_promise(&channel->timers) != 0) {
        free(wire);
        refused(channel, server, "out of memory", false);
        return;
    }
    channel->wires[place] = wire;
    wire->key = (uint64_t)++channel->generation << 32 | place;
    wire->timer.kind = FS_TIMER_WIRE;
    wire->watched = -1;
    wire->server = server;
    wire->next = server->wires;
    server->wires = wire;
    if (fs_link_dial(&wire->link, &server->link, (const struct sockaddr *)&server->endpoint.address,
                     server->endpoint.address_len, channel->slab, channel->now_us) == 0) {
        wire->events = EPOLLIN | EPOLLOUT;
        wire->watched = fcntl(wire->link.sock.fd, F_DUPFD_CLOEXEC, 0);
        struct epoll_event event = {.events = wire->events, .data.u64 = wire->key};
        if (wire->watched < 0 || epoll_ctl(channel->epoll, EPOLL_CTL_ADD, wire->watched, &event) != 0) {
            fs_error why;
            fs_fail(&why, FS_UNAVAILABLE, "no room for another connection: %s", strerror(errno));
            fs_link_close(&wire->link, &why);
        }
    }
    fs_wire_touch(channel, wire);
    fs_server_look(channel, server);
}

/* It is over: nobody finds it any more. Its attempts are on the list of those that ended. */
static void bury(fs_channel *channel, fs_wire *wire)
{
    fs_server *server = wire->server;
    fs_wire **at = &server->wires;
    while (*at != wire)
        at = &(*at)->next;
    *at = wire->next;
    channel->wires[(uint32_t)wire->key] = NULL;
    channel->n_more -= wire->more;
    fs_timers_forget(&channel->timers, &wire->timer);
    if (wire->watched >= 0) {
        epoll_ctl(channel->epoll, EPOLL_CTL_DEL, wire->watched, NULL);
        close(wire->watched);
    }
    wire->closed = true;
    wire->next_dead = channel->dead;
    channel->dead = wire;
    bool early = wire->opened_us == 0 || channel->now_us - wire->opened_us < SOON_US;
    if (!wire->ours && !wire->answered && early)
        refused(channel, server, wire->link.why.msg, !wire->blamed);
    fs_server_look(channel, server);
    channel->serve = true;
}

/* Waits for what the link waits for. */
static void watch(fs_channel *channel, fs_wire *wire)
{
    uint32_t events = EPOLLIN | (fs_link_wants_write(&wire->link) ? EPOLLOUT : 0);
    if (events == wire->events)
        return;
    struct epoll_event event = {.events = events, .data.u64 = wire->key};
    if (epoll_ctl(channel->epoll, EPOLL_CTL_MOD, wire->watched, &event) != 0)
        fs_link_close(&wire->link, NULL);
    wire->events = events;
}

static void flush(fs_channel *channel, fs_link *link)
{
    if (link->state != FS_LINK_CLOSED)
        fs_link_flush(link, channel->out, FS_CHANNEL_BUFFER_BYTES, channel->now_us, &channel->moved);
}

void fs_wire_turn(fs_channel *channel, fs_wire *wire)
{
    fs_link *link = &wire->link;
    int64_t now_us = channel->now_us;
    wire->touched = false;
    if (wire->closed)
        return;
    flush(channel, link);
    if (link->state != FS_LINK_CLOSED && link->due_us <= now_us) {
        fs_link_tick(link, now_us);
        flush(channel, link);
    }
    if (link->state != FS_LINK_CLOSED)
        watch(channel, wire);
    if (link->state != FS_LINK_CLOSED && wire->server->gone && wire->outstanding == 0) {
        wire->ours = true;
        fs_link_close(link, NULL);
    }
    if (link->state == FS_LINK_CLOSED) {
        bury(channel, wire);
        return;
    }
    if (link->state == FS_LINK_OPEN && wire->opened_us == 0)
        wire->opened_us = now_us;
    fs_server_look(channel, wire->server);
    /* A timer that comes too early only looks again, and moving it at every call would cost more. */
    int64_t due_us = link->due_us > now_us + TICK_LEAST_US ? link->due_us : now_us + TICK_LEAST_US;
    if (wire->timer.at == 0 || wire->timer.due_us > due_us)
        fs_timers_set(&channel->timers, &wire->timer, due_us);
}

void fs_wires_reap(fs_channel *channel)
{
    while (channel->dead != NULL) {
        fs_wire *wire = channel->dead;
        channel->dead = wire->next_dead;
        free(wire);
    }
    for (fs_server **at = &channel->gone; *at != NULL;) {
        fs_server *server = *at;
        if (server->wires != NULL || server->peer.outstanding > 0) {
            at = &server->next_gone;
            continue;
        }
        *at = server->next_gone;
        fs_server_free(channel, server);
    }
}
