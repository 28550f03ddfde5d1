/* tf: see tf.h.
 *
 * A model is one TF_Session (two in cluster mode, where auto-clustering is a property of the session) with
 * the feeds and fetches of every signature resolved once, in one canonical order: TensorFlow keeps an
 * executor for each distinct list. Ops run in the calling thread (inter_op_thread_pool = -1): a hand-over to
 * TensorFlow's own pool costs more than most of the models served here, and restore ops then stay in the
 * loader that opens.
 *
 * Memory: numeric inputs are lent to TensorFlow where they lie and carry a reference on their fs_buf;
 * strings are copied into TF_TString, never lent as views, because a stateful op may keep them. Outputs are
 * TensorFlow's own memory. What run() itself needs comes from the calling thread's slab, so steady state
 * adds no malloc to TensorFlow's own. */
#include "tf.h"

#include "status.h"
#include "tensor.h"
#include "text.h"
#include "tf_api.h"
#include "tf_explain.h"
#include "tf_lists.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    PORTS_ON_STACK = 32,
    THREAD_CACHE_BYTES = 4 << 20, /* free blocks that a thread keeps: handles and string arrays */
    STRINGS_OFFSET = 64,          /* of the TF_TString array in its fs_buf; TensorFlow checks alignment */
};

/* RunOptions{inter_op_thread_pool: -1}: field 3, a varint of ten bytes. */
static const uint8_t RUN_IN_CALLER[] = {0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01};

typedef struct tf_runtime {
    fs_tf_api api;
    TF_Buffer *run_options; /* read only */
    const TF_Buffer *load_options; /* the same, or NULL: TensorFlow's default */
    pthread_key_t per_thread;
} tf_runtime;

/* What a thread keeps between runs. */
typedef struct tf_thread {
    const fs_tf_api *api;
    fs_slab *slab;
    TF_Status *status;
} tf_thread;

/* One signature in one session. */
typedef struct tf_target {
    TF_Output *feeds;
    TF_Output *fetches;
    TF_Output *explained; /* instead of `fetches`, to learn where an error comes from; or NULL */
    fs_error *broken; /* why every run of it fails, or NULL */
} tf_target;

typedef struct tf_session {
    TF_Graph *graph;
    TF_Session *session;
} tf_session;

struct fs_model {
    tf_runtime *runtime;
    const fs_signature *signatures;
    uint32_t n_signatures;
    tf_session main;
    tf_session second;   /* plain runs in cluster mode; else unused */
    tf_target *plain;    /* n_signatures, in `second` when there is one */
    tf_target *compiled; /* n_signatures */
    fs_tf_lists named;   /* what runs by name have asked for */
};

/* An output's fs_tensor.handle. */
typedef struct tf_output {
    const fs_tf_api *api;
    TF_Tensor *tensor;
    fs_slice *strings; /* for DT_STRING */
    int64_t dims[];
} tf_output;

/* ---- errors ----------------------------------------------------------------------------- */

static int fail_status(const fs_tf_api *api, const TF_Status *status, fs_error *err)
{
    int code = api->GetCode(status);
    if (code <= FS_OK || code > FS_UNAUTHENTICATED)
        code = FS_UNKNOWN;
    const char *text = fs_tf_explained(api->Message(status));
    return fs_fail_text(err, (enum fs_code)code, text, strlen(text));
}

static int fail_memory(fs_error *err)
{
    return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
}

/* ---- the calling thread ------------------------------------------------------------------ */

static void thread_free(void *arg)
{
    tf_thread *thread = arg;
    thread->api->DeleteStatus(thread->status);
    fs_slab_release(thread->slab);
    free(thread);
}

/* NULL when out of memory. */
static tf_thread *thread_get(tf_runtime *runtime)
{
    tf_thread *thread = pthread_getspecific(runtime->per_thread);
    if (thread != NULL)
        return thread;
    thread = malloc(sizeof *thread);
    if (thread == NULL)
        return NULL;
    thread->api = &runtime->api;
    thread->slab = fs_slab_new(THREAD_CACHE_BYTES);
    thread->status = thread->slab != NULL ? runtime->api.NewStatus() : NULL;
    if (thread->status == NULL || pthread_setspecific(runtime->per_thread, thread) != 0) {
        if (thread->status != NULL)
            runtime->api.DeleteStatus(thread->status);
        fs_slab_release(thread->slab);
        free(thread);
        return NULL;
    }
    return thread;
}

/* ---- inputs ------------------------------------------------------------------------------ */

static void lent_free(void *data, size_t len, void *arg)
{
    (void)data;
    (void)len;
    fs_buf_unref(arg);
}

/* Stands at the start of the fs_buf whose strings TensorFlow holds. */
typedef struct strings_head {
    const fs_tf_api *api;
    int64_t count;
} strings_head;

static void strings_free(void *data, size_t len, void *arg)
{
    (void)len;
    fs_buf *buf = arg;
    strings_head head;
    memcpy(&head, buf->data, sizeof head);
    TF_TString *strings = data;
    for (int64_t i = 0; i < head.count; i++)
        head.api->StringDealloc(&strings[i]);
    fs_buf_unref(buf);
}

static TF_Tensor *strings_to_tensor(const tf_thread *thread, const fs_tensor *in)
{
    const fs_tf_api *api = thread->api;
    if ((uint64_t)in->elements > (SIZE_MAX / 4) / sizeof(TF_TString))
        return NULL;
    size_t bytes = (size_t)in->elements * sizeof(TF_TString);
    fs_buf *buf = fs_buf_new(thread->slab, STRINGS_OFFSET + bytes);
    if (buf == NULL)
        return NULL;
    memcpy(buf->data, &(strings_head){.api = api, .count = in->elements}, sizeof(strings_head));
    TF_TString *strings = (TF_TString *)(void *)(buf->data + STRINGS_OFFSET);
    const fs_slice *from = in->data;
    for (int64_t i = 0; i < in->elements; i++) {
        api->StringInit(&strings[i]);
        if (from[i].len > 0) /* an empty slice may have no address at all */
            api->StringCopy(&strings[i], (const char *)from[i].data, from[i].len);
    }
    /* On failure TF_NewTensor has called the deallocator. */
    return api->NewTensor(FS_DT_STRING, in->dims, in->ndim, strings, bytes, strings_free, buf);
}

static TF_Tensor *to_tensor(const tf_thread *thread, const fs_tensor *in)
{
    const fs_tf_api *api = thread->api;
    if (in->dtype == FS_DT_STRING)
        return strings_to_tensor(thread, in);
    if (in->buf != NULL && in->bytes > 0)
        return api->NewTensor(in->dtype, in->dims, in->ndim, in->data, in->bytes, lent_free,
                              fs_buf_ref(in->buf));
    TF_Tensor *tensor = api->AllocateTensor(in->dtype, in->dims, in->ndim, in->bytes);
    if (tensor != NULL && in->bytes > 0)
        memcpy(api->TensorData(tensor), in->data, in->bytes);
    return tensor;
}

/* ---- outputs ----------------------------------------------------------------------------- */

static void tf_release(fs_tensor *output)
{
    tf_output *handle = output->handle;
    if (handle == NULL)
        return;
    handle->api->DeleteTensor(handle->tensor);
    fs_slab_free(handle->strings);
    fs_slab_free(handle);
    output->handle = NULL;
}

/* Takes `tensor` over, on failure too. */
static int from_tensor(const tf_thread *thread, TF_Tensor *tensor, fs_slice name, fs_tensor *out,
                       fs_error *err)
{
    const fs_tf_api *api = thread->api;
    int dtype = api->TensorType(tensor);
    int ndim = api->NumDims(tensor);
    size_t size = fs_dtype_size(dtype);
    if (size == 0) {
        api->DeleteTensor(tensor);
        return fs_fail(err, FS_UNIMPLEMENTED, "output '%.*s' is a tensor of type %s, which cannot be served",
                       (int)(name.len > FS_MESSAGE_MAX ? FS_MESSAGE_MAX : name.len), (const char *)name.data,
                       fs_dtype_name(dtype));
    }
    tf_output *handle = fs_slab_alloc(thread->slab, sizeof *handle + (size_t)ndim * sizeof(int64_t));
    if (handle == NULL) {
        api->DeleteTensor(tensor);
        return fail_memory(err);
    }
    handle->api = api;
    handle->tensor = tensor;
    handle->strings = NULL;
    int64_t elements = 1;
    for (int i = 0; i < ndim; i++) {
        handle->dims[i] = api->Dim(tensor, i);
        elements *= handle->dims[i];
    }
    *out = (fs_tensor){
        .dtype = dtype,
        .ndim = ndim,
        .dims = handle->dims,
        .elements = elements,
        .data = api->TensorData(tensor),
        .bytes = (size_t)elements * size,
        .handle = handle,
    };
    if (dtype != FS_DT_STRING || elements == 0)
        return 0;

    handle->strings = fs_slab_alloc(thread->slab, out->bytes);
    if (handle->strings == NULL) {
        tf_release(out);
        return fail_memory(err);
    }
    const TF_TString *strings = out->data;
    for (int64_t i = 0; i < elements; i++)
        handle->strings[i] = (fs_slice){.data = (const uint8_t *)api->StringGetDataPointer(&strings[i]),
                                        .len = api->StringGetSize(&strings[i])};
    out->data = handle->strings;
    return 0;
}

/* ---- run --------------------------------------------------------------------------------- */

/* One run, and whose it is: the names of its outputs are a signature's or given. */
typedef struct tf_run_list {
    fs_tf_list list;
    const TF_Buffer *options;
    TF_Buffer *metadata; /* empty, or NULL: nobody wants it */
    const fs_signature *sig; /* or NULL, and */
    const fs_slice *names;
} tf_run_list;

static fs_slice output_name(const tf_run_list *run, uint32_t i)
{
    return run->sig != NULL ? fs_slice_of(run->sig->outputs[i].alias) : run->names[i];
}

static int run_list(const tf_thread *thread, TF_Session *session, const tf_run_list *run, TF_Tensor **feeds,
                    TF_Tensor **fetches, const fs_tensor *inputs, fs_tensor *outputs, fs_error *err)
{
    const fs_tf_api *api = thread->api;
    const fs_tf_list *list = &run->list;
    uint32_t fed = 0;
    for (; fed < list->n_feeds; fed++) {
        feeds[fed] = to_tensor(thread, &inputs[fed]);
        if (feeds[fed] == NULL)
            break;
    }
    int rc = 0;
    if (fed == list->n_feeds) {
        api->SessionRun(session, run->options, list->feeds, feeds, (int)list->n_feeds, list->fetches, fetches,
                        (int)list->n_fetches, list->targets, (int)list->n_targets, run->metadata,
                        thread->status);
        if (api->GetCode(thread->status) != FS_OK)
            rc = fail_status(api, thread->status, err);
    } else {
        rc = fail_memory(err);
    }
    for (uint32_t i = 0; i < fed; i++)
        api->DeleteTensor(feeds[i]);
    if (rc != 0) {
        /* Outputs become tensors one by one: before the one that cannot, there may be some. */
        for (uint32_t i = 0; i < list->n_fetches; i++)
            if (fetches[i] != NULL)
                api->DeleteTensor(fetches[i]);
        return rc;
    }

    for (uint32_t i = 0; i < list->n_fetches; i++) {
        if (rc == 0)
            rc = from_tensor(thread, fetches[i], output_name(run, i), &outputs[i], err);
        else
            api->DeleteTensor(fetches[i]);
        if (rc != 0)
            outputs[i].handle = NULL;
    }
    if (rc != 0)
        for (uint32_t i = 0; i < list->n_fetches; i++)
            tf_release(&outputs[i]);
    return rc;
}

/* How a run is made, and what is to be known of it; as in tf_run_list. */
typedef struct tf_how {
    const TF_Buffer *options;
    TF_Buffer *metadata;
} tf_how;

/* A run of a signature, for `fetches`, one for each of its outputs. */
static int run_signature(fs_model *model, uint32_t sig, TF_Session *session, tf_how how, const TF_Output *feeds,
                         const TF_Output *fetches, const fs_tensor *inputs, fs_tensor *outputs, fs_error *err)
{
    const fs_signature *signature = &model->signatures[sig];
    const tf_thread *thread = thread_get(model->runtime);
    if (thread == NULL)
        return fail_memory(err);

    size_t ports = (size_t)signature->n_inputs + signature->n_outputs;
    TF_Tensor *on_stack[PORTS_ON_STACK];
    TF_Tensor **fed = on_stack;
    if (ports > PORTS_ON_STACK) {
        fed = fs_slab_alloc(thread->slab, ports * sizeof(TF_Tensor *));
        if (fed == NULL)
            return fail_memory(err);
    }
    TF_Tensor **fetched = fed + signature->n_inputs;
    for (uint32_t i = 0; i < signature->n_outputs; i++)
        fetched[i] = NULL;
    const tf_run_list run = {
        .list = {feeds, signature->n_inputs, fetches, signature->n_outputs, NULL, 0},
        .options = how.options,
        .metadata = how.metadata,
        .sig = signature,
    };
    int rc = run_list(thread, session, &run, fed, fetched, inputs, outputs, err);
    if (fed != on_stack)
        fs_slab_free(fed);
    return rc;
}

static TF_Session *plain_session(const fs_model *model)
{
    return model->second.session != NULL ? model->second.session : model->main.session;
}

/* The options of every run but those that are traced. */
static tf_how as_ever(const fs_model *model)
{
    return (tf_how){.options = model->runtime->run_options};
}

static int run_target(fs_model *model, uint32_t sig, enum fs_run_variant variant, tf_how how,
                      const fs_tensor *inputs, fs_tensor *outputs, fs_error *err)
{
    const tf_target *target = variant == FS_RUN_COMPILED ? &model->compiled[sig] : &model->plain[sig];
    TF_Session *session = variant == FS_RUN_PLAIN ? plain_session(model) : model->main.session;
    const fs_error *broken = target->broken;
    if (broken != NULL)
        return fs_fail_text(err, (enum fs_code)broken->code, broken->msg, broken->len);
    return run_signature(model, sig, session, how, target->feeds, target->fetches, inputs, outputs, err);
}

static int tf_run(fs_model *model, uint32_t sig, enum fs_run_variant variant, const fs_tensor *inputs,
                  fs_tensor *outputs, fs_error *err)
{
    return run_target(model, sig, variant, as_ever(model), inputs, outputs, err);
}

/* RunOptions{trace_level, inter_op_thread_pool: -1, output_partition_graphs}. NULL: out of memory. */
static TF_Buffer *trace_options(const fs_tf_api *api, unsigned what)
{
    const uint8_t level[] = {0x08, what & FS_TF_TRACE_DEVICES ? 3 : 1};
    const uint8_t graphs[] = {0x28, what & FS_TF_TRACE_GRAPHS ? 1 : 0};
    uint8_t bytes[sizeof level + sizeof RUN_IN_CALLER + sizeof graphs];
    memcpy(bytes, level, sizeof level);
    memcpy(bytes + sizeof level, RUN_IN_CALLER, sizeof RUN_IN_CALLER);
    memcpy(bytes + sizeof level + sizeof RUN_IN_CALLER, graphs, sizeof graphs);
    return api->NewBufferFromString(bytes, sizeof bytes);
}

int fs_runtime_tensorflow_run_traced(fs_model *model, uint32_t sig, enum fs_run_variant variant, unsigned what,
                                     const fs_tensor *inputs, fs_tensor *outputs, fs_tf_metadata *metadata,
                                     fs_error *err)
{
    const fs_tf_api *api = &model->runtime->api;
    TF_Buffer *options = trace_options(api, what);
    TF_Buffer *told = options != NULL ? api->NewBuffer() : NULL;
    int rc = told == NULL ? fail_memory(err)
                          : run_target(model, sig, variant, (tf_how){options, told}, inputs, outputs, err);
    if (options != NULL)
        api->DeleteBuffer(options);
    if (rc != 0) {
        if (told != NULL)
            api->DeleteBuffer(told);
        return rc;
    }
    *metadata = (fs_tf_metadata){.bytes = {told->data, told->length}, .handle = told};
    return 0;
}

void fs_runtime_tensorflow_metadata_free(const fs_model *model, fs_tf_metadata *metadata)
{
    if (metadata->handle != NULL)
        model->runtime->api.DeleteBuffer(metadata->handle);
    *metadata = (fs_tf_metadata){0};
}

/* Whether an error may come from a node and does not say from which. One that was cut has no room for it. */
static bool lacks_its_node(const fs_error *err)
{
    static const char node[] = "[[{{";
    switch (err->code) {
    case FS_INVALID_ARGUMENT:
    case FS_FAILED_PRECONDITION:
    case FS_OUT_OF_RANGE:
    case FS_NOT_FOUND:
    case FS_UNIMPLEMENTED:
    case FS_INTERNAL:
    case FS_UNKNOWN:
        return err->len <= FS_MESSAGE_MAX && memmem(err->msg, err->len, node, sizeof node - 1) == NULL;
    default:
        return false;
    }
}

/* The second run gives its text and nothing else: what has failed stays failed. */
static void tf_explain(fs_model *model, uint32_t sig, const fs_tensor *inputs, fs_error *err)
{
    const tf_target *target = &model->plain[sig];
    uint32_t n = model->signatures[sig].n_outputs;
    bool wanted = target->explained != NULL && lacks_its_node(err);
    const tf_thread *thread = wanted ? thread_get(model->runtime) : NULL;
    fs_tensor *outputs = thread != NULL ? fs_slab_alloc(thread->slab, n * sizeof *outputs) : NULL;
    if (outputs == NULL)
        return;
    fs_error again;
    int rc = run_signature(model, sig, plain_session(model), as_ever(model), target->feeds, target->explained,
                           inputs, outputs, &again);
    for (uint32_t i = 0; rc == 0 && i < n; i++)
        tf_release(&outputs[i]);
    if (rc != 0 && again.code == err->code)
        *err = again;
    fs_slab_free(outputs);
}

/* ---- names ------------------------------------------------------------------------------- */

/* Looks up "node:index" ("node" means index 0). `scratch` has room for it and a NUL. What does not exist is refused in
 * TensorFlow's own words. */
static int find_output(const fs_tf_api *api, TF_Graph *graph, fs_slice tensor, char *scratch, TF_Output *out,
                       fs_error *err)
{
    if (tensor.len > 0)
        memcpy(scratch, tensor.data, tensor.len);
    scratch[tensor.len] = '\0';
    char *colon = strrchr(scratch, ':');
    bool sound = strlen(scratch) == tensor.len; /* no NUL within */
    long index = 0;
    if (colon != NULL) {
        char *end;
        index = strtol(colon + 1, &end, 10);
        sound = sound && end != colon + 1 && *end == '\0' && index >= 0 && index <= INT_MAX;
        *colon = '\0';
    }
    TF_Operation *op = sound && *scratch != '\0' ? api->GraphOperationByName(graph, scratch) : NULL;
    *out = (TF_Output){.oper = op, .index = (int)index};
    if (op == NULL) {
        fs_text text = fs_text_begin(err, FS_INVALID_ARGUMENT);
        fs_text_put(&text, "Tensor ");
        fs_text_put_slice(&text, tensor);
        fs_text_put(&text, ", specified in either feed_devices or fetch_devices was not found in the Graph");
        return fs_text_end(&text);
    }
    int n_outputs = api->OperationNumOutputs(op);
    if (index >= n_outputs)
        return fs_fail(err, FS_OUT_OF_RANGE,
                       "Node '%s' (type: '%s', num of outputs: %d) does not have output %ld", scratch,
                       api->OperationOpType(op), n_outputs, index);
    return 0;
}

static int find_target(const fs_tf_api *api, TF_Graph *graph, fs_slice name, char *scratch,
                       const TF_Operation **out, fs_error *err)
{
    if (name.len > 0)
        memcpy(scratch, name.data, name.len);
    scratch[name.len] = '\0';
    *out = strlen(scratch) == name.len ? api->GraphOperationByName(graph, scratch) : NULL;
    if (*out != NULL)
        return 0;
    fs_text text = fs_text_begin(err, FS_NOT_FOUND);
    fs_text_put(&text, "PruneForTargets: Some target nodes not found: ");
    fs_text_put_slice(&text, name);
    return fs_text_end(&text);
}

static size_t longest_name(const fs_slice *names, uint32_t n, size_t longest)
{
    for (uint32_t i = 0; i < n; i++)
        longest = names[i].len > longest ? names[i].len : longest;
    return longest;
}

/* ---- runs by name ------------------------------------------------------------------------ */

/* What a run by name needs beside its tensors; one block. */
typedef struct tf_named {
    TF_Output *feeds;
    TF_Output *fetches;
    const TF_Operation **targets;
    TF_Tensor **fed;
    TF_Tensor **fetched;
    char *scratch;
} tf_named;

/* NULL: out of memory. */
static void *named_new(const tf_thread *thread, const fs_named_run *run, tf_named *named)
{
    size_t ports = (size_t)run->n_feeds + run->n_fetches;
    size_t longest = longest_name(run->feeds, run->n_feeds, 0);
    longest = longest_name(run->fetches, run->n_fetches, longest);
    longest = longest_name(run->targets, run->n_targets, longest);
    void *block = fs_slab_alloc(thread->slab, ports * (sizeof(TF_Output) + sizeof(TF_Tensor *)) +
                                                  run->n_targets * sizeof(TF_Operation *) + longest + 1);
    if (block == NULL)
        return NULL;
    named->feeds = block;
    named->fetches = named->feeds + run->n_feeds;
    named->fed = (TF_Tensor **)(void *)(named->fetches + run->n_fetches);
    named->fetched = named->fed + run->n_feeds;
    named->targets = (const TF_Operation **)(void *)(named->fetched + run->n_fetches);
    named->scratch = (char *)(named->targets + run->n_targets);
    memset(named->fetched, 0, run->n_fetches * sizeof *named->fetched);
    return block;
}

/* Of a model with two sessions, in the one for plain runs. */
static int tf_run_named(fs_model *model, const fs_named_run *run, fs_tensor *outputs, fs_error *err)
{
    const fs_tf_api *api = &model->runtime->api;
    TF_Graph *graph = model->second.session != NULL ? model->second.graph : model->main.graph;
    const tf_thread *thread = thread_get(model->runtime);
    tf_named named;
    void *block = thread != NULL ? named_new(thread, run, &named) : NULL;
    if (block == NULL)
        return fail_memory(err);
    int rc = 0;
    for (uint32_t i = 0; i < run->n_feeds && rc == 0; i++)
        rc = find_output(api, graph, run->feeds[i], named.scratch, &named.feeds[i], err);
    for (uint32_t i = 0; i < run->n_fetches && rc == 0; i++)
        rc = find_output(api, graph, run->fetches[i], named.scratch, &named.fetches[i], err);
    for (uint32_t i = 0; i < run->n_targets && rc == 0; i++)
        rc = find_target(api, graph, run->targets[i], named.scratch, &named.targets[i], err);
    const tf_run_list one = {
        .list = {named.feeds, run->n_feeds, named.fetches, run->n_fetches, named.targets, run->n_targets},
        .options = model->runtime->run_options,
        .names = run->fetches,
    };
    if (rc == 0)
        rc = fs_tf_lists_admit(&model->named, &one.list, err);
    if (rc == 0)
        rc = run_list(thread, plain_session(model), &one, named.fed, named.fetched, run->inputs, outputs, err);
    fs_slab_free(block);
    return rc;
}

/* ---- open -------------------------------------------------------------------------------- */

/* What does not exist leaves 0 and a text in *broken, so that a signature that can never run answers as it does in
 * TensorFlow. */
static int resolve(const fs_tf_api *api, TF_Graph *graph, const char *tensor, TF_Output *out, fs_error **broken)
{
    fs_error err;
    char *scratch = malloc(strlen(tensor) + 1);
    if (scratch == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    int rc = find_output(api, graph, fs_slice_of(tensor), scratch, out, &err);
    free(scratch);
    if (rc == 0 || *broken != NULL)
        return 0;
    *broken = malloc(sizeof **broken);
    if (*broken == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    **broken = err;
    return 0;
}

/* `fetches`: names instead of the signature's outputs, or NULL. */
static int target_open(const fs_tf_api *api, TF_Graph *graph, const fs_signature *sig, char **fetches,
                       tf_target *target, fs_error *err)
{
    target->feeds = calloc((size_t)sig->n_inputs + 1, sizeof(TF_Output));
    target->fetches = calloc((size_t)sig->n_outputs + 1, sizeof(TF_Output));
    if (target->feeds == NULL || target->fetches == NULL)
        return fail_memory(err);
    int rc = 0;
    for (uint32_t i = 0; i < sig->n_inputs && rc == 0; i++)
        rc = resolve(api, graph, sig->inputs[i].tensor, &target->feeds[i], &target->broken);
    for (uint32_t i = 0; i < sig->n_outputs && rc == 0; i++)
        rc = resolve(api, graph, fetches != NULL ? fetches[i] : sig->outputs[i].tensor, &target->fetches[i],
                     &target->broken);
    return rc != 0 ? fail_memory(err) : 0;
}

static void target_close(tf_target *target)
{
    free(target->feeds);
    free(target->fetches);
    free(target->explained);
    free(target->broken);
}

/* The executor for one thread does not say which node an error comes from. */
static int target_explain(tf_runtime *runtime, TF_Graph *graph, const fs_signature *sig, fs_slice config,
                          tf_target *target, fs_error *err)
{
    if (target->broken != NULL || !fs_tf_may_explain(config))
        return 0;
    tf_thread *thread = thread_get(runtime);
    TF_Output *twins = thread != NULL ? calloc((size_t)sig->n_outputs + 1, sizeof *twins) : NULL;
    if (twins == NULL)
        return fail_memory(err);
    int rc = fs_tf_explain(&runtime->api, graph, target->fetches, sig->n_outputs, twins, thread->status);
    if (rc == 0)
        target->explained = twins;
    else
        free(twins);
    return rc == -FS_RESOURCE_EXHAUSTED ? fail_memory(err) : 0;
}

/* Options with this ConfigProto. 0 or -code with *err. */
static int options_new(const fs_tf_api *api, tf_thread *thread, fs_slice config, TF_SessionOptions **out,
                       fs_error *err)
{
    TF_SessionOptions *options = api->NewSessionOptions();
    if (options == NULL)
        return fail_memory(err);
    /* What follows sets the status when it fails and leaves it alone when it does not. */
    api->SetStatus(thread->status, FS_OK, "");
    if (config.len > 0) {
        api->SetConfig(options, config.data, config.len, thread->status);
        if (api->GetCode(thread->status) != FS_OK) {
            api->DeleteSessionOptions(options);
            return fail_status(api, thread->status, err);
        }
    }
    *out = options;
    return 0;
}

static int session_open(tf_runtime *runtime, const fs_model_spec *spec, fs_slice config, tf_session *out,
                        fs_error *err)
{
    const fs_tf_api *api = &runtime->api;
    tf_thread *thread = thread_get(runtime);
    out->graph = thread != NULL ? api->NewGraph() : NULL;
    if (out->graph == NULL)
        return fail_memory(err);
    TF_SessionOptions *options;
    int rc = options_new(api, thread, config, &options, err);
    if (rc != 0)
        return rc;
    out->session = api->LoadSessionFromSavedModel(options, runtime->load_options, spec->path, spec->tags,
                                                  (int)spec->n_tags, out->graph, NULL, thread->status);
    if (api->GetCode(thread->status) != FS_OK)
        rc = fail_status(api, thread->status, err);
    api->DeleteSessionOptions(options);
    return rc;
}

/* The graph will not change again. Without this every run takes the graph's and the session's mutex to find that
 * out. */
static int session_settle(tf_runtime *runtime, const tf_session *session, fs_error *err)
{
    const fs_tf_api *api = &runtime->api;
    tf_thread *thread = thread_get(runtime);
    if (thread == NULL)
        return fail_memory(err);
    api->SetStatus(thread->status, FS_OK, ""); /* it leaves the status alone when it does not fail */
    api->ExtendSession(session->session, thread->status);
    return api->GetCode(thread->status) == FS_OK ? 0 : fail_status(api, thread->status, err);
}

static void session_close(tf_runtime *runtime, tf_session *session)
{
    const fs_tf_api *api = &runtime->api;
    if (session->session != NULL) {
        /* Both discard everything whatever the status says. A thread that cannot get a status of its own
         * is out of memory, and then a session that leaks is the lesser evil. */
        tf_thread *thread = thread_get(runtime);
        if (thread == NULL)
            return;
        api->CloseSession(session->session, thread->status);
        api->DeleteSession(session->session, thread->status);
    }
    if (session->graph != NULL)
        api->DeleteGraph(session->graph);
}

static void tf_close(fs_model *model)
{
    session_close(model->runtime, &model->second);
    session_close(model->runtime, &model->main);
    for (uint32_t i = 0; i < model->n_signatures; i++) {
        if (model->plain != NULL)
            target_close(&model->plain[i]);
        if (model->compiled != NULL)
            target_close(&model->compiled[i]);
    }
    free(model->plain);
    free(model->compiled);
    fs_tf_lists_destroy(&model->named);
    free(model);
}

static int model_open(fs_model *model, const fs_model_spec *spec, fs_error *err)
{
    model->plain = calloc((size_t)spec->n_signatures + 1, sizeof(tf_target));
    model->compiled = calloc((size_t)spec->n_signatures + 1, sizeof(tf_target));
    if (model->plain == NULL || model->compiled == NULL)
        return fail_memory(err);
    int rc = session_open(model->runtime, spec, spec->session_config, &model->main, err);
    if (rc == 0 && spec->second_session_plain)
        rc = session_open(model->runtime, spec, spec->plain_config, &model->second, err);
    TF_Graph *plain_graph = spec->second_session_plain ? model->second.graph : model->main.graph;
    fs_slice plain_config = spec->second_session_plain ? spec->plain_config : spec->session_config;
    for (uint32_t i = 0; i < spec->n_signatures && rc == 0; i++) {
        const fs_signature *sig = &spec->signatures[i];
        rc = target_open(&model->runtime->api, plain_graph, sig, NULL, &model->plain[i], err);
        if (rc == 0)
            rc = target_explain(model->runtime, plain_graph, sig, plain_config, &model->plain[i], err);
        if (rc == 0)
            rc = target_open(&model->runtime->api, model->main.graph, sig, sig->compiled_outputs,
                             &model->compiled[i], err);
    }
    if (rc == 0)
        rc = session_settle(model->runtime, &model->main, err);
    if (rc == 0 && spec->second_session_plain)
        rc = session_settle(model->runtime, &model->second, err);
    return rc;
}

static int tf_open(void *self, const fs_model_spec *spec, fs_model **out, fs_error *err)
{
    fs_model *model = calloc(1, sizeof *model);
    if (model == NULL)
        return fail_memory(err);
    model->runtime = self;
    model->signatures = spec->signatures;
    model->n_signatures = spec->n_signatures;
    fs_tf_lists_init(&model->named);
    int rc = model_open(model, spec, err);
    if (rc != 0) {
        tf_close(model);
        return rc;
    }
    *out = model;
    return 0;
}

/* ---- the library ------------------------------------------------------------------------- */

static const fs_runtime_ops TF_OPS = {
    .name = "tensorflow",
    .open = tf_open,
    .run = tf_run,
    .release = tf_release,
    .close = tf_close,
};

static void *library_open(const char *dir, const char *file, fs_error *err)
{
    size_t dir_len = strlen(dir);
    size_t file_len = strlen(file);
    char *path = malloc(dir_len + 1 + file_len + 1);
    if (path == NULL) {
        fail_memory(err);
        return NULL;
    }
    memcpy(path, dir, dir_len);
    path[dir_len] = '/';
    memcpy(path + dir_len + 1, file, file_len + 1);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        const char *why = dlerror();
        fs_fail(err, FS_FAILED_PRECONDITION, "cannot open TensorFlow's library: %s",
                why != NULL ? why : path);
    }
    free(path);
    return library;
}

int fs_runtime_tensorflow(const char *library_dir, fs_runtime *out, fs_error *err)
{
    /* The framework first: the other library needs it, and finds it by its name once it is here. */
    void *framework = library_open(library_dir, "libtensorflow_framework.so.2", err);
    void *cc = framework != NULL ? library_open(library_dir, "libtensorflow_cc.so.2", err) : NULL;
    if (cc == NULL)
        return err != NULL ? -err->code : -FS_FAILED_PRECONDITION;
    tf_runtime *runtime = calloc(1, sizeof *runtime);
    if (runtime == NULL)
        return fail_memory(err);

    /* Which library defines a function differs between versions. */
    const char *missing = NULL;
#define RESOLVE(result, name, args)                                    \
    {                                                                  \
        void *symbol = dlsym(cc, "TF_" #name);                         \
        if (symbol == NULL)                                            \
            symbol = dlsym(framework, "TF_" #name);                    \
        if (symbol == NULL && missing == NULL)                         \
            missing = "TF_" #name;                                     \
        memcpy(&runtime->api.name, &symbol, sizeof symbol);            \
    }
    FS_TF_FUNCTIONS(RESOLVE)
#undef RESOLVE
    if (missing != NULL) {
        free(runtime);
        return fs_fail(err, FS_FAILED_PRECONDITION,
                       "TensorFlow's libraries in %s have no %s: TensorFlow 2.16 or newer is needed",
                       library_dir, missing);
    }
    runtime->run_options = runtime->api.NewBufferFromString(RUN_IN_CALLER, sizeof RUN_IN_CALLER);
    if (runtime->run_options == NULL || pthread_key_create(&runtime->per_thread, thread_free) != 0) {
        if (runtime->run_options != NULL)
            runtime->api.DeleteBuffer(runtime->run_options);
        free(runtime);
        return fail_memory(err);
    }
    runtime->load_options = runtime->run_options;
    *out = (fs_runtime){.ops = &TF_OPS, .self = runtime, .run_named = tf_run_named, .explain = tf_explain};
    return 0;
}

int fs_runtime_tensorflow_op_library(const fs_runtime *runtime, const char *path, fs_error *err)
{
    tf_runtime *self = runtime->self;
    const fs_tf_api *api = &self->api;
    tf_thread *thread = thread_get(self);
    if (thread == NULL)
        return fail_memory(err);
    api->SetStatus(thread->status, FS_OK, "");
    TF_Library *library = api->LoadLibrary(path, thread->status);
    int code = api->GetCode(thread->status);
    if (code == FS_OK) {
        api->DeleteLibraryHandle(library); /* the library itself stays */
        return 0;
    }
    if (code < FS_OK || code > FS_UNAUTHENTICATED)
        code = FS_UNKNOWN;
    return fs_fail(err, (enum fs_code)code, "the op library %s cannot be loaded: %s", path,
                   api->Message(thread->status));
}

int fs_runtime_tensorflow_prime(const fs_runtime *runtime, fs_slice session_config, fs_error *err)
{
    tf_runtime *self = runtime->self;
    const fs_tf_api *api = &self->api;
    tf_thread *thread = thread_get(self);
    tf_session empty = {.graph = thread != NULL ? api->NewGraph() : NULL};
    if (empty.graph == NULL)
        return fail_memory(err);
    TF_SessionOptions *options;
    int rc = options_new(api, thread, session_config, &options, err);
    if (rc == 0) {
        empty.session = api->NewSession(empty.graph, options, thread->status);
        if (api->GetCode(thread->status) != FS_OK)
            rc = fail_status(api, thread->status, err);
        api->DeleteSessionOptions(options);
    }
    session_close(self, &empty);
    return rc;
}

void fs_runtime_tensorflow_restore_in_pool(fs_runtime *runtime)
{
    tf_runtime *self = runtime->self;
    self->load_options = NULL;
}

const char *fs_runtime_tensorflow_version(const fs_runtime *runtime)
{
    const tf_runtime *self = runtime->self;
    return self->api.Version();
}

void fs_runtime_tensorflow_free(fs_runtime *runtime)
{
    tf_runtime *self = runtime->self;
    if (self == NULL)
        return;
    /* Other threads' destructors have run with them; this thread may live on. */
    tf_thread *thread = pthread_getspecific(self->per_thread);
    if (thread != NULL)
        thread_free(thread);
    pthread_key_delete(self->per_thread);
    self->api.DeleteBuffer(self->run_options);
    free(self);
    *runtime = (fs_runtime){0};
}
