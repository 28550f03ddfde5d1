/* call_infer: Classify and Regress against their signature; see call_check.h. */
#include <string.h>

#include "call_check.h"
#include "engine.h"

#define INPUTS "inputs"
#define CLASSES "classes"
#define SCORES "scores"
#define OUTPUTS "outputs" /* of a regression */

static uint32_t find_port(const fs_port *ports, uint32_t n, const char *alias)
{
    for (uint32_t i = 0; i < n; i++) {
        if (strcmp(ports[i].alias, alias) == 0)
            return i;
    }
    return FS_NO_OUTPUT;
}

int fs_infer_check_signature(const fs_call *call, enum fs_call_kind kind, const fs_queue *queue, fs_error *err)
{
    const fs_signature *sig = queue->signature;
    bool regress = kind == FS_CALL_REGRESS;
    const char *what = regress ? "regression" : "classification";
    const char *method = regress ? FS_METHOD_REGRESS : FS_METHOD_CLASSIFY;
    const char *has = queue->plan->method != NULL ? queue->plan->method : "";
    if (call->owner->engine->config.check_method_names && strcmp(has, method) != 0)
        return fs_fail(err, FS_INVALID_ARGUMENT, "Expected %s signature method_name to be %s. Was: %s", what,
                       method, has);
    if (sig->n_inputs != 1)
        return fs_fail(err, FS_INVALID_ARGUMENT, "Expected one input Tensor.");
    if (regress && sig->n_outputs != 1)
        return fs_fail(err, FS_INVALID_ARGUMENT, "Expected one output Tensor.");
    if (!regress && sig->n_outputs != 1 && sig->n_outputs != 2)
        return fs_fail(err, FS_INVALID_ARGUMENT, "Expected one or two output Tensors, found %u", sig->n_outputs);
    if (find_port(sig->inputs, 1, INPUTS) == FS_NO_OUTPUT)
        return fs_fail(err, FS_INVALID_ARGUMENT, "No %s inputs found in SignatureDef: %s", what, sig->name);
    if (regress && find_port(sig->outputs, 1, OUTPUTS) == FS_NO_OUTPUT)
        return fs_fail(err, FS_INVALID_ARGUMENT, "No regression outputs found in SignatureDef: %s", sig->name);
    if (!regress && find_port(sig->outputs, sig->n_outputs, CLASSES) == FS_NO_OUTPUT &&
        find_port(sig->outputs, sig->n_outputs, SCORES) == FS_NO_OUTPUT) {
        return fs_fail(err, FS_INVALID_ARGUMENT,
                       "Expected classification signature outputs to contain at least one of \"" CLASSES
                       "\" or \"" SCORES "\". Signature was: %s",
                       sig->name);
    }
    return 0;
}

int fs_infer_check_input(fs_call *call, const fs_examples *examples, fs_error *err)
{
    if (examples->count == 0)
        return fs_fail(err, FS_INVALID_ARGUMENT, "Input is empty.");
    call->views = fs_arena_alloc(&call->arena, sizeof *call->views);
    call->outputs = fs_arena_alloc(&call->arena, 2 * sizeof *call->outputs);
    fs_examples *own = fs_arena_alloc(&call->arena, sizeof *own);
    int64_t *dims = fs_arena_alloc(&call->arena, sizeof *dims);
    if (call->views == NULL || call->outputs == NULL || own == NULL || dims == NULL)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    *own = *examples;
    dims[0] = examples->count;
    call->examples = own;
    call->views[0] = (fs_tensor_view){
        .dtype = FS_DT_STRING, .ndim = 1, .dims = dims, .elements = examples->count, .examples = own};

    const fs_signature *sig = call->queue->signature;
    bool regress = call->kind == FS_CALL_REGRESS;
    call->outputs[FS_OUTPUT_CLASSES] =
        regress ? FS_NO_OUTPUT : find_port(sig->outputs, sig->n_outputs, CLASSES);
    call->outputs[FS_OUTPUT_SCORES] = find_port(sig->outputs, sig->n_outputs, regress ? OUTPUTS : SCORES);
    return fs_call_fit(call, err);
}

int fs_infer_check(fs_call *call, fs_servable *servable, fs_error *err)
{
    fs_slice name = fs_signature_or_default(call->request.model.signature);
    fs_queue *queue = fs_servable_find(servable, name);
    if (queue == NULL) {
        fs_text text = fs_text_begin(err, FS_INVALID_ARGUMENT);
        fs_text_put(&text, "No signature was found with the name: ");
        fs_text_put_slice(&text, name);
        return fs_text_end(&text);
    }
    call->queue = queue;
    int rc = fs_infer_check_signature(call, call->kind, queue, err);
    return rc == 0 ? fs_infer_check_input(call, &call->infer->examples, err) : rc;
}
