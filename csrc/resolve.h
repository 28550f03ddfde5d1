/* resolve: which version a ModelSpec means, for calls that the engine does not serve itself.
 *
 * On the thread of the owner that asks. The answer is the one that a Predict call with the same headers would get
 * at this moment; nothing is pinned. */
#ifndef FS_RESOLVE_H
#define FS_RESOLVE_H

#include "h2.h"
#include "owner.h"
#include "predict.h"

/* Reads the bytes of a ModelSpec into *model, whose version is then the one that answers `rpc` (NULL: nobody's call,
 * without headers). Its slices point into `spec`. 0; -FS_INTERNAL, without a text, where the bytes are no ModelSpec;
 * otherwise -code with *err as fs_catalog_find has it. */
int fs_resolve(fs_owner *owner, const fs_rpc *rpc, fs_slice spec, fs_model_ref *model, fs_error *err);

#endif
