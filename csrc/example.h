/* example: tf.Example messages from columns, two passes: measure, then write.
 *
 * Called by the client's bindings, on any thread, without the GIL. Knows Example's wire format and columns.
 * An example's features are written in the order given; each has one list of values, packed where they are
 * numbers. The memory behind the columns is the user's: if it changes between the passes, writing fails. */
#ifndef FS_EXAMPLE_H
#define FS_EXAMPLE_H

#include "column.h"

/* One feature of every example. Its kind is int64_list for integers and bools, float_list for floats, and
 * bytes_list for text. */
typedef struct fs_feature {
    fs_slice name;          /* UTF-8 */
    fs_column column;
    const int64_t *offsets; /* NULL: example r has the column's row r. Else the column is of width 1 and
                             * example r has its rows [offsets[r], offsets[r + 1]) */
    const uint8_t *present; /* NULL: every example has the feature. Else those r whose present[r] is not 0 */
} fs_feature;

/* Fills sizes[r - first] with the bytes of example r's Features, for examples [first, end), and *bytes with
 * those of all of them as a repeated field of number 1. 0; -FS_RESOURCE_EXHAUSTED where any message passes
 * 2 GiB. */
int fs_examples_measure(const fs_feature *features, uint32_t n_features, int64_t first, int64_t end,
                        uint32_t *sizes, size_t *bytes);

/* Bytes of an Example whose Features have `size`. */
size_t fs_example_size(uint32_t size);

/* Writes example `row`, whose Features have `size` as measured; returns its end, or NULL where the columns
 * have changed. */
uint8_t *fs_example_write(const fs_feature *features, uint32_t n_features, int64_t row, uint32_t size,
                          uint8_t *dst);

/* Writes examples [first, end) as a repeated field of number 1; the same. */
uint8_t *fs_examples_write(const fs_feature *features, uint32_t n_features, int64_t first, int64_t end,
                           const uint32_t *sizes, uint8_t *dst);

#endif
