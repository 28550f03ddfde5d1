/* tf_explain: see tf_explain.h. */
#include "tf_explain.h"

#include "wire.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define SUFFIX "__explained"

enum { NAME_MAX_BYTES = 512 };

/* AttrValue.func and NameAttrList.name: of the attribute "f", the function that a call calls. */
#define ATTR_FUNC FS_WIRE_TAG(10, FS_WIRE_BYTES)
#define FUNC_NAME FS_WIRE_TAG(1, FS_WIRE_BYTES)
/* FunctionDef.signature, OpDef.name. */
enum { DEF_SIGNATURE = 1, OP_NAME = 1 };
/* ConfigProto.experimental, and in it executor_type and optimize_for_static_graph. */
#define CONFIG_EXPERIMENTAL FS_WIRE_TAG(16, FS_WIRE_BYTES)
#define EXECUTOR_TYPE FS_WIRE_TAG(3, FS_WIRE_BYTES)
#define STATIC_GRAPH FS_WIRE_TAG(12, FS_WIRE_VARINT)
/* An entry of FunctionDef.attr: "_noinline" is true. */
static const uint8_t NO_INLINE[] = {
    0x2a, 15, 0x0a, 9, '_', 'n', 'o', 'i', 'n', 'l', 'i', 'n', 'e', 0x12, 2, 0x28, 1,
};

/* Why a call has no twin: TensorFlow refused something, or it is no call. */
enum { NO_TWIN = -FS_FAILED_PRECONDITION, NO_MEMORY = -FS_RESOURCE_EXHAUSTED };

static bool ok(const fs_tf_api *api, const TF_Status *status)
{
    return api->GetCode(status) == FS_OK;
}

/* ---- the function ------------------------------------------------------------------------ */

/* The bytes of the first field with this tag. */
static bool find_bytes(fs_slice message, uint32_t wanted, fs_slice *found)
{
    fs_wire w = fs_wire_over(message.data, message.len);
    uint32_t tag;
    while (w.at < w.end && fs_wire_read_tag(&w, &tag)) {
        if (tag == wanted)
            return fs_wire_read_bytes(&w, found);
        if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH))
            return false;
    }
    return false;
}

bool fs_tf_may_explain(fs_slice config)
{
    static const char single[] = "SINGLE_THREADED_EXECUTOR";
    fs_wire w = fs_wire_over(config.data, config.len);
    bool alone = false;
    uint64_t is_static = 0;
    uint32_t tag;
    while (w.at < w.end && fs_wire_read_tag(&w, &tag)) {
        fs_slice experimental, type;
        if (tag != CONFIG_EXPERIMENTAL) {
            if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH))
                return false;
            continue;
        }
        if (!fs_wire_read_bytes(&w, &experimental))
            return false;
        for (fs_wire e = fs_wire_over(experimental.data, experimental.len); e.at < e.end;) {
            if (!fs_wire_read_tag(&e, &tag))
                return false;
            if (tag == EXECUTOR_TYPE && fs_wire_read_bytes(&e, &type))
                alone = type.len == sizeof single - 1 && memcmp(type.data, single, type.len) == 0;
            else if (tag == EXECUTOR_TYPE || !(tag == STATIC_GRAPH ? fs_wire_read_varint(&e, &is_static)
                                                                   : fs_wire_skip(&e, tag, FS_WIRE_MAX_DEPTH)))
                return false;
        }
    }
    return alone && is_static == 0;
}

/* The name of the function that `call` calls. */
static bool function_of(const fs_tf_api *api, TF_Operation *call, char name[NAME_MAX_BYTES], TF_Status *status)
{
    TF_Buffer *value = api->NewBuffer();
    api->OperationGetAttrValueProto(call, "f", value, status);
    fs_slice func, found;
    bool there = ok(api, status) && find_bytes((fs_slice){value->data, value->length}, ATTR_FUNC, &func) &&
                 find_bytes(func, FUNC_NAME, &found) && found.len + sizeof SUFFIX <= NAME_MAX_BYTES;
    if (there) {
        memcpy(name, found.data, found.len);
        name[found.len] = '\0';
    }
    api->DeleteBuffer(value);
    return there;
}

/* Adds a copy of the function under another name, never to be inlined. In protobuf's wire format what comes last counts,
 * and messages that come twice are merged: both are said behind the definition. */
static int copy_function(const fs_tf_api *api, TF_Graph *graph, TF_Function *function, const char *name,
                          TF_Status *status)
{
    TF_Buffer *definition = api->NewBuffer();
    api->FunctionToFunctionDef(function, definition, status);
    fs_slice renamed = {.data = (const uint8_t *)name, .len = strlen(name)};
    size_t inner = fs_wire_bytes_size(OP_NAME, renamed.len);
    size_t most = fs_wire_bytes_size(DEF_SIGNATURE, inner) + sizeof NO_INLINE;
    uint8_t *bytes = malloc(definition->length + most);
    int rc = bytes != NULL ? NO_TWIN : NO_MEMORY;
    if (bytes != NULL && ok(api, status)) {
        memcpy(bytes, definition->data, definition->length);
        uint8_t *at = fs_wire_put_head(bytes + definition->length, DEF_SIGNATURE, inner);
        at = fs_wire_put_bytes(at, OP_NAME, renamed);
        memcpy(at, NO_INLINE, sizeof NO_INLINE);
        at += sizeof NO_INLINE;
        TF_Function *copy = api->FunctionImportFunctionDef(bytes, (size_t)(at - bytes), status);
        if (ok(api, status)) {
            api->GraphCopyFunction(graph, copy, NULL, status);
            rc = ok(api, status) ? 0 : NO_TWIN;
        }
        if (copy != NULL)
            api->DeleteFunction(copy);
    }
    free(bytes);
    api->DeleteBuffer(definition);
    return rc;
}

/* The same, for the function of that name. */
static int copy_named(const fs_tf_api *api, TF_Graph *graph, const char *from, const char *to, TF_Status *status)
{
    int n = api->GraphNumFunctions(graph);
    TF_Function **functions = calloc((size_t)n + 1, sizeof *functions);
    if (functions == NULL)
        return NO_MEMORY;
    n = api->GraphGetFunctions(graph, functions, n, status);
    int rc = NO_TWIN;
    for (int i = 0; ok(api, status) && i < n; i++) {
        if (strcmp(api->FunctionName(functions[i]), from) == 0) {
            rc = copy_function(api, graph, functions[i], to, status);
            break;
        }
    }
    for (int i = 0; i < n; i++)
        api->DeleteFunction(functions[i]);
    free(functions);
    return rc;
}

/* ---- the call ---------------------------------------------------------------------------- */

/* A second call of `function`, with what `call` has. */
static int add_call(const fs_tf_api *api, TF_Graph *graph, TF_Operation *call, const char *name,
                    const char *function, TF_Operation **twin, TF_Status *status)
{
    int n_in = api->OperationNumInputs(call), n_out = api->OperationNumOutputs(call);
    TF_Output *inputs = calloc((size_t)n_in + 1, sizeof *inputs);
    int *types = inputs != NULL ? calloc((size_t)n_in + (size_t)n_out + 1, sizeof *types) : NULL;
    if (types == NULL) {
        free(inputs);
        return NO_MEMORY;
    }
    for (int i = 0; i < n_in; i++) {
        inputs[i] = api->OperationInput((TF_Input){call, i});
        types[i] = api->OperationOutputType(inputs[i]);
    }
    for (int i = 0; i < n_out; i++)
        types[n_in + i] = api->OperationOutputType((TF_Output){call, i});
    TF_OperationDescription *description = api->NewOperation(graph, api->OperationOpType(call), name);
    api->AddInputList(description, inputs, n_in);
    api->SetAttrTypeList(description, "Tin", types, n_in);
    api->SetAttrTypeList(description, "Tout", types + n_in, n_out);
    api->SetAttrFuncName(description, "f", function, strlen(function));
    *twin = api->FinishOperation(description, status);
    free(inputs);
    free(types);
    return ok(api, status) ? 0 : NO_TWIN;
}

static int twin_of(const fs_tf_api *api, TF_Graph *graph, TF_Operation *call, TF_Operation **twin, TF_Status *status)
{
    const char *op = api->OperationOpType(call), *called = api->OperationName(call);
    size_t len = strlen(called);
    char name[NAME_MAX_BYTES], function[NAME_MAX_BYTES], copy[NAME_MAX_BYTES];
    if ((strcmp(op, "StatefulPartitionedCall") != 0 && strcmp(op, "PartitionedCall") != 0) ||
        api->OperationNumControlInputs(call) > 0 || len + sizeof SUFFIX > sizeof name)
        return NO_TWIN;
    memcpy(name, called, len);
    memcpy(name + len, SUFFIX, sizeof SUFFIX);
    *twin = api->GraphOperationByName(graph, name);
    if (*twin != NULL)
        return 0;
    if (!function_of(api, call, function, status))
        return NO_TWIN;
    memcpy(copy, function, strlen(function));
    memcpy(copy + strlen(function), SUFFIX, sizeof SUFFIX);
    int rc = copy_named(api, graph, function, copy, status);
    return rc == 0 ? add_call(api, graph, call, name, copy, twin, status) : rc;
}

int fs_tf_explain(const fs_tf_api *api, TF_Graph *graph, const TF_Output *fetches, uint32_t n, TF_Output *twins,
                  TF_Status *status)
{
    TF_Operation *twin = NULL;
    int rc = n > 0 ? 0 : NO_TWIN;
    for (uint32_t i = 0; i < n && rc == 0; i++)
        if (fetches[i].oper == NULL || fetches[i].oper != fetches[0].oper)
            rc = NO_TWIN;
    api->SetStatus(status, FS_OK, ""); /* what follows leaves it alone when it does not fail */
    if (rc == 0)
        rc = twin_of(api, graph, fetches[0].oper, &twin, status);
    for (uint32_t i = 0; i < n && rc == 0; i++)
        twins[i] = (TF_Output){.oper = twin, .index = fetches[i].index};
    return rc;
}

const char *fs_tf_explained(const char *text)
{
    static const char head[] = "{{function_node ", tail[] = SUFFIX "}} ";
    while (strncmp(text, head, sizeof head - 1) == 0) {
        const char *end = strstr(text, "}} ");
        size_t len = end != NULL ? (size_t)(end + 3 - text) : 0;
        if (len < sizeof tail - 1 || memcmp(text + len - (sizeof tail - 1), tail, sizeof tail - 1) != 0)
            break;
        text += len;
    }
    return text;
}
