/* call_check: whether a request fits the signature that it asks for, in TF Serving's codes and words.
 *
 * Shared by call.c, call_predict.c, call_infer.c and multi.c; nobody else includes it. All of it runs on the
 * owner's thread, inside a bracket, on a call that is not queued yet. Each function gives 0, or -code with *err
 * filled. */
#ifndef FS_CALL_CHECK_H
#define FS_CALL_CHECK_H

#include "call.h"
#include "text.h"

#define FS_METHOD_PREDICT "tensorflow/serving/predict"
#define FS_METHOD_CLASSIFY "tensorflow/serving/classify"
#define FS_METHOD_REGRESS "tensorflow/serving/regress"

static inline fs_slice fs_signature_or_default(fs_slice name)
{
    return name.len > 0 ? name : fs_slice_of("serving_default");
}

/* ---- call.c ------------------------------------------------------------------------------------- */

/* A call without a request; NULL when out of memory. */
fs_call *fs_call_new(fs_owner *owner, fs_rpc *rpc);

/* The last step of the checks below, for a call with its queue and views: dtypes and sizes, budgets, and how it
 * can run: in batches, in pieces, or alone. */
int fs_call_fit(fs_call *call, fs_error *err);

/* A call that was parsed, as far as that went, is refused with *err: settles with what, and counts it, for the
 * signature of `queue`, whose version is pinned, or NULL. */
void fs_call_refused(fs_call *call, const fs_queue *queue, fs_error *err);

/* ---- call_predict.c ------------------------------------------------------------------------------ */

/* Finds the queue, the inputs and the outputs of a Predict. */
int fs_predict_check(fs_call *call, fs_servable *servable, fs_error *err);

/* ---- call_infer.c -------------------------------------------------------------------------------- */

/* Finds the queue, the input and the outputs of a Classify or Regress. */
int fs_infer_check(fs_call *call, fs_servable *servable, fs_error *err);

/* Of these, in the order in which TF Serving looks at them: whether a signature is one of that kind, and the
 * examples as the only input of a call whose queue is found. */
int fs_infer_check_signature(const fs_call *call, enum fs_call_kind kind, const fs_queue *queue, fs_error *err);
int fs_infer_check_input(fs_call *call, const fs_examples *examples, fs_error *err);

#endif
