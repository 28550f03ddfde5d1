/* channel_calls: see channel_own.h: what one call goes through.
 *
 * A call is queued, running or backing off; each function that moves it on leaves it in one of the three with
 * its timer set, or ends it, after which its memory is the caller's and nothing here may look at it. */
#include <string.h>

#include "channel_own.h"

/* Of a text that others stand beside. */
enum { PART_BYTES = 900 };

/* When a hedge finds that the other server's connection is only being dialled, it asks again. */
enum { HEDGE_AGAIN_US = 1000 };

static bool place(fs_channel *channel, fs_channel_call *call);

/* ---- the queue ---------------------------------------------------------------------------------- */

static void enqueue(fs_channel *channel, fs_channel_call *call)
{
    if (call->state == FS_CALL_QUEUED)
        return;
    call->state = FS_CALL_QUEUED;
    call->queue_next = NULL;
    call->queue_prev = channel->queue_last;
    *(channel->queue_last != NULL ? &channel->queue_last->queue_next : &channel->queue_first) = call;
    channel->queue_last = call;
    if (channel->queue_first == call)
        fs_servers_watch(channel);
}

static void dequeue(fs_channel *channel, fs_channel_call *call)
{
    if (call->state != FS_CALL_QUEUED)
        return;
    *(call->queue_prev != NULL ? &call->queue_prev->queue_next : &channel->queue_first) = call->queue_next;
    *(call->queue_next != NULL ? &call->queue_next->queue_prev : &channel->queue_last) = call->queue_prev;
    call->state = FS_CALL_RUNNING;
}

/* ---- what to say -------------------------------------------------------------------------------- */

/* Notes in call->error how an attempt went, for the end of the call. */
static void remember(fs_channel_call *call, const fs_server *server, int code, const char *msg, size_t len)
{
    fs_text text = fs_text_begin(&call->error, (enum fs_code)code);
    fs_text_put(&text, server->endpoint.name);
    fs_text_put(&text, ": ");
    if (len == 0)
        fs_text_put(&text, "no message");
    fs_text_put_slice(&text, fs_slice_cut(msg, len, call->attempts > 1 ? PART_BYTES : SIZE_MAX));
    fs_text_end(&text);
}

/* The same when no connection could be had anywhere. */
static void remember_refusals(fs_channel *channel, fs_channel_call *call)
{
    fs_text text = fs_text_begin(&call->error, FS_UNAVAILABLE);
    fs_text_put(&text, channel->n > 0 ? "no connection: " : "the channel has no endpoint");
    for (uint32_t i = 0; i < channel->n && text.len < PART_BYTES; i++) {
        const fs_server *server = fs_server_of(channel->peers[i]);
        fs_text_put(&text, i > 0 ? "; " : "");
        fs_text_put(&text, server->endpoint.name);
        fs_text_put(&text, ": ");
        fs_text_put(&text, server->why);
    }
    fs_text_end(&text);
}

/* What a call whose time is over was waiting for. */
static void say_deadline(fs_channel *channel, fs_channel_call *call)
{
    fs_error last = call->error;
    int64_t us = call->deadline_us - call->started_us;
    fs_text text = fs_text_begin(&call->error, FS_DEADLINE_EXCEEDED);
    fs_text_put(&text, "deadline exceeded after ");
    if (us >= 9500)
        fs_text_putf(&text, "%lld ms (", (long long)((us + 500) / 1000));
    else
        fs_text_putf(&text, "%.1f ms (", us > 0 ? (double)us / 1000 : 0.0);
    const fs_server *newest = NULL, *dialled = NULL;
    for (uint32_t i = 0; i < channel->n; i++) {
        const fs_server *server = fs_server_of(channel->peers[i]);
        if (server->refusal > 0 && (newest == NULL || server->refusal > newest->refusal))
            newest = server;
        if (dialled == NULL && server->peer.standing == FS_PEER_DIALLING)
            dialled = server;
    }
    if (call->failures > 0 || call->unprocessed > 0) {
        fs_text_put(&text, "last attempt: ");
        fs_text_put_slice(&text, fs_slice_cut(last.msg, last.len, PART_BYTES));
    } else if (call->tries[0] != NULL) {
        fs_text_put(&text, call->tries[0]->server->endpoint.name);
        fs_text_put(&text, " has not answered");
    } else if (newest != NULL) {
        fs_text_put(&text, "last attempt: ");
        fs_text_put(&text, newest->endpoint.name);
        fs_text_put(&text, ": ");
        fs_text_put(&text, newest->why);
    } else if (dialled != NULL) {
        fs_text_put(&text, "still connecting to ");
        fs_text_put(&text, dialled->endpoint.name);
    } else {
        fs_text_put(&text, channel->n > 0 ? "no connection yet" : "the channel has no endpoint");
    }
    fs_text_put(&text, ")");
    fs_text_end(&text);
}

static void say_attempts(fs_channel_call *call)
{
    if (call->attempts < 2)
        return;
    fs_error whole = call->error;
    fs_text text = fs_text_begin(&call->error, (enum fs_code)whole.code);
    fs_text_put_slice(&text, (fs_slice){(const uint8_t *)whole.msg, whole.len});
    fs_text_putf(&text, " (%u attempts)", (unsigned)call->attempts);
    fs_text_end(&text);
}

/* ---- how long calls take ------------------------------------------------------------------------ */

static uint8_t pace_of(fs_channel *channel, fs_slice path)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < path.len; i++)
        hash = (hash ^ path.data[i]) * UINT64_C(0x100000001b3);
    hash |= hash == 0;
    for (uint8_t i = 0; i < FS_CHANNEL_PATHS - 1; i++) {
        if (channel->paths[i] == 0)
            channel->paths[i] = hash;
        if (channel->paths[i] == hash)
            return i;
    }
    return FS_CHANNEL_PATHS - 1;
}

static void record(fs_channel *channel, fs_server *server, uint8_t pace, int64_t us)
{
    if (server->paces == NULL || server->gone ||
        !fs_pace_record(&server->paces[pace], us, channel->config.hedge_percentile / 100))
        return;
    for (uint32_t i = 0; i < channel->n; i++)
        channel->scratch[i] = fs_server_of(channel->peers[i])->paces[pace].value_us;
    channel->hedge_delays_us[pace] = fs_pace_median(channel->scratch, channel->n);
}

/* ---- attempts ----------------------------------------------------------------------------------- */

static void arm(fs_channel *channel, fs_channel_call *call)
{
    int64_t due_us = call->deadline_us;
    if (call->state == FS_CALL_BACKING_OFF && call->retry_us < due_us)
        due_us = call->retry_us;
    if (call->state == FS_CALL_RUNNING && call->hedge_us < due_us)
        due_us = call->hedge_us;
    fs_timers_set(&channel->timers, &call->timer, due_us);
}

/* 0, or as fs_h2_client_start: nothing has changed then. */
static int attempt_start(fs_channel *channel, fs_channel_call *call, fs_wire *wire, bool hedge)
{
    fs_attempt *attempt = fs_slab_alloc(channel->slab, sizeof *attempt);
    if (attempt == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    fs_exchange *exchange = &attempt->exchange; /* whose other members are the session's to set */
    exchange->path = call->path;
    exchange->pieces = call->pieces;
    exchange->n_pieces = call->n_pieces;
    exchange->message_bytes = call->message_bytes;
    exchange->encoding = call->encoding;
    exchange->headers = call->headers;
    exchange->n_headers = call->n_headers;
    exchange->user = NULL;
    exchange->timeout_us = call->deadline_us == INT64_MAX ? 0 : call->deadline_us - channel->now_us;
    int rc = fs_h2_client_start(wire->link.h2, exchange);
    if (rc != 0) {
        fs_slab_free(attempt);
        return rc;
    }
    fs_server *server = wire->server;
    attempt->call = call;
    attempt->server = server;
    attempt->wire = wire;
    attempt->started_us = channel->now_us;
    attempt->next_ended = NULL;
    attempt->ended = false;
    attempt->hedge = hedge;
    attempt->probe = fs_balance_begin(&server->peer, channel->now_us);
    server->attempts++;
    wire->outstanding++;
    fs_wire_touch(channel, wire);
    call->attempts += call->attempts < UINT16_MAX;
    call->tries[hedge] = attempt;
    return 0;
}

/* Gives an attempt up. */
static void attempt_drop(fs_channel *channel, fs_attempt *attempt)
{
    attempt->call = NULL;
    if (attempt->ended)
        return; /* freed when its turn comes to be settled */
    fs_h2_client_cancel(attempt->wire->link.h2, &attempt->exchange);
    attempt->wire->outstanding--;
    fs_wire_touch(channel, attempt->wire);
    fs_balance_end(&attempt->server->peer, attempt->probe);
    fs_slab_free(attempt);
}

/* ---- the end of a call -------------------------------------------------------------------------- */

/* Takes it out of everything. */
static void detach(fs_channel *channel, fs_channel_call *call)
{
    for (int i = 0; i < 2; i++) {
        if (call->tries[i] != NULL)
            attempt_drop(channel, call->tries[i]);
        call->tries[i] = NULL;
    }
    dequeue(channel, call);
    fs_timers_forget(&channel->timers, &call->timer);
    *(call->prev != NULL ? &call->prev->next : &channel->calls) = call->next;
    if (call->next != NULL)
        call->next->prev = call->prev;
    call->state = FS_CALL_RESTING;
}

static void tell(fs_channel *channel, fs_channel_call *call)
{
    fs_waiter *waiter = call->waiter;
    void (*on_done)(fs_channel_call *) = call->on_done;
    call->waiter = NULL;
    call->done = true;
    if (on_done != NULL)
        on_done(call);
    if (waiter != NULL)
        fs_waiter_end(channel, waiter, true);
}

/* With call->error. */
static void end_failed(fs_channel *channel, fs_channel_call *call, int16_t endpoint)
{
    detach(channel, call);
    say_attempts(call);
    call->code = call->error.code;
    call->endpoint = endpoint;
    tell(channel, call);
}

void fs_call_fail(fs_channel *channel, fs_channel_call *call, enum fs_code code, const char *text)
{
    fs_fail(&call->error, code, "%s", text);
    end_failed(channel, call, -1);
}

void fs_call_cancel(fs_channel *channel, fs_channel_call *call)
{
    fs_waiter *waiter = call->waiter;
    detach(channel, call);
    if (waiter != NULL)
        fs_waiter_end(channel, waiter, false);
}

static void end_deadline(fs_channel *channel, fs_channel_call *call)
{
    say_deadline(channel, call);
    for (int i = 0; i < 2; i++) {
        fs_attempt *attempt = call->tries[i];
        if (attempt == NULL || attempt->ended)
            continue;
        fs_server_failed(channel, attempt->server, attempt->probe);
        record(channel, attempt->server, call->pace, channel->now_us - attempt->started_us);
    }
    end_failed(channel, call, -1);
}

static int16_t index_of(const fs_server *server)
{
    return server->gone || server->index > INT16_MAX ? -1 : (int16_t)server->index;
}

static void end_answered(fs_channel *channel, fs_channel_call *call, fs_attempt *attempt)
{
    fs_exchange *exchange = &attempt->exchange;
    fs_attempt *other = call->tries[call->tries[0] == attempt];
    if (other != NULL && !other->ended) {
        /* It takes at least so long: without this the slow ones would never be counted. */
        record(channel, other->server, call->pace, channel->now_us - other->started_us);
    }
    if (attempt->hedge)
        channel->stats.hedge_wins++;
    call->tries[call->tries[0] != attempt] = NULL;
    detach(channel, call);
    call->code = FS_OK;
    call->error.code = FS_OK;
    call->error.len = 0;
    call->error.msg[0] = '\0';
    call->reply = exchange->reply;
    call->reply_bytes = exchange->reply_bytes;
    call->reply_encoding = exchange->reply_encoding;
    call->endpoint = index_of(attempt->server);
    tell(channel, call);
}

/* ---- failures ----------------------------------------------------------------------------------- */

static bool retryable(const fs_channel *channel, int code)
{
    return code > 0 && code < 32 && (channel->config.retry_codes >> code & 1) != 0;
}

static bool may_retry(const fs_channel *channel, const fs_channel_call *call, int code, bool unprocessed)
{
    return (unprocessed || !call->no_retry) && retryable(channel, code) &&
           call->failures < channel->config.max_attempts;
}

/* Once more after a pause, the nth of its kind; false when that would be too late. */
static bool back_off(fs_channel *channel, fs_channel_call *call, uint32_t nth)
{
    const fs_channel_config *config = &channel->config;
    int64_t pause_us = config->backoff_first_us;
    while (nth-- > 1 && pause_us < config->backoff_max_us)
        pause_us *= 2;
    pause_us = pause_us < config->backoff_max_us ? pause_us : config->backoff_max_us;
    pause_us = (int64_t)((double)pause_us * (0.5 + fs_channel_random(channel)));
    /* A pause of nothing would make a loop of calls that fail at once. */
    int64_t retry_us = channel->now_us + (pause_us > 0 ? pause_us : 1);
    if (retry_us >= call->deadline_us)
        return false;
    call->retry_us = retry_us;
    call->state = FS_CALL_BACKING_OFF;
    arm(channel, call);
    return true;
}

static bool take(fs_channel *channel, double *tokens)
{
    if (*tokens < 1) {
        channel->stats.budget_refusals++;
        return false;
    }
    *tokens -= 1;
    return true;
}

/* Every server has refused, and no call may be made before one of them is dialled again. */
static void refused_everywhere(fs_channel *channel, fs_channel_call *call)
{
    int64_t again_us = INT64_MAX;
    for (uint32_t i = 0; i < channel->n; i++) {
        const fs_server *server = fs_server_of(channel->peers[i]);
        if (call->failures > 0 && call->state == FS_CALL_QUEUED && server->refusal <= call->refusals)
            return; /* it waits for the outcome of a new round, in which this one has yet to be asked */
        again_us = server->peer.rest_until_us < again_us ? server->peer.rest_until_us : again_us;
    }
    call->attempts += call->attempts < UINT16_MAX;
    call->failures += call->failures < UINT16_MAX;
    remember_refusals(channel, call);
    if (!may_retry(channel, call, FS_UNAVAILABLE, true) || again_us >= call->deadline_us) {
        end_failed(channel, call, -1);
        return;
    }
    /* No server was troubled, so this takes nothing from the budget; and the pause between dials is pause
     * enough. */
    call->refusals = channel->refusals;
    channel->stats.retries++;
    enqueue(channel, call);
    arm(channel, call);
}

/* An attempt has failed, and no other is under way. call->error says how. */
static void once_more_or_end(fs_channel *channel, fs_channel_call *call, int code, bool unprocessed,
                             const fs_server *server)
{
    if (unprocessed) {
        /* At once as long as there may be a server that was not asked yet, then with pauses. */
        call->unprocessed++;
        channel->stats.unprocessed++;
        if (call->unprocessed <= channel->n) {
            place(channel, call);
            return;
        }
        if (back_off(channel, call, call->unprocessed - channel->n))
            return;
    } else {
        call->failures += call->failures < UINT16_MAX;
        if (may_retry(channel, call, code, false) && take(channel, &channel->retry_tokens)) {
            if (back_off(channel, call, call->failures)) {
                channel->stats.retries++;
                return;
            }
            channel->retry_tokens += 1;
        }
    }
    end_failed(channel, call, index_of(server));
}

/* What it says of the server. */
static void judge(fs_channel *channel, fs_attempt *attempt)
{
    const fs_exchange *exchange = &attempt->exchange;
    fs_server *server = attempt->server;
    if (exchange->answered) {
        attempt->wire->answered = true;
        server->rest_us = channel->config.reconnect_first_us;
        server->refusal = 0;
    }
    if (exchange->unprocessed)
        return;
    /* A reply that is too large for us is no fault of the server's. */
    bool lost = !exchange->answered && exchange->code != FS_RESOURCE_EXHAUSTED;
    if (lost || exchange->code == FS_UNAVAILABLE) {
        fs_server_failed(channel, server, attempt->probe);
        attempt->wire->blamed = true;
    } else {
        fs_balance_answered(&server->peer, attempt->probe, channel->now_us);
    }
}

void fs_attempt_settle(fs_channel *channel, fs_attempt *attempt)
{
    fs_exchange *exchange = &attempt->exchange;
    fs_server *server = attempt->server;
    fs_channel_call *call = attempt->call;
    attempt->wire->outstanding--;
    fs_wire_touch(channel, attempt->wire);
    judge(channel, attempt);
    fs_balance_end(&server->peer, attempt->probe);
    if (call == NULL) {
        if (exchange->code == FS_OK)
            fs_slab_free(exchange->reply);
        fs_slab_free(attempt);
        return;
    }
    if (exchange->code == FS_OK) {
        record(channel, server, call->pace, channel->now_us - attempt->started_us);
        end_answered(channel, call, attempt);
        fs_slab_free(attempt);
        return;
    }
    int code = exchange->code;
    bool unprocessed = exchange->unprocessed, answered = exchange->answered;
    remember(call, server, code, exchange->error.msg, exchange->error.len);
    call->avoid = server->peer.id;
    bool last = call->tries[0] == attempt;
    call->tries[!last] = NULL;
    if (last) {
        call->tries[0] = call->tries[1];
        call->tries[1] = NULL;
    }
    fs_slab_free(attempt);
    if (call->tries[0] != NULL && (unprocessed || !answered || retryable(channel, code)))
        return; /* the other attempt may do better */
    if (call->tries[0] != NULL)
        end_failed(channel, call, index_of(server));
    else
        once_more_or_end(channel, call, code, unprocessed, server);
}

/* ---- beginnings --------------------------------------------------------------------------------- */

static fs_choice choose(fs_channel *channel, uint64_t avoid)
{
    return fs_balance_choose(channel->peers, channel->n, channel->config.balance, &channel->turn, avoid,
                             channel->now_us);
}

/* Makes an attempt, or lets the call wait for a connection, or ends it. False when it waits, as any other
 * would. */
static bool place(fs_channel *channel, fs_channel_call *call)
{
    if (channel->now_us >= call->deadline_us) {
        end_deadline(channel, call);
        return true;
    }
    /* Each round puts one server to rest or finds that one takes no calls after all; more rounds than that
     * would mean that the same ones are asked again and again. */
    for (uint32_t round = 0; round < 2 * channel->n + 2; round++) {
        fs_choice choice = choose(channel, call->avoid);
        if (choice.dial != NULL)
            fs_server_dial(channel, fs_server_of(choice.dial));
        if (choice.peer != NULL) {
            fs_server *server = fs_server_of(choice.peer);
            fs_wire *wire = fs_server_wire(channel, server);
            int rc = wire != NULL ? attempt_start(channel, call, wire, false) : -FS_UNAVAILABLE;
            if (rc == 0) {
                dequeue(channel, call);
                call->state = FS_CALL_RUNNING;
                int64_t delay_us = call->no_retry ? 0 : channel->hedge_delays_us[call->pace];
                if (delay_us > 0 && delay_us < channel->config.hedge_min_us)
                    delay_us = channel->config.hedge_min_us;
                call->hedge_us = delay_us > 0 ? channel->now_us + delay_us : INT64_MAX;
                arm(channel, call);
                return true;
            }
            if (rc == -FS_RESOURCE_EXHAUSTED) {
                fs_call_fail(channel, call, FS_RESOURCE_EXHAUSTED, "out of memory");
                return true;
            }
            fs_server_look(channel, server);
        } else if (choice.dial == NULL || choice.dial->standing != FS_PEER_IDLE) {
            if (!choice.wait && !channel->config.wait_for_ready) {
                refused_everywhere(channel, call);
                return true;
            }
            break;
        }
    }
    enqueue(channel, call);
    arm(channel, call);
    return false;
}

void fs_call_begin(fs_channel *channel, fs_channel_call *call)
{
    call->done = false;
    call->code = FS_OK;
    call->error.code = FS_OK;
    call->error.len = 0;
    call->reply = NULL;
    call->reply_bytes = 0;
    call->reply_encoding = 0;
    call->attempts = 0;
    call->hedges = 0;
    call->endpoint = -1;
    call->prev = NULL;
    call->timer = (fs_timer){.kind = FS_TIMER_CALL};
    call->tries[0] = NULL;
    call->tries[1] = NULL;
    call->waiter = NULL;
    call->avoid = 0;
    call->started_us = channel->now_us;
    call->retry_us = INT64_MAX;
    call->hedge_us = INT64_MAX;
    call->refusals = 0;
    call->unprocessed = 0;
    call->failures = 0;
    call->state = FS_CALL_RESTING;
    call->pace = channel->config.hedge_percentile > 0 ? pace_of(channel, call->path) : 0;
    channel->stats.calls++;
    const fs_channel_config *config = &channel->config;
    double retry = channel->retry_tokens + config->retry_ratio;
    double hedge = channel->hedge_tokens + config->hedge_ratio;
    channel->retry_tokens = retry < config->retry_burst ? retry : config->retry_burst;
    channel->hedge_tokens = hedge < config->hedge_burst ? hedge : config->hedge_burst;
    if (fs_timers_promise(&channel->timers) != 0) {
        fs_fail(&call->error, FS_RESOURCE_EXHAUSTED, "out of memory");
        call->code = FS_RESOURCE_EXHAUSTED;
        tell(channel, call);
        return;
    }
    call->next = channel->calls;
    if (call->next != NULL)
        call->next->prev = call;
    channel->calls = call;
    place(channel, call);
}

/* A second attempt, if there is somebody to make it. */
static void hedge(fs_channel *channel, fs_channel_call *call)
{
    call->hedge_us = INT64_MAX;
    fs_attempt *first = call->tries[0];
    if (call->tries[1] != NULL || first->ended)
        return;
    if (channel->hedge_tokens < 1) {
        channel->stats.budget_refusals++;
        return;
    }
    fs_choice choice = choose(channel, first->server->peer.id);
    if (choice.dial != NULL)
        fs_server_dial(channel, fs_server_of(choice.dial));
    if (choice.peer == &first->server->peer && channel->n > 1)
        choice.peer = NULL;
    if (choice.peer == NULL) {
        for (uint32_t i = 0; i < channel->n; i++) {
            const fs_peer *peer = channel->peers[i];
            if (peer != &first->server->peer && peer->standing == FS_PEER_DIALLING)
                call->hedge_us = channel->now_us + HEDGE_AGAIN_US;
        }
        return;
    }
    fs_wire *wire = fs_server_wire(channel, fs_server_of(choice.peer));
    if (wire == NULL || attempt_start(channel, call, wire, true) != 0)
        return; /* the first attempt is still there */
    channel->hedge_tokens -= 1;
    channel->stats.hedges++;
    call->hedges++;
}

void fs_call_due(fs_channel *channel, fs_channel_call *call)
{
    int64_t now_us = channel->now_us;
    if (now_us >= call->deadline_us) {
        end_deadline(channel, call);
    } else if (call->state == FS_CALL_BACKING_OFF && now_us >= call->retry_us) {
        place(channel, call);
    } else {
        if (call->state == FS_CALL_RUNNING && now_us >= call->hedge_us)
            hedge(channel, call);
        arm(channel, call);
    }
}

void fs_queue_serve(fs_channel *channel)
{
    fs_channel_call *next;
    for (fs_channel_call *call = channel->queue_first; call != NULL; call = next) {
        next = call->queue_next;
        if (!place(channel, call))
            break;
    }
    if (channel->queue_first != NULL)
        fs_servers_watch(channel);
}
