/* vocab: terms, and at which place of the list each stands.
 *
 * Made once, by any thread, and only read afterwards, by any number of threads. Open addressing at a load of
 * a half at most; a slot is eight bytes, so that a term that is not there costs one cache line. */
#ifndef FS_VOCAB_H
#define FS_VOCAB_H

#include "column.h"

typedef struct fs_vocab fs_vocab;

#define FS_VOCAB_MAX_TERMS ((int64_t)1 << 31)

/* From a column of width 1, of text or of integers, whose terms are copied; it must not change meanwhile.
 * NULL: *repeated is the row of a term that was there before, or -1 when out of memory or beyond
 * FS_VOCAB_MAX_TERMS. */
fs_vocab *fs_vocab_new(const fs_column *terms, int64_t *repeated);
void fs_vocab_free(fs_vocab *vocab);

int64_t fs_vocab_terms(const fs_vocab *vocab);
size_t fs_vocab_bytes(const fs_vocab *vocab); /* of memory */

/* The place of a term, or -1. `fingerprint` is fs_fingerprint's of `text`. For a vocabulary of text. */
int64_t fs_vocab_find_text(const fs_vocab *vocab, fs_slice text, uint64_t fingerprint);

/* The same for one of integers. */
int64_t fs_vocab_find_int(const fs_vocab *vocab, int64_t term);

#endif
