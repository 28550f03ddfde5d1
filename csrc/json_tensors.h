/* json_tensors: the tensors of a predict request in JSON, straight from its text.
 *
 * Called by the gateway, through json_tensors.pyx, on its loop. Takes what programs write: numbers and bools in
 * lists, by rows or by columns, of the inputs that a signature has. Whatever is otherwise, wrong or only unusual, it
 * leaves to the reader that knows everything and says what is wrong; what it takes, that one would have taken, with
 * the same values. Knows nothing of strings, base64 and half floats. */
#ifndef FS_JSON_TENSORS_H
#define FS_JSON_TENSORS_H

#include <stdbool.h>

#include "dense.h"

enum { FS_JSON_MAX_DIMS = 8 };

/* An input, and what the request has for it. */
typedef struct fs_json_tensor {
    fs_slice name;  /* one with characters beyond ASCII, or that JSON escapes, is never found */
    int32_t dtype;  /* float, double, bool, or a whole number of 8 to 64 bits */
    int32_t ndim;
    int64_t dims[FS_JSON_MAX_DIMS];
    uint8_t *data;  /* malloc'ed or NULL, the caller's to free whatever was returned */
    size_t bytes;
    size_t room;    /* json_tensors.c's own, as is all that follows */
    bool there;
    uint32_t next;  /* which came after it in the row before */
} fs_json_tensor;

/* Whether tensors of this type can be read here. */
bool fs_json_tensor_dtype(int32_t dtype);

/* The signature that a request asks for, where its text begins or ends with that; otherwise nothing. */
fs_slice fs_json_signature(fs_slice text);

/* Reads a whole request for the signature of that name, nothing for the default one, whose inputs are the `count`
 * `tensors`: name and dtype are given, the rest is written, whatever comes of it. *in_rows: they came as "instances".
 * 0; -FS_INVALID_ARGUMENT: not this way; -FS_RESOURCE_EXHAUSTED: no memory. */
int fs_json_tensors_read(fs_slice text, fs_slice signature, fs_json_tensor *tensors, uint32_t count, bool *in_rows);

#endif
