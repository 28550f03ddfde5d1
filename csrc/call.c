/* call: see call.h. What TF Serving checks before it runs anything is checked here, with its codes and
 * words. */
#include "call.h"

#include <string.h>

#include "clock.h"
#include "compress.h"
#include "engine.h"
#include "queue.h"
#include "shadow.h"
#include "text.h"

enum { UNCOUNTED_BYTES = 4096 }; /* growth of a request that is not worth an entry in the budgets */

void fs_call_discard(fs_call *call)
{
    fs_route_unref(call->route);
    fs_slab_free(call->inflated);
    fs_slab_free(call->text);
    fs_slab_free(call->reply);
    if (call->join != NULL)
        pthread_mutex_destroy(&call->join->mutex);
    fs_arena_clear(&call->arena);
    fs_slab_free(call);
}

/* Back on the owner's thread: the reply becomes the session's. */
static void deliver(fs_mail *mail)
{
    fs_call *call = (fs_call *)mail;
    fs_owner *owner = call->owner;
    if (call->done != NULL) {
        call->done(call);
        return;
    }
    fs_rpc *rpc = call->rpc;
    if (rpc->h2 != NULL)
        owner->touch(owner->ctx, rpc->conn);
    fs_shadow *shadow = call->shadowed && call->code == FS_OK ? fs_shadow_of(call) : NULL;
    void *reply = call->reply;
    call->reply = NULL;
    fs_rpc_finish(rpc, call->code, call->text, call->text_len, reply, call->reply_len);
    fs_call_discard(call);
    if (shadow != NULL)
        fs_shadows_post(owner->engine->shadows, shadow);
}

/* In the figures of the route that chose the call's version. */
static void count_routed(const fs_call *call, bool ran, int64_t now_us)
{
    fs_figures_count(&call->route->figures[call->side], call->code, ran, now_us - call->rpc->arrived_us);
}

void fs_call_fail(fs_call *call, fs_slab *slab, int code, const char *text, size_t len)
{
    call->code = code;
    call->text_len = 0;
    if (call->text == NULL && len > 0)
        call->text = fs_slab_alloc(slab, len);
    if (call->text != NULL && len <= fs_slab_usable(call->text)) {
        memcpy(call->text, text, len);
        call->text_len = len;
    }
}

void fs_homeward_add(fs_homeward *homeward, fs_call *call)
{
    call->mail.deliver = deliver;
    homeward->routed = homeward->routed || call->route != NULL;
    int i = 0;
    while (i < homeward->n && homeward->chain[i].owner != call->owner)
        i++;
    if (i == homeward->n) {
        if (i == FS_CHAINS) {
            if (call->route != NULL)
                count_routed(call, true, fs_now_us());
            fs_owner_post(call->owner, &call->mail);
            return;
        }
        homeward->n++;
        homeward->chain[i].owner = call->owner;
        homeward->chain[i].first = NULL;
        homeward->chain[i].last = &call->mail.node;
    }
    call->mail.node.next = homeward->chain[i].first;
    homeward->chain[i].first = &call->mail.node;
}

static void count_homeward(const fs_homeward *homeward)
{
    int64_t now_us = fs_now_us();
    for (int i = 0; i < homeward->n; i++) {
        const fs_node *last = homeward->chain[i].last;
        for (const fs_node *node = homeward->chain[i].first;; node = node->next) {
            const fs_call *call = (const fs_call *)node;
            if (call->route != NULL)
                count_routed(call, true, now_us);
            if (node == last)
                break;
        }
    }
}

void fs_homeward_post(fs_homeward *homeward)
{
    if (homeward->routed)
        count_homeward(homeward);
    for (int i = 0; i < homeward->n; i++) {
        fs_mailbox_post_chain(homeward->chain[i].owner->box, homeward->chain[i].first,
                              homeward->chain[i].last);
    }
    homeward->n = 0;
    homeward->routed = false;
}

/* ---- checking a request against its signature ------------------------------------------------- */

static const fs_named_view *find_input(const fs_predict_request *request, const char *alias)
{
    size_t len = strlen(alias);
    for (uint32_t i = 0; i < request->n_inputs; i++) {
        const fs_slice *a = &request->inputs[i].alias;
        if (a->len == len && memcmp(a->data, alias, len) == 0)
            return &request->inputs[i];
    }
    return NULL;
}

static bool has_port(const fs_port *ports, uint32_t n, fs_slice alias)
{
    for (uint32_t i = 0; i < n; i++) {
        if (strlen(ports[i].alias) == alias.len && memcmp(ports[i].alias, alias.data, alias.len) == 0)
            return true;
    }
    return false;
}

/* "{a,b}" of the request's aliases, sorted; only those that the signature lacks when `extra`. */
static void put_request_aliases(fs_text *text, const fs_predict_request *request, const fs_signature *sig,
                                bool extra)
{
    uint32_t order[FS_SORTED_ABOVE]; /* a few come in any order; many come sorted */
    uint32_t few = request->n_inputs <= FS_SORTED_ABOVE ? request->n_inputs : 0;
    for (uint32_t i = 0; i < few; i++) {
        fs_slice alias = request->inputs[i].alias;
        uint32_t at = i;
        for (; at > 0 && fs_slice_compare(request->inputs[order[at - 1]].alias, alias) > 0; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    bool first = true;
    fs_text_put(text, "{");
    for (uint32_t i = 0; i < request->n_inputs && !fs_text_full(text); i++) {
        fs_slice alias = request->inputs[few > 0 ? order[i] : i].alias;
        if (extra && has_port(sig->inputs, sig->n_inputs, alias))
            continue;
        if (!first)
            fs_text_put(text, ",");
        fs_text_put_slice(text, alias);
        first = false;
    }
    fs_text_put(text, "}");
}

/* "{a,b}" of the signature's aliases; only those that the request lacks when `missing`. */
static void put_ports(fs_text *text, const fs_port *ports, uint32_t n, const fs_predict_request *missing)
{
    bool first = true;
    fs_text_put(text, "{");
    for (uint32_t i = 0; i < n; i++) {
        if (missing != NULL && find_input(missing, ports[i].alias) != NULL)
            continue;
        if (!first)
            fs_text_put(text, ",");
        fs_text_put(text, ports[i].alias);
        first = false;
    }
    fs_text_put(text, "}");
}

static int wrong_count(const fs_predict_request *request, const fs_signature *sig, fs_error *err)
{
    fs_text text = fs_text_begin(err, FS_INVALID_ARGUMENT);
    fs_text_putf(&text, "input size does not match signature: %u!=%u len(", request->n_inputs, sig->n_inputs);
    put_request_aliases(&text, request, sig, false);
    fs_text_put(&text, ") != len(");
    put_ports(&text, sig->inputs, sig->n_inputs, NULL);
    fs_text_put(&text, "). Sent extra: ");
    put_request_aliases(&text, request, sig, true);
    fs_text_put(&text, ". Missing but required: ");
    put_ports(&text, sig->inputs, sig->n_inputs, request);
    fs_text_put(&text, ".");
    return fs_text_end(&text);
}

static int missing_alias(const fs_predict_request *request, const fs_signature *sig, const fs_port *port,
                         fs_error *err)
{
    fs_text text = fs_text_begin(err, FS_INVALID_ARGUMENT);
    fs_text_put(&text, "Signature input alias: ");
    fs_text_put(&text, port->alias);
    fs_text_put(&text, "(feed name: ");
    fs_text_put(&text, port->tensor);
    fs_text_put(&text, ") not found in request and no default value provided. "
                       "Inputs expected to be in the request ");
    put_request_aliases(&text, request, sig, false);
    fs_text_put(&text, ", or default input alias set: ");
    return fs_text_end(&text);
}

/* Looks at every input's TensorProto, in the signature's order. */
static int check_inputs(fs_call *call, const fs_signature *sig, fs_error *err)
{
    const fs_predict_request *request = &call->request;
    if (request->n_inputs != sig->n_inputs)
        return wrong_count(request, sig, err);
    call->views = fs_arena_alloc(&call->arena, (sig->n_inputs + 1) * sizeof *call->views);
    if (call->views == NULL)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    for (uint32_t i = 0; i < sig->n_inputs; i++) {
        const fs_named_view *input = find_input(request, sig->inputs[i].alias);
        if (input == NULL)
            return missing_alias(request, sig, &sig->inputs[i], err);
        int rc = fs_tensor_view_parse(&call->arena, input->proto.data, input->proto.len, &call->views[i]);
        if (rc == -FS_INVALID_ARGUMENT)
            return fs_fail(err, FS_INVALID_ARGUMENT, "tensor parsing error: %s", sig->inputs[i].alias);
        if (rc == -FS_RESOURCE_EXHAUSTED)
            return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
        if (rc != 0)
            return fs_fail(err, FS_INTERNAL, "%s", ""); /* not a PredictRequest: gRPC's own answer */
    }
    return 0;
}

static int check_filter(fs_call *call, const fs_signature *sig, fs_error *err)
{
    const fs_predict_request *request = &call->request;
    uint32_t n = request->n_filter > 0 ? request->n_filter : sig->n_outputs;
    if (n > sig->n_outputs)
        n = sig->n_outputs + 1; /* an unknown or a duplicate is found by then */
    call->outputs = fs_arena_alloc(&call->arena, (n + 1) * sizeof *call->outputs);
    if (call->outputs == NULL)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    if (request->n_filter == 0) {
        for (uint32_t i = 0; i < n; i++)
            call->outputs[i] = i;
        call->n_outputs = n;
        return 0;
    }
    for (uint32_t k = 0; k < n; k++) {
        fs_slice alias = request->output_filter[k];
        uint32_t i = 0;
        while (i < sig->n_outputs && fs_slice_compare(alias, fs_slice_of(sig->outputs[i].alias)) != 0)
            i++;
        if (i == sig->n_outputs) {
            fs_text text = fs_text_begin(err, FS_INVALID_ARGUMENT);
            fs_text_put(&text, "output tensor alias not found in signature: ");
            fs_text_put_slice(&text, alias);
            fs_text_put(&text, " Outputs expected to be in the set ");
            put_ports(&text, sig->outputs, sig->n_outputs, NULL);
            fs_text_put(&text, ".");
            return fs_text_end(&text);
        }
        for (uint32_t j = 0; j < call->n_outputs; j++) {
            if (call->outputs[j] == i) {
                return fs_fail(err, FS_INVALID_ARGUMENT, "duplicate output tensor alias: %s",
                               sig->outputs[i].alias);
            }
        }
        call->outputs[call->n_outputs++] = i;
    }
    return 0;
}

/* What TensorFlow would answer at the run, answered before the call can hurt a batch. And what the inputs
 * take once they are decoded, when that is more than the message. */
static int check_tensors(const fs_call *call, const fs_signature *sig, size_t limit_bytes, fs_error *err)
{
    size_t total = 0;
    for (uint32_t i = 0; i < sig->n_inputs; i++) {
        const fs_tensor_view *view = &call->views[i];
        size_t size = fs_dtype_size(view->dtype);
        if (view->dtype != sig->inputs[i].dtype || size == 0) {
            return fs_fail(err, FS_INVALID_ARGUMENT, "Expects arg[%u] to be %s but %s is provided", i,
                           fs_dtype_name(sig->inputs[i].dtype), fs_dtype_name(view->dtype));
        }
        /* A few bytes can stand for a tensor of any size: the last value repeats. */
        size_t left = limit_bytes - total;
        uint64_t bytes = UINT64_MAX;
        if ((uint64_t)view->elements <= left / size) {
            bytes = (uint64_t)view->elements * size;
            if (view->dtype == FS_DT_STRING &&
                __builtin_add_overflow(bytes, fs_tensor_view_string_bytes(view), &bytes))
                bytes = UINT64_MAX;
        }
        if (bytes > left) {
            return fs_fail(err, FS_RESOURCE_EXHAUSTED,
                           "inputs of more than %zu bytes once decoded (limits.max_message_bytes)",
                           limit_bytes);
        }
        total += (size_t)bytes;
    }
    size_t have = call->inflated != NULL ? call->inflated_len : call->rpc->message_len;
    if (call->done != NULL)
        return 0; /* in no session's budget */
    return total > have + UNCOUNTED_BYTES ? fs_rpc_charge(call->rpc, total - have, err) : 0;
}

/* Decides how the call can run: in batches, in pieces, or alone. */
static int check_shape(fs_call *call, const fs_queue *queue, fs_error *err)
{
    const fs_signature *sig = queue->signature;
    const fs_batching *batching = &queue->servable->batching;
    bool scalar = sig->n_inputs == 0;
    bool unequal = false, conforms = true, empty = true;
    call->rows_only = queue->static_inner;
    for (uint32_t i = 0; i < sig->n_inputs; i++) {
        const fs_tensor_view *view = &call->views[i];
        const fs_port *port = &sig->inputs[i];
        empty = empty && view->elements == 0;
        if (view->ndim == 0) {
            scalar = true;
            continue;
        }
        if (call->views[0].ndim == 0 || view->dims[0] != call->views[0].dims[0])
            unequal = true;
        if (port->ndim >= 0 && view->ndim != port->ndim)
            conforms = false;
        for (int32_t d = 1; conforms && d < view->ndim && port->ndim >= 0; d++) {
            if (port->dims[d] >= 0 && port->dims[d] != view->dims[d])
                conforms = false;
        }
    }
    bool batchable = !scalar && !unequal && conforms && queue->plan->batched;
    int64_t rows = scalar || unequal ? 1 : call->views[0].dims[0];

    if (batching->refuse_above > 0 && (queue->plan->batched || sig->n_inputs == 0)) {
        if (sig->n_inputs == 0)
            return fs_fail(err, FS_INVALID_ARGUMENT, "Batching Run() must have at least one input tensor");
        if (scalar) {
            return fs_fail(err, FS_INVALID_ARGUMENT,
                           "Batching Run() input tensors must have at least one dimension");
        }
        if (unequal) {
            return fs_fail(err, FS_INVALID_ARGUMENT,
                           "Batching Run() input tensors must have equal 0th-dimension size");
        }
        if (rows > batching->refuse_above) {
            return fs_fail(err, FS_INVALID_ARGUMENT,
                           "Task size %lld is larger than maximum input batch size %lld", (long long)rows,
                           (long long)batching->refuse_above);
        }
    }
    if (!batchable || empty || (rows > batching->max_batch_size && !batching->split_large)) {
        if (queue->plan->compiled && batching->refuse_unknown_shapes) {
            return fs_fail(err, FS_INVALID_ARGUMENT,
                           "the inputs' shapes are none that were compiled for signature %s, and the model "
                           "is configured with unknown_shapes = \"refuse\"",
                           sig->name);
        }
        call->solo = true;
        if (empty)
            rows = 1; /* a shape without elements may claim any number of rows */
    }
    call->rows = rows;
    if (!call->solo && rows > batching->max_batch_size) {
        size_t inputs_bytes = sig->n_inputs * sizeof *call->join->inputs;
        void **inputs = fs_arena_alloc(&call->arena, inputs_bytes);
        fs_join *join = inputs == NULL ? NULL : fs_arena_alloc(&call->arena, sizeof *join);
        if (join == NULL)
            return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
        memset(inputs, 0, inputs_bytes);
        *join = (fs_join){.inputs = inputs};
        call->join = join;
        pthread_mutex_init(&call->join->mutex, NULL);
    }
    return 0;
}

static int parse(fs_call *call, fs_error *err)
{
    const uint8_t *message = call->inflated != NULL ? call->inflated : call->rpc->message;
    size_t len = call->inflated != NULL ? call->inflated_len : call->rpc->message_len;

    int rc = fs_predict_parse(&call->arena, message, len, &call->request);
    if (rc == -FS_RESOURCE_EXHAUSTED)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    if (rc != 0)
        return fs_fail(err, FS_INTERNAL, "%s", "");
    return 0;
}

/* Checks and queues a call for a version that is pinned for it. On failure *err says why, the pin is gone and
 * the call is still the caller's. Inside a bracket: once the call is in the ring its pin may be gone, and with it
 * the queue that the push is not done with. */
static int admit(fs_call *call, fs_servable *servable, fs_error *err)
{
    const fs_engine *engine = call->owner->engine;
    int rc;
    fs_slice name = call->request.model.signature;
    if (name.len == 0)
        name = fs_slice_of("serving_default");
    fs_queue *queue = fs_servable_find(servable, name);
    if (queue == NULL) {
        fs_text text = fs_text_begin(err, FS_FAILED_PRECONDITION);
        fs_text_put(&text, "Serving signature key \"");
        fs_text_put_slice(&text, name);
        fs_text_put(&text, "\" not found.");
        rc = fs_text_end(&text);
    } else {
        call->queue = queue;
        rc = check_inputs(call, queue->signature, err);
        if (rc == 0)
            rc = check_filter(call, queue->signature, err);
        if (rc == 0)
            rc = check_tensors(call, queue->signature, engine->config.max_message_bytes, err);
        if (rc == 0)
            rc = check_shape(call, queue, err);
        if (rc == 0)
            rc = fs_queue_push(queue, call, err); /* the call is the queue's when this is 0 */
        if (rc != 0)
            fs_count(queue, FS_COUNT_FAILED, 1);
    }
    if (rc != 0)
        fs_servable_unpin(servable, 1);
    return rc;
}

/* Resolves, checks and queues. On failure *err says why and the call is still the caller's. Inside a bracket. */
static int dispatch(fs_call *call, fs_error *err)
{
    fs_owner *owner = call->owner;
    int rc = parse(call, err);
    if (rc != 0)
        return rc;
    fs_turn turn = {.kept = &call->rpc->kept, .random = &owner->random};
    fs_servable *servable = fs_catalog_find(owner->engine->catalog, &call->request.model, &turn, err);
    if (servable == NULL)
        return -err->code;
    call->route = turn.route;
    call->side = turn.side;
    call->shadowed = turn.shadowed;
    return admit(call, servable, err);
}

/* Answers a call that never left the owner's thread. */
static void refuse(fs_call *call, const fs_error *err)
{
    call->code = err->code;
    if (call->route != NULL)
        count_routed(call, false, fs_now_us());
    fs_rpc_finish(call->rpc, err->code, err->msg, err->len, NULL, 0);
    fs_call_discard(call);
}

/* Bytes that are no PredictRequest are answered so whatever else is wrong, as gRPC parses before anybody
 * looks at the message. Of a call that is served every tensor has been looked at. */
static bool tensors_valid(const fs_predict_request *request)
{
    for (uint32_t i = 0; i < request->n_inputs; i++) {
        if (!fs_tensor_proto_valid(request->inputs[i].proto, FS_TENSOR_DEPTH))
            return false;
    }
    return true;
}

static void dispatch_or_refuse(fs_call *call)
{
    fs_owner *owner = call->owner;
    fs_error err;
    fs_epoch_enter(&owner->engine->epoch, owner->reader);
    int rc = dispatch(call, &err);
    fs_epoch_leave(owner->reader);
    if (rc == 0)
        return;
    if (call->outputs == NULL && !tensors_valid(&call->request)) /* else all have been looked at */
        fs_fail(&err, FS_INTERNAL, "%s", "");
    refuse(call, &err);
}

/* ---- compressed requests --------------------------------------------------------------------- */

/* Mail from the unpacker: the message is inflated, or code and text say why not. */
static void deliver_inflated(fs_mail *mail)
{
    fs_call *call = (fs_call *)mail;
    fs_owner *owner = call->owner;
    if (call->rpc->h2 != NULL)
        owner->touch(owner->ctx, call->rpc->conn);
    fs_error err;
    if (call->code != FS_OK)
        deliver(mail);
    else if (fs_rpc_charge(call->rpc, call->inflated_len, &err) != 0)
        refuse(call, &err);
    else
        dispatch_or_refuse(call);
}

bool fs_call_inflate(fs_call *call, fs_slab *slab, size_t limit)
{
    fs_error err;
    fs_rpc *rpc = call->rpc;
    size_t max = call->owner->engine->config.max_message_bytes;
    call->code = FS_OK;
    call->mail.deliver = deliver_inflated;
    int rc = fs_inflate(slab, rpc->encoding, rpc->message, rpc->message_len, limit < max ? limit : max,
                        &call->inflated, &call->inflated_len, &err);
    if (rc == -FS_RESOURCE_EXHAUSTED && limit < max)
        return false;
    if (rc != 0)
        fs_call_fail(call, slab, err.code, err.msg, err.len);
    return true;
}

static fs_call *call_new(fs_owner *owner, fs_rpc *rpc)
{
    fs_call *call = fs_slab_alloc(owner->slab, sizeof *call);
    if (call == NULL)
        return NULL;
    memset(call, 0, sizeof *call);
    call->rpc = rpc;
    call->owner = owner;
    fs_arena_init(&call->arena, owner->slab);
    return call;
}

int fs_call_run(fs_owner *owner, fs_rpc *rpc, int64_t version, fs_route *route, void (*done)(fs_call *call),
                fs_error *err)
{
    fs_call *call = call_new(owner, rpc);
    if (call == NULL)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    call->route = fs_route_ref(route);
    call->side = FS_SIDE_FRESH;
    call->done = done;
    fs_epoch_enter(&owner->engine->epoch, owner->reader);
    int rc = parse(call, err);
    if (rc == 0) {
        call->request.model.choice = FS_VERSION_NUMBER;
        call->request.model.version = version;
        fs_servable *servable = fs_catalog_find(owner->engine->catalog, &call->request.model, NULL, err);
        rc = servable == NULL ? -err->code : admit(call, servable, err);
    }
    fs_epoch_leave(owner->reader);
    if (rc != 0)
        fs_call_discard(call);
    return rc;
}

void fs_call_start(fs_owner *owner, fs_rpc *rpc)
{
    fs_call *call = call_new(owner, rpc);
    if (call == NULL) {
        fs_rpc_finish(rpc, FS_RESOURCE_EXHAUSTED, "out of memory", 13, NULL, 0);
        return;
    }
    rpc->user = call;
    if (rpc->encoding == FS_IDENTITY) {
        dispatch_or_refuse(call);
    } else if (rpc->message_len > owner->engine->config.max_compressed_bytes) {
        fs_error err;
        fs_fail(&err, FS_RESOURCE_EXHAUSTED, "compressed message larger than max (%zu vs. %zu)",
                rpc->message_len, owner->engine->config.max_compressed_bytes);
        refuse(call, &err);
    } else if (rpc->message_len <= FS_INFLATE_INLINE_FROM &&
               fs_call_inflate(call, owner->slab, FS_INFLATE_INLINE_TO)) {
        call->mail.deliver(&call->mail);
    } else {
        fs_unpacker_post(owner->engine->unpacker, call);
    }
}
