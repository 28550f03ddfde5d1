/* front: which method a path is, and who serves it: what runs a model goes to the engine, everything else to the
 * loop.
 *
 * Gives the sessions of every owner thread their handler. Control-plane calls travel to the loop's thread
 * as events, by mail, whichever thread owns their connection; answers travel back the same way. So Python
 * coroutines serve them without ever touching a session, and no I/O thread ever waits for Python. */
#ifndef FS_FRONT_H
#define FS_FRONT_H

#include "call.h"
#include "h2.h"
#include "owner.h"

enum { FS_MAX_METHODS = 64 };

typedef struct fs_method {
    const char *path; /* "/package.Service/Method" */
    bool streaming;
    bool engine;            /* served by calls of this kind, */
    enum fs_call_kind kind; /*   and by no event */
    bool named_run;         /* the engine's, too: SessionRun */
} fs_method;

/* Shared by all owners, constant once connections are served. */
typedef struct fs_front {
    fs_method methods[FS_MAX_METHODS];
    int n_methods;
    fs_owner *loop; /* where control-plane events go */
    void (*on_event)(fs_mail *mail); /* run there on each; frees it with fs_slab_free */
} fs_front;

enum fs_event_kind {
    FS_EVENT_CALL,       /* a whole unary request: rpc->message */
    FS_EVENT_OPEN,       /* a streaming call begins; */
    FS_EVENT_MESSAGE,    /*   a message of it: data, a slab block that is the receiver's; */
    FS_EVENT_HALF_CLOSE, /*   no more messages */
    FS_EVENT_CANCEL,     /* the caller is gone; an answer is still due */
};

typedef struct fs_event {
    fs_mail mail; /* first */
    fs_front *front;
    enum fs_event_kind kind;
    fs_rpc *rpc;
    fs_owner *owner; /* of its connection */
    int method;      /* index in methods */
    bool admin;      /* as in its connection's fs_front_ctx */
    uint8_t *data;
    size_t len;
    bool compressed;
} fs_event;

/* Adds a method of the loop's, or of the engine's, which do not stream; -FS_RESOURCE_EXHAUSTED when there are too
 * many. `path` is copied by reference. */
int fs_front_add(fs_front *front, const char *path, bool streaming);
int fs_front_add_engine(fs_front *front, const char *path, enum fs_call_kind kind);

/* The same for SessionRun, which the engine has threads for. */
int fs_front_add_named_run(fs_front *front, const char *path);

/* The ctx of a session's handler: what the connections of one owner to listeners of one kind have in common. */
typedef struct fs_front_ctx {
    fs_front *front;
    fs_owner *owner;
    bool admin; /* they came to the admin address */
    uint8_t transport; /* enum fs_transport */
} fs_front_ctx;

/* For fs_h2_new, with an fs_front_ctx as ctx. */
extern const fs_h2_handler fs_front_handler;

/* The loop is done with `len` bytes of a streaming call's messages, which is not finished yet: they no longer
 * count as in flight. Without memory to say so, they count until the call ends. The loop's thread. */
void fs_front_consume(fs_owner *loop, fs_owner *owner, fs_rpc *rpc, size_t len);

/* Whether the caller may use `model`: as fs_access_check. `rpc` is not finished. The loop's thread. */
int fs_front_admit(fs_owner *loop, const fs_rpc *rpc, fs_slice model, fs_error *err);

/* Answers a control-plane call from the loop's thread: a message (`frame` is a slab block with a whole gRPC
 * frame, or NULL), and when `finish` the status. -FS_RESOURCE_EXHAUSTED when out of memory; then `frame` is
 * still the caller's. */
int fs_front_answer(fs_owner *loop, fs_owner *owner, fs_rpc *rpc, void *frame, size_t len, bool finish,
                    int code, const char *text, size_t text_len);

#endif
