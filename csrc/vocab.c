/* vocab: see vocab.h. */
#include "vocab.h"

#include <stdlib.h>

#include "hash.h"

/* A slot is taken when `place` is not 0. */
typedef struct slot {
    uint32_t tag;   /* the hash's upper half: most terms that are not there differ already here */
    uint32_t place; /* of the term, from 1 on */
} slot;

struct fs_vocab {
    slot *slots;
    uint64_t mask; /* their number, a power of two, less one */
    int64_t n;
    bool text;
    uint64_t *ends; /* text: term i is bytes[ends[i - 1], ends[i]), from 0 for the first */
    uint8_t *bytes;
    int64_t *ints;  /* integers: term i */
};

static uint64_t hash_int(int64_t term)
{
    uint64_t h = (uint64_t)term * UINT64_C(0x9e3779b97f4a7c15);
    h = (h ^ h >> 32) * UINT64_C(0xd6e8feb86659fd93);
    return h ^ h >> 32;
}

static fs_slice term_text(const fs_vocab *v, int64_t i)
{
    uint64_t start = i == 0 ? 0 : v->ends[i - 1];
    return (fs_slice){v->bytes + start, v->ends[i] - start};
}

int64_t fs_vocab_find_text(const fs_vocab *v, fs_slice text, uint64_t fingerprint)
{
    uint32_t tag = (uint32_t)(fingerprint >> 32);
    for (uint64_t at = fingerprint & v->mask;; at = (at + 1) & v->mask) {
        slot s = v->slots[at];
        if (s.place == 0)
            return -1;
        if (s.tag != tag)
            continue;
        fs_slice term = term_text(v, s.place - 1);
        if (term.len == text.len && (text.len == 0 || memcmp(term.data, text.data, text.len) == 0))
            return s.place - 1;
    }
}

int64_t fs_vocab_find_int(const fs_vocab *v, int64_t term)
{
    uint64_t hash = hash_int(term);
    uint32_t tag = (uint32_t)(hash >> 32);
    for (uint64_t at = hash & v->mask;; at = (at + 1) & v->mask) {
        slot s = v->slots[at];
        if (s.place == 0)
            return -1;
        if (s.tag == tag && v->ints[s.place - 1] == term)
            return s.place - 1;
    }
}

/* Term i, which is not there yet. */
static void put(fs_vocab *v, uint64_t hash, int64_t i)
{
    uint64_t at = hash & v->mask;
    while (v->slots[at].place != 0)
        at = (at + 1) & v->mask;
    v->slots[at] = (slot){(uint32_t)(hash >> 32), (uint32_t)(i + 1)};
}

/* The row of a term that is there twice, or -1. */
static int64_t fill_ints(fs_vocab *v, const fs_column *terms)
{
    for (int64_t i = 0; i < v->n; i++) {
        int64_t term = fs_column_int(terms->kind, fs_column_at(terms, i, 0));
        if (fs_vocab_find_int(v, term) >= 0)
            return i;
        v->ints[i] = term;
        put(v, hash_int(term), i);
    }
    return -1;
}

static int64_t fill_texts(fs_vocab *v, const fs_column *terms, uint8_t *scratch)
{
    uint64_t end = 0;
    for (int64_t i = 0; i < v->n; i++) {
        fs_slice term = fs_column_text(terms, fs_column_at(terms, i, 0), scratch);
        uint64_t fingerprint = fs_fingerprint(term);
        if (fs_vocab_find_text(v, term, fingerprint) >= 0)
            return i;
        if (term.len > 0)
            memcpy(v->bytes + end, term.data, term.len);
        end += term.len;
        v->ends[i] = end;
        put(v, fingerprint, i);
    }
    return -1;
}

static size_t text_bytes(const fs_column *terms, uint8_t *scratch)
{
    size_t bytes = 0;
    for (int64_t i = 0; i < terms->rows; i++)
        bytes += fs_column_text(terms, fs_column_at(terms, i, 0), scratch).len;
    return bytes;
}

fs_vocab *fs_vocab_new(const fs_column *terms, int64_t *repeated)
{
    *repeated = -1;
    if (terms->rows > FS_VOCAB_MAX_TERMS)
        return NULL;
    uint64_t n_slots = 16;
    while (n_slots < 2 * (uint64_t)terms->rows)
        n_slots *= 2;

    fs_vocab *v = calloc(1, sizeof *v);
    if (v == NULL)
        return NULL;
    v->n = terms->rows;
    v->text = fs_column_is_text(terms);
    v->mask = n_slots - 1;
    v->slots = calloc(n_slots, sizeof *v->slots);
    uint8_t *scratch = malloc(fs_column_scratch(terms) + 1);
    bool good = v->slots != NULL && scratch != NULL;
    if (good && v->text) {
        v->ends = malloc(((size_t)v->n + 1) * sizeof *v->ends);
        v->bytes = malloc(text_bytes(terms, scratch) + 1);
        good = v->ends != NULL && v->bytes != NULL;
    } else if (good) {
        v->ints = malloc(((size_t)v->n + 1) * sizeof *v->ints);
        good = v->ints != NULL;
    }
    if (good)
        *repeated = v->text ? fill_texts(v, terms, scratch) : fill_ints(v, terms);
    free(scratch);
    if (!good || *repeated >= 0) {
        fs_vocab_free(v);
        return NULL;
    }
    return v;
}

void fs_vocab_free(fs_vocab *v)
{
    if (v == NULL)
        return;
    free(v->slots);
    free(v->ends);
    free(v->bytes);
    free(v->ints);
    free(v);
}

int64_t fs_vocab_terms(const fs_vocab *v)
{
    return v->n;
}

size_t fs_vocab_bytes(const fs_vocab *v)
{
    size_t n = (size_t)v->n;
    size_t terms = !v->text ? n * sizeof *v->ints : n * sizeof *v->ends + (n > 0 ? v->ends[n - 1] : 0);
    return sizeof *v + (v->mask + 1) * sizeof *v->slots + terms;
}
