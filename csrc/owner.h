/* owner: a thread that owns connections, as the engine sees it: where finished work goes back to.
 *
 * There is one for uvloop's thread and one for each epoll thread. What comes back is mail: a node with
 * the function that the owner's thread runs on it. */
#ifndef FS_OWNER_H
#define FS_OWNER_H

#include "clock.h"
#include "epoch.h"
#include "mailbox.h"
#include "slab.h"
#include "trace_ring.h"

typedef struct fs_engine fs_engine;

typedef struct fs_mail {
    fs_node node; /* first: the mailbox links these */
    void (*deliver)(struct fs_mail *mail); /* on the owner's thread; the mail belongs to it */
} fs_mail;

typedef struct fs_owner {
    fs_engine *engine;
    fs_mailbox *box;
    fs_slab *slab;
    fs_epoch_reader *reader;
    uint64_t random; /* the state of its generator, for routes */
    int64_t now_us;  /* while it delivers: the time, as of a few mails ago at most */
    /* Something was submitted for `conn`: flush it once this round of mail is delivered. */
    void (*touch)(void *ctx, void *conn);
    void *ctx;
    fs_track *track; /* what the thread tells; NULL: nothing */
} fs_owner;

static inline void fs_owner_post(fs_owner *owner, fs_mail *mail)
{
    fs_mailbox_post(owner->box, &mail->node);
}

enum { FS_OWNER_MAILS_PER_LOOK = 8 }; /* at the clock */

/* Delivers everything that is in the owner's box. Its thread. */
static inline void fs_owner_deliver(fs_owner *owner)
{
    fs_node *node = fs_mailbox_take(owner->box);
    for (unsigned n = 0; node != NULL; n++) {
#ifndef FS_NO_METRICS
        if (n % FS_OWNER_MAILS_PER_LOOK == 0)
            owner->now_us = fs_now_us();
#endif
        fs_node *next = node->next;
        fs_mail *mail = (fs_mail *)node;
        mail->deliver(mail);
        node = next;
    }
}

#endif
