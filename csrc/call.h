/* call: one Predict, Classify, Regress or MultiInference from the moment its bytes are complete until its reply is
 * the session's.
 *
 * Made on the owner's thread, which checks it against the signature and queues it; from then on it is the
 * queue's, then its batch's; mailed back to the owner, who finishes the rpc and frees it. The owner never
 * touches a call that is away, save rpc->cancelled. */
#ifndef FS_CALL_H
#define FS_CALL_H

#include <pthread.h>

#include "h2.h"
#include "infer_request.h"
#include "owner.h"
#include "request_log.h"
#include "route.h"
#include "servable.h"
#include "trace_ring.h"

/* What is asked for. All of them run as a signature; they differ in how inputs and outputs travel. */
enum fs_call_kind { FS_CALL_PREDICT, FS_CALL_CLASSIFY, FS_CALL_REGRESS, FS_CALL_MULTI_INFERENCE };

/* Of Classify and Regress, where in fs_call.outputs what is: a regression's values count as scores. */
enum { FS_OUTPUT_CLASSES, FS_OUTPUT_SCORES };
#define FS_NO_OUTPUT UINT32_MAX

typedef struct fs_multi fs_multi; /* multi.h */

/* What the pieces of a call share, and their answers, put together again. In the call's arena. */
typedef struct fs_join {
    pthread_mutex_t mutex; /* two executors may finish pieces at once */
    int64_t rows_done;
    void **inputs;      /* n_inputs: decoded whole, where a piece finds no quick way to its rows; or NULL */
    fs_tensor *outputs; /* n_outputs of the signature, with room for all rows; NULL before the first piece */
} fs_join;

struct fs_call {
    fs_mail mail; /* first */
    fs_rpc *rpc;
    fs_owner *owner;
    fs_queue *queue;
    fs_call *next;          /* in the queue's waiting list, or in a list of dropped ones */
    fs_meter *meter;        /* where it is counted, which it may use after its version has closed; see fs_queue_push */
    int64_t taken_us;       /* when the first of its rows were taken for a batch; 0: none was */
    fs_arena arena;
    enum fs_call_kind kind;
    fs_predict_request request; /* of other kinds its model only */
    fs_infer_request *infer;    /* of kinds other than Predict, NULL in tasks */
    fs_examples *examples;      /* of Classify and Regress, which have this one input */
    fs_multi *multi;            /* of MultiInference, once it is checked: its tasks */
    fs_call *whole;             /* of a task: the MultiInference that it is of */
    fs_tensor_view *views;  /* n_inputs of the signature, in its order */
    uint32_t *outputs;      /* which of the signature's outputs, in the reply's order */
    uint32_t n_outputs;     /* of Predict */
    bool solo;              /* runs alone, unpadded, on the plain variant */
    bool rows_only;         /* its inner dims are the signature's own, all known */
    int64_t rows;           /* dim 0 of every input; 1 when solo */
    int64_t rows_sent;      /* dim 0 of the first input, for the record */
    int64_t taken;          /* rows that are in batches already */
    fs_join *join;          /* of a call with more rows than a batch takes */

    fs_route *route;        /* what chose its version, a reference; or NULL */
    enum fs_side side;
    bool shadowed;          /* once answered it becomes a shadow */
    fs_request_log *log;    /* once answered it is logged, by these sinks; a reference, or NULL */
    uint8_t log_sinks;
    fs_trace_event *span;   /* told when it is answered; a slab block, or NULL */
    void (*done)(fs_call *call); /* of fs_call_run; NULL: it is a session's */

    uint8_t *inflated;      /* the message when it came compressed; a slab block */
    size_t inflated_len;

    int code;               /* the outcome */
    char *text;             /* its message; a slab block, or NULL */
    size_t text_len;
    void *reply;            /* a whole gRPC frame, of a task a part of one; a slab block */
    size_t reply_len;
};

/* The rows that a call counts in its queue. */
static inline int64_t fs_call_weight(const fs_call *call)
{
    return call->rows > 0 ? call->rows : 1;
}

/* A unary request of that kind is complete: fs_h2_handler.on_call's work. Owner's thread. */
void fs_call_start(fs_owner *owner, fs_rpc *rpc, enum fs_call_kind kind);

/* Runs the Predict in `rpc->message`, which is not compressed, on that version of its model for nobody's session.
 * `rpc` is as fs_h2 would hand it over, without a session, and the caller's until `done`, which gets the call on
 * the owner's thread, outcome set, and ends with fs_call_discard. Its outcome counts in the new side of `route`. 0,
 * or -code: `done` will not be called. Owner's thread. */
int fs_call_run(fs_owner *owner, fs_rpc *rpc, int64_t version, fs_route *route, void (*done)(fs_call *call),
                fs_error *err);
void fs_call_discard(fs_call *call);

/* Inflates the call's message, after which mailing it goes on with it or refuses it. false: that would be
 * more than `limit` bytes, though not too much for a message; nothing is done. The unpacker's thread, or
 * the owner's; `slab` is the calling thread's. */
bool fs_call_inflate(fs_call *call, fs_slab *slab, size_t limit);

/* Sets the outcome of a call that is away. `slab` is the calling thread's; without memory the text is
 * lost. */
void fs_call_fail(fs_call *call, fs_slab *slab, int code, const char *text, size_t len);

/* Calls on their way home: linked newest first as fs_mailbox_post_chain wants them, by owner. */
enum { FS_CHAINS = 16 };
typedef struct fs_homeward {
    struct {
        fs_owner *owner;
        fs_node *first, *last;
    } chain[FS_CHAINS];
    int n;
    bool routed; /* some of them count in a route's figures */
} fs_homeward;

/* Adds a finished call, which belongs to its owner from the next fs_homeward_post on at the latest. */
void fs_homeward_add(fs_homeward *homeward, fs_call *call);
void fs_homeward_post(fs_homeward *homeward);

#endif
