/* stub_tf: a stand-in for TensorFlow's C API, so that sanitizers see all of csrc/tf.c.
 *
 * Built as a shared library and opened by test_tf under TensorFlow's own file names. It behaves as the real
 * one where that matters to its caller: reference-counted tensor memory, deallocators that run late,
 * misaligned memory that is copied, an identity that answers with its input's memory.
 *
 * A graph has the nodes "x0".."x99" (to be fed), "call" and "call__compiled" (as many outputs as one likes),
 * "keep", "variant" and "NoOp" (no outputs). Output i of a call is computed from feed i, or the last one:
 * floats get 0.5 x + 2, plus 1000 in the compiled call, plus the first byte of the session's ConfigProto; all
 * else is passed on. A float feed of NaN fails the run; "keep" holds on to its feed until the session is
 * deleted. "call" calls the function "f" with "x0". A second call may be added, of a copy of "f" that must not be
 * inlined, and fails with the node's name; graphs from a directory "picky" take no copy, and in
 * those from "ordered" the call waits for another operation. A feed that begins with infinity fails the first call and
 * not the second. The metadata of a run that is traced are its RunOptions. */
#include "tf_api.h"

#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FLOAT = 1, STRING = 7, VARIANT = 21, OK = 0, INVALID_ARGUMENT = 3, NOT_FOUND = 5, INTERNAL = 13 };

#define DECLARE(result, name, args) result TF_##name args;
FS_TF_FUNCTIONS(DECLARE)
#undef DECLARE

static atomic_long live; /* objects that have not been deleted */
static atomic_long pool_loads, empty_sessions, target_runs, op_libraries;

/* For the test: objects that have not been deleted; models loaded with default RunOptions; sessions on an empty
 * graph, and op libraries, so far; operations that were run as targets. */
long stub_tf_live(void);
long stub_tf_live(void)
{
    return atomic_load(&live);
}

long stub_tf_pool_loads(void);
long stub_tf_pool_loads(void)
{
    return atomic_load(&pool_loads);
}

long stub_tf_empty_sessions(void);
long stub_tf_empty_sessions(void)
{
    return atomic_load(&empty_sessions);
}

long stub_tf_target_runs(void);
long stub_tf_target_runs(void)
{
    return atomic_load(&target_runs);
}

long stub_tf_op_libraries(void);
long stub_tf_op_libraries(void)
{
    return atomic_load(&op_libraries);
}

static void *made(void *object)
{
    if (object == NULL)
        abort();
    atomic_fetch_add(&live, 1);
    return object;
}

static void gone(void *object)
{
    free(object);
    atomic_fetch_sub(&live, 1);
}

const char *TF_Version(void)
{
    return "0.0.stub";
}

/* ---- status ------------------------------------------------------------------------------ */

struct TF_Status {
    int code;
    char message[4096];
};

TF_Status *TF_NewStatus(void)
{
    return made(calloc(1, sizeof(TF_Status)));
}

void TF_DeleteStatus(TF_Status *status)
{
    gone(status);
}

static void set(TF_Status *status, int code, const char *message)
{
    status->code = code;
    snprintf(status->message, sizeof status->message, "%s", message);
}

void TF_SetStatus(TF_Status *status, int code, const char *message)
{
    set(status, code, message);
}

int TF_GetCode(const TF_Status *status)
{
    return status->code;
}

const char *TF_Message(const TF_Status *status)
{
    return status->message;
}

/* ---- op libraries ------------------------------------------------------------------------ */

struct TF_Library {
    int unused;
};

TF_Library *TF_LoadLibrary(const char *path, TF_Status *status)
{
    if (strstr(path, "missing") != NULL) {
        char text[300];
        snprintf(text, sizeof text, "%s: cannot open shared object file: No such file or directory", path);
        set(status, NOT_FOUND, text);
        return NULL;
    }
    set(status, OK, "");
    atomic_fetch_add(&op_libraries, 1);
    return made(calloc(1, sizeof(TF_Library)));
}

void TF_DeleteLibraryHandle(TF_Library *library)
{
    gone(library);
}

/* ---- tensors ----------------------------------------------------------------------------- */

typedef struct memory {
    atomic_int refs;
    void *data;
    size_t len;
    void (*deallocator)(void *data, size_t len, void *arg);
    void *arg;
} memory;

struct TF_Tensor {
    int dtype;
    int ndim;
    int64_t dims[254];
    memory *memory;
};

static void free_aligned(void *data, size_t len, void *arg)
{
    (void)len;
    (void)arg;
    free(data);
}

static void *aligned(size_t len)
{
    return aligned_alloc(64, (len + 64) & ~(size_t)63);
}

static TF_Tensor *tensor_of(memory *shared, int dtype, const int64_t *dims, int ndim)
{
    TF_Tensor *tensor = made(calloc(1, sizeof *tensor));
    tensor->dtype = dtype;
    tensor->ndim = ndim;
    for (int i = 0; i < ndim; i++)
        tensor->dims[i] = dims[i];
    tensor->memory = shared;
    return tensor;
}

TF_Tensor *TF_NewTensor(int dtype, const int64_t *dims, int ndim, void *data, size_t len,
                        void (*deallocator)(void *, size_t, void *), void *arg)
{
    memory *own = made(calloc(1, sizeof *own));
    *own = (memory){.refs = 1, .data = data, .len = len, .deallocator = deallocator, .arg = arg};
    if (dtype == STRING && (uintptr_t)data % 64 != 0)
        abort(); /* the real one fails a CHECK once a kernel looks at it */
    if (dtype != STRING && (uintptr_t)data % 64 != 0) {
        own->data = aligned(len);
        memcpy(own->data, data, len);
        own->deallocator = free_aligned;
        deallocator(data, len, arg);
    }
    return tensor_of(own, dtype, dims, ndim);
}

TF_Tensor *TF_AllocateTensor(int dtype, const int64_t *dims, int ndim, size_t len)
{
    return TF_NewTensor(dtype, dims, ndim, aligned(len), len, free_aligned, NULL);
}

void TF_DeleteTensor(TF_Tensor *tensor)
{
    if (atomic_fetch_sub(&tensor->memory->refs, 1) == 1) {
        tensor->memory->deallocator(tensor->memory->data, tensor->memory->len, tensor->memory->arg);
        gone(tensor->memory);
    }
    gone(tensor);
}

static TF_Tensor *share(const TF_Tensor *tensor)
{
    atomic_fetch_add(&tensor->memory->refs, 1);
    return tensor_of(tensor->memory, tensor->dtype, tensor->dims, tensor->ndim);
}

int TF_TensorType(const TF_Tensor *tensor)
{
    return tensor->dtype;
}

int TF_NumDims(const TF_Tensor *tensor)
{
    return tensor->ndim;
}

int64_t TF_Dim(const TF_Tensor *tensor, int i)
{
    return tensor->dims[i];
}

size_t TF_TensorByteSize(const TF_Tensor *tensor)
{
    return tensor->memory->len;
}

void *TF_TensorData(const TF_Tensor *tensor)
{
    return tensor->memory->data;
}

/* ---- strings: raw[0] is the size, raw[1] the address -------------------------------------- */

void TF_StringInit(TF_TString *string)
{
    memset(string, 0, sizeof *string);
}

void TF_StringCopy(TF_TString *string, const char *from, size_t size)
{
    char *own = malloc(size);
    if (own == NULL)
        abort();
    memcpy(own, from, size);
    string->raw[0] = size;
    string->raw[1] = (uint64_t)(uintptr_t)own;
}

void TF_StringDealloc(TF_TString *string)
{
    free((void *)(uintptr_t)string->raw[1]);
    TF_StringInit(string);
}

const char *TF_StringGetDataPointer(const TF_TString *string)
{
    return (const char *)(uintptr_t)string->raw[1];
}

size_t TF_StringGetSize(const TF_TString *string)
{
    return string->raw[0];
}

/* ---- sessions ---------------------------------------------------------------------------- */

struct TF_SessionOptions {
    uint8_t first; /* of the ConfigProto; 0 without one */
};

struct TF_Operation {
    const char *name;
    int outputs;
    const char *type; /* or NULL: as its name */
    int waits;        /* control inputs */
};

struct TF_Graph {
    TF_Operation feeds[100];
    char names[100][16];
    TF_Operation call, compiled, keep, variant, noop;
    TF_Operation twin; /* once it has been added */
    char twin_name[64];
    char copied[64]; /* the name of the function that was added */
    bool picky;
    bool in_use;
};

struct TF_Session {
    TF_Graph *graph;
    uint8_t first;
    atomic_bool extended;
    _Atomic(TF_Tensor *) kept;
};

TF_Buffer *TF_NewBufferFromString(const void *proto, size_t len)
{
    TF_Buffer *buffer = made(malloc(sizeof *buffer));
    void *copy = malloc(len);
    if (copy == NULL)
        abort();
    memcpy(copy, proto, len);
    *buffer = (TF_Buffer){.data = copy, .length = len};
    return buffer;
}

TF_Buffer *TF_NewBuffer(void)
{
    return made(calloc(1, sizeof(TF_Buffer)));
}

void TF_DeleteBuffer(TF_Buffer *buffer)
{
    free((void *)(uintptr_t)buffer->data);
    gone(buffer);
}

TF_SessionOptions *TF_NewSessionOptions(void)
{
    return made(calloc(1, sizeof(TF_SessionOptions)));
}

void TF_DeleteSessionOptions(TF_SessionOptions *options)
{
    gone(options);
}

void TF_SetConfig(TF_SessionOptions *options, const void *proto, size_t len, TF_Status *status)
{
    options->first = *(const uint8_t *)proto;
    if (len == 0 || options->first == 0xff)
        set(status, INVALID_ARGUMENT, "Unparseable ConfigProto");
}

TF_Graph *TF_NewGraph(void)
{
    TF_Graph *graph = made(calloc(1, sizeof *graph));
    for (int i = 0; i < 100; i++) {
        snprintf(graph->names[i], sizeof graph->names[i], "x%d", i);
        graph->feeds[i] = (TF_Operation){graph->names[i], 1, NULL, 0};
    }
    graph->call = (TF_Operation){"call", 1000, "StatefulPartitionedCall", 0};
    graph->compiled = (TF_Operation){"call__compiled", 1000, NULL, 0};
    graph->keep = (TF_Operation){"keep", 1, NULL, 0};
    graph->variant = (TF_Operation){"variant", 1, NULL, 0};
    graph->noop = (TF_Operation){"NoOp", 0, NULL, 0};
    return graph;
}

void TF_DeleteGraph(TF_Graph *graph)
{
    if (graph->in_use)
        abort();
    gone(graph);
}

TF_Operation *TF_GraphOperationByName(TF_Graph *graph, const char *name)
{
    TF_Operation *nodes[] = {&graph->call, &graph->compiled, &graph->keep, &graph->variant, &graph->noop};
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
        if (strcmp(nodes[i]->name, name) == 0)
            return nodes[i];
    if (graph->twin.name != NULL && strcmp(graph->twin.name, name) == 0)
        return &graph->twin;
    for (int i = 0; i < 100; i++)
        if (strcmp(graph->feeds[i].name, name) == 0)
            return &graph->feeds[i];
    return NULL;
}

const char *TF_OperationName(TF_Operation *op)
{
    return op->name;
}

const char *TF_OperationOpType(TF_Operation *op)
{
    return op->type != NULL ? op->type : op->name;
}

int TF_OperationNumInputs(TF_Operation *op)
{
    return op->type != NULL;
}

int TF_OperationNumControlInputs(TF_Operation *op)
{
    return op->waits;
}

/* "x0": it stands in its graph before all else. */
TF_Output TF_OperationInput(TF_Input input)
{
    TF_Graph *graph = (TF_Graph *)(void *)((char *)input.oper - offsetof(TF_Graph, call));
    return (TF_Output){&graph->feeds[0], 0};
}

int TF_OperationOutputType(TF_Output output)
{
    (void)output;
    return FLOAT;
}

static void fill(TF_Buffer *buffer, const void *data, size_t len)
{
    void *copy = malloc(len);
    if (copy == NULL)
        abort();
    memcpy(copy, data, len);
    *buffer = (TF_Buffer){.data = copy, .length = len};
}

/* AttrValue{func{name: "f"}}, behind a field that nobody asked for. */
void TF_OperationGetAttrValueProto(TF_Operation *op, const char *name, TF_Buffer *value, TF_Status *status)
{
    static const uint8_t f[] = {0x28, 1, 0x52, 3, 0x0a, 1, 'f'};
    if (op->type == NULL || strcmp(name, "f") != 0)
        set(status, INVALID_ARGUMENT, "no such attribute");
    else
        fill(value, f, sizeof f);
}

/* ---- functions --------------------------------------------------------------------------- */

struct TF_Function {
    char name[64];
    bool no_inline;
};

static TF_Function *function_new(const char *name, size_t len, bool no_inline)
{
    TF_Function *function = made(calloc(1, sizeof *function));
    if (len >= sizeof function->name)
        abort();
    memcpy(function->name, name, len);
    function->no_inline = no_inline;
    return function;
}

int TF_GraphNumFunctions(TF_Graph *graph)
{
    (void)graph;
    return 2;
}

int TF_GraphGetFunctions(TF_Graph *graph, TF_Function **functions, int most, TF_Status *status)
{
    (void)graph;
    (void)status;
    if (most < 2)
        abort();
    functions[0] = function_new("other", 5, false);
    functions[1] = function_new("f", 1, false);
    return 2;
}

const char *TF_FunctionName(TF_Function *function)
{
    return function->name;
}

void TF_DeleteFunction(TF_Function *function)
{
    gone(function);
}

/* FunctionDef{signature{name}}. */
void TF_FunctionToFunctionDef(TF_Function *function, TF_Buffer *definition, TF_Status *status)
{
    (void)status;
    uint8_t bytes[80] = {0x0a, (uint8_t)(strlen(function->name) + 2), 0x0a, (uint8_t)strlen(function->name)};
    memcpy(bytes + 4, function->name, strlen(function->name));
    fill(definition, bytes, 4 + strlen(function->name));
}

/* Takes what TF_FunctionToFunctionDef gives with a name and an attribute behind it, as protobuf would. */
TF_Function *TF_FunctionImportFunctionDef(const void *definition, size_t len, TF_Status *status)
{
    static const char attribute[] = "_noinline\x12\x02\x28\x01";
    const uint8_t *at = definition, *end = at + len;
    const char *name = NULL;
    size_t name_len = 0;
    bool no_inline = false;
    while (at + 4 <= end && at + 2 + at[1] <= end) {
        if (at[0] == 0x0a) {
            name = (const char *)at + 4;
            name_len = at[3];
        } else if (at[0] == 0x2a) {
            no_inline = at[1] == sizeof attribute - 1 + 2 && memcmp(at + 4, attribute, sizeof attribute - 1) == 0;
        }
        at += 2 + at[1];
    }
    if (at != end || name == NULL) {
        set(status, INVALID_ARGUMENT, "Invalid FunctionDef given to TF_FunctionImportFunctionDef");
        return NULL;
    }
    return function_new(name, name_len, no_inline);
}

void TF_GraphCopyFunction(TF_Graph *graph, const TF_Function *function, const TF_Function *gradient,
                          TF_Status *status)
{
    if (graph->picky || gradient != NULL || !function->no_inline)
        set(status, INVALID_ARGUMENT, "no such function");
    else
        memcpy(graph->copied, function->name, sizeof graph->copied);
}

struct TF_OperationDescription {
    TF_Graph *graph;
    char name[64];
    const char *type;
    bool right;
};

TF_OperationDescription *TF_NewOperation(TF_Graph *graph, const char *type, const char *name)
{
    TF_OperationDescription *made_of = made(calloc(1, sizeof *made_of));
    made_of->graph = graph;
    made_of->type = type;
    made_of->right = true;
    snprintf(made_of->name, sizeof made_of->name, "%s", name);
    return made_of;
}

void TF_AddInputList(TF_OperationDescription *description, const TF_Output *inputs, int n)
{
    description->right &= n == 1 && inputs[0].oper == &description->graph->feeds[0];
}

void TF_SetAttrTypeList(TF_OperationDescription *description, const char *name, const int *types, int n)
{
    description->right &= n == (strcmp(name, "Tin") == 0 ? 1 : 1000) && types[n - 1] == FLOAT;
}

void TF_SetAttrFuncName(TF_OperationDescription *description, const char *name, const char *value, size_t len)
{
    const char *copied = description->graph->copied;
    description->right &= strcmp(name, "f") == 0 && len == strlen(copied) && memcmp(value, copied, len) == 0;
}

TF_Operation *TF_FinishOperation(TF_OperationDescription *description, TF_Status *status)
{
    TF_Graph *graph = description->graph;
    TF_Operation *added = NULL;
    if (description->right && graph->twin.name == NULL) {
        memcpy(graph->twin_name, description->name, sizeof graph->twin_name);
        graph->twin = (TF_Operation){graph->twin_name, 1000, description->type, 0};
        added = &graph->twin;
    } else {
        set(status, INVALID_ARGUMENT, "no such operation");
    }
    gone(description);
    return added;
}

int TF_OperationNumOutputs(TF_Operation *op)
{
    return op->outputs;
}

/* RunOptions{inter_op_thread_pool: -1} and nothing else. */
static bool runs_in_caller(const TF_Buffer *options)
{
    static const uint8_t expected[] = {0x18, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1};
    return options != NULL && options->length == sizeof expected &&
           memcmp(options->data, expected, sizeof expected) == 0;
}

/* RunOptions{trace_level, inter_op_thread_pool: -1, output_partition_graphs} in that order. */
static bool is_traced(const TF_Buffer *options)
{
    const uint8_t *bytes = options != NULL ? options->data : NULL;
    return bytes != NULL && options->length == 15 && bytes[0] == 0x08 && (bytes[1] == 1 || bytes[1] == 3) &&
           runs_in_caller(&(TF_Buffer){.data = bytes + 2, .length = 11}) && bytes[13] == 0x28 && bytes[14] <= 1;
}

static TF_Session *session_of(TF_Graph *graph, const TF_SessionOptions *options)
{
    TF_Session *session = made(calloc(1, sizeof *session));
    session->graph = graph;
    session->first = options->first;
    graph->in_use = true;
    return session;
}

/* No session without devices, and there are none for a ConfigProto that begins so. */
TF_Session *TF_NewSession(TF_Graph *graph, const TF_SessionOptions *options, TF_Status *status)
{
    if (options->first == 0xfe) {
        set(status, INTERNAL, "no devices");
        return NULL;
    }
    set(status, OK, "");
    atomic_fetch_add(&empty_sessions, 1);
    return session_of(graph, options);
}

TF_Session *TF_LoadSessionFromSavedModel(const TF_SessionOptions *options, const TF_Buffer *run_options,
                                         const char *dir, const char *const *tags, int n_tags,
                                         TF_Graph *graph, TF_Buffer *meta_graph, TF_Status *status)
{
    (void)meta_graph;
    if (run_options == NULL)
        atomic_fetch_add(&pool_loads, 1);
    if (run_options != NULL && !runs_in_caller(run_options))
        set(status, INTERNAL, "wrong RunOptions");
    else if (strstr(dir, "missing") != NULL)
        set(status, NOT_FOUND, "Could not find SavedModel .pb or .pbtxt at supplied export directory path");
    else if (n_tags != 1 || strcmp(tags[0], "serve") != 0)
        set(status, NOT_FOUND, "Could not find meta graph def matching supplied tags");
    if (status->code != OK) /* also one that an earlier call has left */
        return NULL;
    graph->picky = strstr(dir, "picky") != NULL;
    graph->call.waits = strstr(dir, "ordered") != NULL;
    return session_of(graph, options);
}

void TF_ExtendSession(TF_Session *session, TF_Status *status)
{
    (void)status;
    if (status->code != OK)
        abort(); /* as in the real one, nobody could tell what that is from */
    atomic_store(&session->extended, true);
}

void TF_CloseSession(TF_Session *session, TF_Status *status)
{
    (void)session;
    set(status, OK, "");
}

void TF_DeleteSession(TF_Session *session, TF_Status *status)
{
    set(status, OK, "");
    session->graph->in_use = false;
    if (session->kept != NULL)
        TF_DeleteTensor(session->kept);
    gone(session);
}

static TF_Tensor *compute(const TF_Tensor *in, float bias)
{
    if (in->dtype != FLOAT)
        return share(in);
    TF_Tensor *out = TF_AllocateTensor(FLOAT, in->dims, in->ndim, in->memory->len);
    for (size_t i = 0; i < in->memory->len / sizeof(float); i++)
        ((float *)out->memory->data)[i] = 0.5f * ((const float *)in->memory->data)[i] + 2.0f + bias;
    return out;
}

static bool has_nan(const TF_Tensor *tensor)
{
    if (tensor->dtype == FLOAT)
        for (size_t i = 0; i < tensor->memory->len / sizeof(float); i++)
            if (isnan(((const float *)tensor->memory->data)[i]))
                return true;
    return false;
}

static bool begins_infinite(const TF_Tensor *tensor)
{
    return tensor->dtype == FLOAT && tensor->memory->len > 0 && isinf(*(const float *)tensor->memory->data);
}

void TF_SessionRun(TF_Session *session, const TF_Buffer *run_options, const TF_Output *inputs,
                   TF_Tensor *const *feeds, int n_feeds, const TF_Output *outputs, TF_Tensor **fetches,
                   int n_fetches, const TF_Operation *const *targets, int n_targets, TF_Buffer *metadata,
                   TF_Status *status)
{
    set(status, OK, "");
    if (!(metadata == NULL ? runs_in_caller(run_options) : is_traced(run_options)) ||
        !atomic_load(&session->extended))
        set(status, INTERNAL, "not run as it should be");
    if (metadata != NULL && metadata->length != 0)
        set(status, INVALID_ARGUMENT, "Passing non-empty run_metadata is invalid.");
    for (int i = 0; i < n_targets; i++) {
        if (targets[i] != &session->graph->noop)
            set(status, INTERNAL, "no target");
        atomic_fetch_add(&target_runs, 1);
    }
    for (int i = 0; i < n_feeds; i++) {
        if (inputs[i].oper == NULL || inputs[i].index != 0)
            set(status, INTERNAL, "fed what is not there");
        bool twin = n_fetches > 0 && outputs[0].oper == &session->graph->twin;
        if (begins_infinite(feeds[i]) && !twin) {
            set(status, INVALID_ARGUMENT, "only once");
        } else if (has_nan(feeds[i]) && twin) {
            set(status, INVALID_ARGUMENT,
                "{{function_node f__explained}} {{function_node f__explained}} {{function_node g}} not a number\n\t "
                "[[{{function_node f}}{{node Sum}}]]");
        } else if (has_nan(feeds[i])) {
            char text[2000];
            memset(text, 'n', sizeof text - 1);
            text[sizeof text - 1] = '\0';
            set(status, INVALID_ARGUMENT, text);
        }
    }
    if (status->code != OK)
        return;
    for (int i = 0; i < n_fetches; i++) {
        const TF_Operation *op = outputs[i].oper;
        int feed = outputs[i].index < n_feeds ? outputs[i].index : n_feeds - 1;
        const TF_Tensor *from = feed >= 0 ? feeds[feed] : NULL;
        if (op == &session->graph->variant) {
            fetches[i] = TF_AllocateTensor(VARIANT, NULL, 0, 0);
        } else if (op == &session->graph->keep) {
            TF_Tensor *old = atomic_exchange(&session->kept, share(from));
            if (old != NULL)
                TF_DeleteTensor(old);
            fetches[i] = share(from);
        } else {
            float bias = (op == &session->graph->compiled ? 1000.0f : 0.0f) + session->first;
            fetches[i] = compute(from, bias);
        }
    }
    if (metadata != NULL)
        fill(metadata, run_options->data, run_options->length);
}
