/* examples: the tf.Examples of a Classify, Regress or MultiInference request, where they lie in it.
 *
 * Found on the thread that owns the connection, which only counts them; looked at one by one on executors, when
 * they become the strings of a batch. Knows tensorflow.serving.Input and tensorflow.Example, no signature. */
#ifndef FS_EXAMPLES_H
#define FS_EXAMPLES_H

#include <stdbool.h>
#include <stdint.h>

#include "outcome.h"
#include "slab.h"

typedef struct fs_examples {
    fs_slice list;    /* an ExampleList, or one with context */
    fs_slice context; /* an Example that comes before each; empty: none */
    int64_t count;
    uint64_t bytes;   /* of all of them, the context in each */
    uint8_t *room;    /* with a context: `bytes` bytes of the caller's, in which they are put together */
} fs_examples;

/* The Inputs of one request, of which there is one; more would merge. All zeros: none yet. */
typedef struct fs_input {
    uint32_t lists;  /* seen in all */
    uint32_t first;  /* which of them is the first that counts: of two kinds the last one set rules */
    uint32_t kind;   /* the field of Input that it is; 0: none */
    size_t bytes;    /* of those that count */
    fs_slice last;
} fs_input;

/* Adds a field's bytes. False: malformed. */
bool fs_input_add(fs_input *input, fs_slice bytes);

/* What has been added, as examples; `request` is the message whose field FS_INPUT_FIELD the bytes were. 0;
 * -FS_INTERNAL where the lists are none (each Example is still to be looked at); -FS_RESOURCE_EXHAUSTED.
 * Slices point into the request, or into the arena where there was something to merge. */
#define FS_INPUT_FIELD 2
int fs_input_end(const fs_input *input, fs_arena *arena, fs_slice request, fs_examples *out);

/* Whether all of them, and the context, are Examples: what gRPC has found out before TF Serving looks. */
bool fs_examples_valid(const fs_examples *examples);

/* Examples [first, first + count) as strings that point into the request, or into the room where there is a
 * context. 0, or -FS_INTERNAL where one of them is no Example. Takes time for those before `first`, too. */
int fs_examples_decode(const fs_examples *examples, int64_t first, int64_t count, fs_slice *dst);

#endif
