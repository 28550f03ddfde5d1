/* load_calls: requests on their way: sent in a closed or an open loop, answered, late or lost. See
 * load_own.h.
 *
 * Requests in flight are in one list, those for which no connection has room in a ring, both in the order of
 * the times that theirs run from: so what is overdue stands first. The clock is read once for what one
 * recv(2) brought, once before a batch of requests is handed over and once before it is written, so that
 * reading it costs next to nothing and no time is flattered. */
#include "load_check.h"
#include "load_own.h"

enum {
    BATCH = 512,  /* requests handed over before they are written */
    BATCHES = 16, /* and so many batches before answers are read */
};

#define LATE "no answer in time"

/* ---- calls --------------------------------------------------------------------------------------- */

static void link_call(fs_load *load, fs_load_call *call)
{
    call->next = NULL;
    call->prev = load->last;
    *(load->last != NULL ? &load->last->next : &load->first) = call;
    load->last = call;
    load->in_flight++;
}

static void unlink_call(fs_load *load, fs_load_call *call)
{
    *(call->prev != NULL ? &call->prev->next : &load->first) = call->next;
    *(call->next != NULL ? &call->next->prev : &load->last) = call->prev;
    load->in_flight--;
}

/* Its memory waits for the next request. */
static void rest_call(fs_load *load, fs_load_call *call)
{
    fs_load_call **rest = fs_load_is_open(load) ? &load->spare : &call->conn->idle;
    fs_load_touch(load, call->conn);
    call->next = *rest;
    *rest = call;
}

static fs_load_outcome outcome_of(const fs_load_call *call, int failure, const fs_error *error, int64_t at_ns)
{
    return (fs_load_outcome){.since_ns = call->since_ns,
                             .at_ns = at_ns,
                             .body = call->body,
                             .measured = call->measured,
                             .failure = failure,
                             .version = -1,
                             .error = error};
}

/* When the bytes were read that are being looked at. */
static int64_t stamp(fs_load *load)
{
    if (load->tally.moved.in != load->stamped_in) {
        load->stamped_in = load->tally.moved.in;
        load->stamp_ns = fs_load_clock_ns();
    }
    return load->stamp_ns;
}

/* What is wrong with an answer that came well, and which version it names. */
static int check_reply(fs_load *load, const fs_load_call *call, const fs_load_end *end, int64_t *version)
{
    const int64_t *sizes = load->config.reply_bytes;
    if (sizes != NULL && sizes[call->body] >= 0 && (size_t)sizes[call->body] != end->reply_bytes) {
        fs_fail(&load->wrong, FS_INTERNAL, "body %u was answered with %zu bytes, expected are %lld",
                call->body, end->reply_bytes, (long long)sizes[call->body]);
        return FS_LOAD_REPLY_SIZE;
    }
    if (load->config.check == NULL)
        return 0;
    fs_slice reply = {end->reply, end->reply_bytes};
    fs_load_answer answer = fs_load_check_reply(load->config.check, reply, call->body);
    *version = answer.version;
    if (answer.failure != 0)
        fs_fail(&load->wrong, FS_INTERNAL, "body %u, version %lld: %s", call->body,
                (long long)answer.version, answer.why);
    return answer.failure;
}

void fs_load_on_end(void *ctx, fs_load_call *call, const fs_load_end *end)
{
    fs_load *load = ctx;
    unlink_call(load, call);
    if (load->closing) {
        load->tally.result.unanswered += call->measured;
    } else {
        fs_load_outcome outcome = outcome_of(call, end->failure, end->error, stamp(load));
        if (end->failure == 0) {
            outcome.failure = check_reply(load, call, end, &outcome.version);
            outcome.error = &load->wrong;
        }
        fs_load_tally_ended(&load->tally, &outcome);
    }
    rest_call(load, call);
}

/* Hands a request to a connection; false: that was not possible. */
static bool start_call(fs_load *load, fs_load_conn *conn, fs_load_call *call)
{
    if (fs_load_conn_start(conn, call, fs_load_now_us(load), &load->tally.moved) != 0)
        return false;
    link_call(load, call);
    fs_load_touch(load, conn);
    return true;
}

static uint32_t next_body(fs_load *load)
{
    uint64_t i = load->issued++;
    const fs_load_config *config = &load->config;
    return config->order != NULL ? config->order[i % config->n_order] : (uint32_t)(i % config->n_bodies);
}

static void stop_sending_when_all_are_sent(fs_load *load)
{
    if (load->config.requests > 0 && load->tally.result.sent >= load->config.requests)
        load->phase = FS_PHASE_DRAINING;
}

/* ---- closed loop ----------------------------------------------------------------------------------- */

void fs_load_refill(fs_load *load, fs_load_conn *conn)
{
    if (conn->idle == NULL || load->phase != FS_PHASE_RUNNING || fs_load_conn_state_of(conn) != FS_LOAD_OPEN)
        return;
    int64_t since_ns = fs_load_clock_ns();
    fs_load_tally_advance(&load->tally, since_ns);
    while (conn->idle != NULL && load->phase == FS_PHASE_RUNNING) {
        fs_load_call *call = conn->idle;
        if (since_ns >= load->tally.to_ns) {
            load->phase = FS_PHASE_DRAINING;
            break;
        }
        call->since_ns = since_ns;
        call->measured = fs_load_tally_measures(&load->tally, since_ns);
        fs_load_call *rest = call->next;
        call->body = next_body(load);
        if (!start_call(load, conn, call)) {
            load->issued--;
            break;
        }
        conn->idle = rest;
        fs_load_tally_sent(&load->tally, call->measured);
        stop_sending_when_all_are_sent(load);
    }
}

/* ---- open loop ------------------------------------------------------------------------------------- */

/* The next connection in turn that has room, NULL: none has. */
static fs_load_conn *choose(fs_load *load)
{
    uint32_t n = load->config.connections;
    for (uint32_t i = 0; i < n; i++) {
        fs_load_conn *conn = &load->conns[(load->turn + i) % n];
        if (fs_load_conn_room(conn) > 0) {
            load->turn = (load->turn + i + 1) % n;
            return conn;
        }
    }
    return NULL;
}

/* Hands waiting requests over, as far as there is room. */
static void serve_queue(fs_load *load)
{
    while (fs_load_has_waiting(load)) {
        fs_load_conn *conn = choose(load);
        if (conn == NULL)
            return;
        fs_load_call *call = load->spare;
        if (call != NULL)
            load->spare = call->next;
        else
            call = fs_slab_alloc(load->slab, sizeof *call);
        if (call == NULL)
            return; /* the next that ends leaves its memory */
        const fs_load_waiting *next = &load->queue[load->queue_head & load->queue_mask];
        call->since_ns = next->since_ns;
        call->body = next->body;
        call->measured = next->measured;
        if (!start_call(load, conn, call)) {
            call->next = load->spare;
            load->spare = call;
            fs_load_touch(load, conn); /* it may be down: then it will be dialled again */
            if (fs_load_conn_room(conn) > 0)
                return; /* for want of memory: later */
            continue;
        }
        load->queue_head++;
    }
}

static void fail_waiting(fs_load *load, int failure, const fs_error *error, int64_t at_ns)
{
    const fs_load_waiting *next = &load->queue[load->queue_head++ & load->queue_mask];
    fs_load_tally_ended(&load->tally, &(fs_load_outcome){.since_ns = next->since_ns,
                                                         .at_ns = at_ns,
                                                         .body = next->body,
                                                         .measured = next->measured,
                                                         .failure = failure,
                                                         .version = -1,
                                                         .error = error});
}

/* A request is due. */
static void arrive(fs_load *load, int64_t due_ns, bool measured)
{
    uint32_t body = next_body(load);
    fs_load_tally_sent(&load->tally, measured);
    if (fs_load_outstanding(load) >= load->config.max_outstanding) {
        fs_load_tally_ended(&load->tally, &(fs_load_outcome){.since_ns = due_ns,
                                                             .at_ns = load->now_ns,
                                                             .body = body,
                                                             .measured = measured,
                                                             .failure = FS_LOAD_FULL,
                                                             .version = -1});
        return;
    }
    load->queue[load->queue_tail++ & load->queue_mask] =
        (fs_load_waiting){.since_ns = due_ns, .body = body, .measured = measured};
}

void fs_load_next_arrival(fs_load *load)
{
    int64_t at_ns = fs_arrivals_next(&load->arrivals);
    load->due_ns = at_ns < INT64_MAX - load->begin_ns ? load->begin_ns + at_ns : INT64_MAX;
}

void fs_load_issue(fs_load *load)
{
    int64_t due[BATCH];
    int n = BATCH;
    for (int batch = 0; n == BATCH && batch < BATCHES; batch++) {
        load->now_ns = fs_load_clock_ns();
        fs_load_tally_advance(&load->tally, load->now_ns);
        n = 0;
        int taken = 0;
        while (load->phase == FS_PHASE_RUNNING && load->due_ns <= load->now_ns && taken < BATCH) {
            if (load->due_ns >= load->tally.to_ns) {
                load->phase = FS_PHASE_DRAINING;
                break;
            }
            bool measured = fs_load_tally_measures(&load->tally, load->due_ns);
            arrive(load, load->due_ns, measured);
            if (measured)
                due[n++] = load->due_ns;
            taken++;
            fs_load_next_arrival(load);
            if (load->due_ns == INT64_MAX)
                load->phase = FS_PHASE_DRAINING;
            stop_sending_when_all_are_sent(load);
        }
        serve_queue(load);
        if (n > 0) {
            int64_t at_ns = fs_load_clock_ns();
            for (int i = 0; i < n; i++)
                fs_hist_record(&load->tally.result.behind, (uint64_t)(at_ns - due[i]));
        }
        fs_load_flush_touched(load);
        n = taken;
    }
}

/* ---- requests without an answer -------------------------------------------------------------------- */

void fs_load_expire(fs_load *load)
{
    int64_t since_ns = load->now_ns - load->config.timeout_us * 1000;
    static const fs_error late = {.code = FS_LOAD_TIMEOUT, .len = sizeof LATE - 1, .msg = LATE};
    while (load->first != NULL && load->first->since_ns <= since_ns) {
        fs_load_call *call = load->first;
        fs_load_conn_cancel(call->conn, call);
        unlink_call(load, call);
        fs_load_outcome outcome = outcome_of(call, FS_LOAD_TIMEOUT, &late, load->now_ns);
        fs_load_tally_ended(&load->tally, &outcome);
        rest_call(load, call);
    }
    while (fs_load_has_waiting(load) && load->queue[load->queue_head & load->queue_mask].since_ns <= since_ns)
        fail_waiting(load, FS_LOAD_TIMEOUT, &late, load->now_ns);
}

void fs_load_fail_the_hopeless(fs_load *load)
{
    if (!fs_load_has_waiting(load))
        return;
    const fs_error *why = NULL;
    for (uint32_t i = 0; i < load->config.connections; i++) {
        if (fs_load_conn_state_of(&load->conns[i]) != FS_LOAD_DOWN)
            return;
        why = fs_load_conn_why(&load->conns[i]);
    }
    while (fs_load_has_waiting(load))
        fail_waiting(load, FS_LOAD_LOST, why, load->now_ns);
}
