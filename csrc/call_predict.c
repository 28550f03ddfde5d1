/* call_predict: Predict against its signature; see call_check.h. */
#include <string.h>

#include "broadcast.h"
#include "call_check.h"
#include "engine.h"

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

enum which { PUT_ALL, PUT_KNOWN, PUT_EXTRA };

/* "a,b" of the request's aliases, sorted; of these those that the signature has, or lacks. */
static void put_request_aliases(fs_text *text, const fs_predict_request *request, const fs_signature *sig,
                                enum which which)
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
    for (uint32_t i = 0; i < request->n_inputs && !fs_text_full(text); i++) {
        fs_slice alias = request->inputs[few > 0 ? order[i] : i].alias;
        if (which != PUT_ALL && has_port(sig->inputs, sig->n_inputs, alias) != (which == PUT_KNOWN))
            continue;
        if (!first)
            fs_text_put(text, ",");
        fs_text_put_slice(text, alias);
        first = false;
    }
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
    fs_text_putf(&text, "input size does not match signature: %u!=%u len({", request->n_inputs, sig->n_inputs);
    put_request_aliases(&text, request, sig, PUT_ALL);
    fs_text_put(&text, "}) != len(");
    put_ports(&text, sig->inputs, sig->n_inputs, NULL);
    fs_text_put(&text, "). Sent extra: {");
    put_request_aliases(&text, request, sig, PUT_EXTRA);
    fs_text_put(&text, "}. Missing but required: ");
    put_ports(&text, sig->inputs, sig->n_inputs, request);
    fs_text_put(&text, ".");
    return fs_text_end(&text);
}

/* "a,b" of the inputs that have a default. */
static void put_defaults(fs_text *text, const fs_queue *queue)
{
    const fs_slice *defaults = queue->plan->defaults;
    bool first = true;
    for (uint32_t i = 0; defaults != NULL && i < queue->signature->n_inputs; i++) {
        if (defaults[i].len == 0)
            continue;
        if (!first)
            fs_text_put(text, ",");
        fs_text_put(text, queue->signature->inputs[i].alias);
        first = false;
    }
}

static int missing_alias(const fs_predict_request *request, const fs_queue *queue, const fs_port *port,
                         fs_error *err)
{
    fs_text text = fs_text_begin(err, FS_INVALID_ARGUMENT);
    fs_text_put(&text, "Signature input alias: ");
    fs_text_put(&text, port->alias);
    fs_text_put(&text, "(feed name: ");
    fs_text_put(&text, port->tensor);
    fs_text_put(&text, ") not found in request and no default value provided. "
                       "Inputs expected to be in the request {");
    put_request_aliases(&text, request, queue->signature, PUT_ALL);
    fs_text_put(&text, "}, or default input alias set: ");
    put_defaults(&text, queue);
    return fs_text_end(&text);
}

/* Some of the request's inputs are not the signature's, whose others have defaults. */
static int unknown_alias(const fs_predict_request *request, const fs_signature *sig, fs_error *err)
{
    fs_text text = fs_text_begin(err, FS_INVALID_ARGUMENT);
    fs_text_put(&text, "Inputs contains invalid name. Used request inputs: ");
    put_request_aliases(&text, request, sig, PUT_KNOWN);
    fs_text_put(&text, ", request input: ");
    put_request_aliases(&text, request, sig, PUT_ALL);
    return fs_text_end(&text);
}

/* Looks at every input's TensorProto, in the signature's order; what the request leaves out has its default. */
static int check_inputs(fs_call *call, const fs_queue *queue, fs_error *err)
{
    const fs_predict_request *request = &call->request;
    const fs_signature *sig = queue->signature;
    const fs_slice *defaults = queue->plan->defaults;
    if (request->n_inputs > sig->n_inputs || (request->n_inputs < sig->n_inputs && defaults == NULL))
        return wrong_count(request, sig, err);
    call->views = fs_arena_alloc(&call->arena, (sig->n_inputs + 1) * sizeof *call->views);
    if (call->views == NULL)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    uint32_t used = 0;
    for (uint32_t i = 0; i < sig->n_inputs; i++) {
        const fs_named_view *input = find_input(request, sig->inputs[i].alias);
        if (input == NULL && (defaults == NULL || defaults[i].len == 0))
            return missing_alias(request, queue, &sig->inputs[i], err);
        fs_slice proto = input != NULL ? input->proto : defaults[i];
        used += input != NULL;
        int rc = fs_tensor_view_parse(&call->arena, proto.data, proto.len, &call->views[i]);
        if (rc == -FS_INVALID_ARGUMENT)
            return fs_fail(err, FS_INVALID_ARGUMENT, "tensor parsing error: %s", sig->inputs[i].alias);
        if (rc == -FS_RESOURCE_EXHAUSTED)
            return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
        if (rc != 0)
            return fs_fail(err, FS_INTERNAL, "%s", ""); /* not a PredictRequest: gRPC's own answer */
    }
    return used == request->n_inputs ? 0 : unknown_alias(request, sig, err);
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

/* Only where the server is asked to look at it. */
static int check_method(const fs_queue *queue, fs_error *err)
{
    const char *method = queue->plan->method != NULL ? queue->plan->method : "";
    if (strcmp(method, FS_METHOD_PREDICT) == 0 || strcmp(method, FS_METHOD_CLASSIFY) == 0 ||
        strcmp(method, FS_METHOD_REGRESS) == 0)
        return 0;
    return fs_fail(err, FS_INTERNAL,
                   "Expected prediction signature method_name to be one of {" FS_METHOD_PREDICT
                   ", " FS_METHOD_CLASSIFY ", " FS_METHOD_REGRESS "}. Was: %s",
                   method);
}

int fs_predict_check(fs_call *call, fs_servable *servable, fs_error *err)
{
    fs_slice name = fs_signature_or_default(call->request.model.signature);
    fs_queue *queue = fs_servable_find(servable, name);
    if (queue == NULL) {
        fs_text text = fs_text_begin(err, FS_FAILED_PRECONDITION);
        fs_text_put(&text, "Serving signature key \"");
        fs_text_put_slice(&text, name);
        fs_text_put(&text, "\" not found.");
        return fs_text_end(&text);
    }
    call->queue = queue;
    int rc = call->owner->engine->config.check_method_names ? check_method(queue, err) : 0;
    if (rc == 0)
        rc = check_inputs(call, queue, err);
    if (rc == 0)
        rc = check_filter(call, queue->signature, err);
    if (rc != 0)
        return rc;
    if (queue->plan->broadcast != NULL)
        fs_broadcast(queue->signature, queue->plan->broadcast, call->views);
    return fs_call_fit(call, err);
}
