/* front: see front.h. */
#include "front.h"

#include <string.h>

#include "engine.h"
#include "named_run.h"

static int add(fs_front *front, fs_method method)
{
    if (front->n_methods == FS_MAX_METHODS)
        return -FS_RESOURCE_EXHAUSTED;
    front->methods[front->n_methods++] = method;
    return 0;
}

int fs_front_add(fs_front *front, const char *path, bool streaming)
{
    return add(front, (fs_method){.path = path, .streaming = streaming});
}

int fs_front_add_engine(fs_front *front, const char *path, enum fs_call_kind kind)
{
    return add(front, (fs_method){.path = path, .engine = true, .kind = kind});
}

int fs_front_add_named_run(fs_front *front, const char *path)
{
    return add(front, (fs_method){.path = path, .named_run = true});
}

static void *lookup(void *ctx, const uint8_t *path, size_t len, bool *streaming)
{
    fs_front *front = ((fs_front_ctx *)ctx)->front;
    for (int i = 0; i < front->n_methods; i++) {
        fs_method *m = &front->methods[i];
        if (strlen(m->path) == len && memcmp(m->path, path, len) == 0) {
            *streaming = m->streaming;
            return m;
        }
    }
    return NULL;
}

/* Mails an event to the loop. false: out of memory. */
static bool mail_event(fs_front_ctx *ctx, fs_rpc *rpc, enum fs_event_kind kind, uint8_t *data, size_t len,
                       bool compressed)
{
    fs_event *event = fs_slab_alloc(ctx->owner->slab, sizeof *event);
    if (event == NULL)
        return false;
    *event = (fs_event){
        .mail.deliver = ctx->front->on_event,
        .front = ctx->front,
        .kind = kind,
        .rpc = rpc,
        .owner = ctx->owner,
        .method = (int)((fs_method *)rpc->method - ctx->front->methods),
        .admin = ctx->admin,
        .data = data,
        .len = len,
        .compressed = compressed,
    };
    fs_owner_post(ctx->front->loop, &event->mail);
    return true;
}

static void on_call(void *ctx, fs_rpc *rpc)
{
    fs_front_ctx *c = ctx;
    const fs_method *method = rpc->method;
    rpc->transport = c->transport;
    if (method->engine)
        fs_call_start(c->owner, rpc, method->kind);
    else if (method->named_run)
        fs_named_run_start(c->owner, rpc);
    else if (!mail_event(c, rpc, FS_EVENT_CALL, NULL, 0, false))
        fs_rpc_finish(rpc, FS_RESOURCE_EXHAUSTED, "out of memory", 13, NULL, 0);
}

static void on_open(void *ctx, fs_rpc *rpc)
{
    rpc->user = NULL;
    rpc->transport = ((fs_front_ctx *)ctx)->transport;
    if (!mail_event(ctx, rpc, FS_EVENT_OPEN, NULL, 0, false))
        fs_rpc_finish(rpc, FS_RESOURCE_EXHAUSTED, "out of memory", 13, NULL, 0);
}

static void on_message(void *ctx, fs_rpc *rpc, uint8_t *message, size_t len, bool compressed)
{
    /* Without memory for the event the message is lost, and so are those after it: the coroutine sees the
     * stream end early, but never a hole in it. */
    if (rpc->user != NULL || !mail_event(ctx, rpc, FS_EVENT_MESSAGE, message, len, compressed)) {
        rpc->user = rpc; /* nothing but a mark */
        fs_slab_free(message);
        fs_rpc_consume(rpc, len);
    }
}

static void on_half_close(void *ctx, fs_rpc *rpc)
{
    mail_event(ctx, rpc, FS_EVENT_HALF_CLOSE, NULL, 0, false);
}

static void on_cancel(void *ctx, fs_rpc *rpc)
{
    const fs_method *method = rpc->method;
    /* A call of the engine's sees rpc->cancelled when its turn comes. */
    if (!method->engine && !method->named_run)
        mail_event(ctx, rpc, FS_EVENT_CANCEL, NULL, 0, false);
}

/* Of the engine's methods: what it never gets to see is counted all the same. */
static void on_refused(void *ctx, const fs_rpc *rpc, int code)
{
    const fs_front_ctx *c = ctx;
    const fs_method *method = rpc->method;
    if (!method->engine && !method->named_run)
        return;
    fs_metrics *metrics = c->owner->engine->metrics;
    int kind = method->engine ? (int)method->kind : FS_METRICS_SESSION_RUN;
    if (FS_COUNTED(metrics))
        fs_metrics_unresolved(metrics, kind, c->transport, code);
}

const fs_h2_handler fs_front_handler = {
    .lookup = lookup,
    .on_call = on_call,
    .on_open = on_open,
    .on_message = on_message,
    .on_half_close = on_half_close,
    .on_cancel = on_cancel,
    .on_refused = on_refused,
};

int fs_front_admit(fs_owner *loop, const fs_rpc *rpc, fs_slice model, fs_error *err)
{
    fs_epoch_enter(&loop->engine->epoch, loop->reader);
    int rc = fs_access_check(&loop->engine->access, model, &rpc->bearer, err);
    fs_epoch_leave(loop->reader);
    return rc;
}

/* ---- answers ------------------------------------------------------------------------------- */

typedef struct consumed {
    fs_mail mail; /* first */
    fs_rpc *rpc;
    size_t len;
} consumed;

/* On the thread that owns the connection. */
static void deliver_consumed(fs_mail *mail)
{
    consumed *c = (consumed *)mail;
    fs_rpc_consume(c->rpc, c->len);
    fs_slab_free(c);
}

void fs_front_consume(fs_owner *loop, fs_owner *owner, fs_rpc *rpc, size_t len)
{
    consumed *c = fs_slab_alloc(loop->slab, sizeof *c);
    if (c == NULL)
        return;
    *c = (consumed){.mail.deliver = deliver_consumed, .rpc = rpc, .len = len};
    fs_owner_post(owner, &c->mail);
}

typedef struct answer {
    fs_mail mail; /* first */
    fs_owner *owner;
    fs_rpc *rpc;
    void *frame;
    size_t len;
    bool finish;
    int code;
    size_t text_len;
    char text[];
} answer;

/* On the thread that owns the connection. */
static void deliver_answer(fs_mail *mail)
{
    answer *a = (answer *)mail;
    fs_rpc *rpc = a->rpc;
    if (rpc->h2 != NULL)
        a->owner->touch(a->owner->ctx, rpc->conn);
    bool unary = !((fs_method *)rpc->method)->streaming;
    void *frame = a->frame;
    size_t len = a->len;
    if (frame != NULL && !(unary && a->finish)) {
        if (fs_rpc_send(rpc, frame, len) != 0)
            fs_slab_free(frame);
        frame = NULL;
        len = 0;
    }
    if (a->finish)
        fs_rpc_finish(rpc, a->code, a->text, a->text_len, frame, len);
    fs_slab_free(a);
}

int fs_front_answer(fs_owner *loop, fs_owner *owner, fs_rpc *rpc, void *frame, size_t len, bool finish,
                    int code, const char *text, size_t text_len)
{
    answer *a = fs_slab_alloc(loop->slab, sizeof *a + text_len);
    if (a == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    *a = (answer){.mail.deliver = deliver_answer, .owner = owner, .rpc = rpc, .frame = frame, .len = len,
                  .finish = finish, .code = code, .text_len = text_len};
    if (text_len > 0)
        memcpy(a->text, text, text_len);
    fs_owner_post(owner, &a->mail);
    return 0;
}
