/* resolve: which version a ModelSpec means, for calls that the engine does not serve itself.
 *
 * On the thread of the owner that asks. The answer is the one that a Predict call with the same headers would get
 * at this moment; nothing is pinned. */
#ifndef FS_RESOLVE_H
#define FS_RESOLVE_H

#include "owner.h"
#include "predict.h"
#include "sticky.h"

/* Reads the bytes of a ModelSpec into *model, whose version is then the one that answers. Its slices point into
 * `spec`. `kept`: of the call's headers, or NULL. 0; -FS_INTERNAL, without a text, where the bytes are no ModelSpec;
 * otherwise -code with *err as fs_catalog_find has it. */
int fs_resolve(fs_owner *owner, fs_slice spec, const fs_kept *kept, fs_model_ref *model, fs_error *err);

#endif
