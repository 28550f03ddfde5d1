/* owner: a thread that owns connections, as the engine sees it: where finished work goes back to.
 *
 * There is one for uvloop's thread and one for each epoll thread. What comes back is mail: a node with
 * the function that the owner's thread runs on it. */
#ifndef FS_OWNER_H
#define FS_OWNER_H

#include "epoch.h"
#include "mailbox.h"
#include "slab.h"

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
    /* Something was submitted for `conn`: flush it once this round of mail is delivered. */
    void (*touch)(void *ctx, void *conn);
    void *ctx;
} fs_owner;

static inline void fs_owner_post(fs_owner *owner, fs_mail *mail)
{
    fs_mailbox_post(owner->box, &mail->node);
}

/* Delivers everything that is in the owner's box. Its thread. */
static inline void fs_owner_deliver(fs_owner *owner)
{
    fs_node *node = fs_mailbox_take(owner->box);
    while (node != NULL) {
        fs_node *next = node->next;
        fs_mail *mail = (fs_mail *)node;
        mail->deliver(mail);
        node = next;
    }
}

#endif
