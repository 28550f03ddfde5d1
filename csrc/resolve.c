/* resolve: see resolve.h. */
#include "resolve.h"

#include "engine.h"
#include "predict_proto.h"

int fs_resolve(fs_owner *owner, const fs_rpc *rpc, fs_slice spec, fs_model_ref *model, fs_error *err)
{
    fs_engine *engine = owner->engine;
    const fs_slice empty = {spec.data, 0};
    *model = (fs_model_ref){.name = empty, .label = empty, .signature = empty};
    if (!fs_model_ref_parse(spec, model))
        return fs_fail(err, FS_INTERNAL, "%s", "");

    fs_turn turn = {.kept = rpc != NULL ? &rpc->kept : NULL, .random = &owner->random,
                    .unlogged = true};
    fs_servable *servable = NULL;
    fs_epoch_enter(&engine->epoch, owner->reader);
    if (rpc == NULL || fs_access_check(&engine->access, model->name, &rpc->bearer, err) == 0)
        servable = fs_catalog_find(engine->catalog, model, &turn, err);
    fs_epoch_leave(owner->reader);
    fs_route_unref(turn.route);
    if (servable == NULL)
        return -err->code;
    model->version = servable->version;
    fs_servable_unpin(servable, 1);
    return 0;
}
