/* tf_explain: which node of a graph an error comes from, where TensorFlow's executor does not say.
 *
 * The executor for one thread is the fastest and ends an error without the node that it comes from, which others
 * write behind it, "[[{{node Sum}}]]". A function that must not be inlined is run by an executor of its own, which does
 * write it. So the call that a signature is gets a twin in the graph, of such a copy of its function: same inputs,
 * same variables, never run unless there is an error to be explained.
 *
 * Used by tf.c while it opens a model, on a loader thread. */
#ifndef FS_TF_EXPLAIN_H
#define FS_TF_EXPLAIN_H

#include <stdbool.h>
#include <stdint.h>

#include "status.h"
#include "tf_api.h"

/* Whether sessions with this ConfigProto leave nodes out, and their graphs may still be added to. */
bool fs_tf_may_explain(fs_slice config);

/* Adds a twin for the call that all `n` of `fetches` are outputs of, and fills `twins` with its outputs; one that was
 * added for another signature serves again. 0; -FS_FAILED_PRECONDITION when there can be none, since they are not
 * outputs of one function call that waits for nothing else, or TensorFlow refuses something: a signature does without then;
 * -FS_RESOURCE_EXHAUSTED. The session must be extended afterwards. */
int fs_tf_explain(const fs_tf_api *api, TF_Graph *graph, const TF_Output *fetches, uint32_t n, TF_Output *twins,
                  TF_Status *status);

/* An error's text without what calls of the copies put before it: the text that the function itself would have
 * given. Any thread. */
const char *fs_tf_explained(const char *text);

#endif
