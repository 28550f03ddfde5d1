/* litert: see litert.h and litert_own.h. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "litert_own.h"

enum { OPTIONS_MAX = 64 };

/* ---- errors ------------------------------------------------------------------------------ */

int lite_fail_memory(fs_error *err)
{
    return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
}

/* `what`, and what the interpreter says about it. */
int lite_fail_compiled(const lite_api *api, LiteRtCompiledModel compiled, int status, enum fs_code code,
                         const char *what, fs_error *err)
{
    if (status == LITERT_OUT_OF_MEMORY)
        return lite_fail_memory(err);
    char *words = NULL;
    int rc;
    if (api->CompiledModelGetErrorMessages(compiled, &words) == LITERT_OK && words != NULL && *words != '\0') {
        size_t len = strlen(words);
        while (len > 0 && words[len - 1] == '\n')
            len--;
        rc = fs_fail(err, code, "%s: %.*s", what, len < FS_MESSAGE_MAX ? (int)len : FS_MESSAGE_MAX, words);
    } else {
        rc = fs_fail(err, code, "%s (LiteRT's status %d)", what, status);
    }
    free(words);
    api->CompiledModelClearErrors(compiled);
    return rc;
}

int lite_fail_status(int status, const char *what, fs_error *err)
{
    if (status == LITERT_OUT_OF_MEMORY)
        return lite_fail_memory(err);
    return fs_fail(err, FS_INTERNAL, "LiteRT cannot %s (status %d)", what, status);
}

/* ---- types ------------------------------------------------------------------------------- */

/* LiteRT's element type; 0 for what it does not know, or packs more densely than we do. */
int32_t lite_element_type(int32_t dtype)
{
    switch (dtype) {
    case FS_DT_FLOAT: return LITERT_FLOAT32;
    case FS_DT_DOUBLE: return LITERT_FLOAT64;
    case FS_DT_HALF: return LITERT_FLOAT16;
    case FS_DT_BFLOAT16: return LITERT_BFLOAT16;
    case FS_DT_INT8: return LITERT_INT8;
    case FS_DT_INT16: return LITERT_INT16;
    case FS_DT_INT32: return LITERT_INT32;
    case FS_DT_INT64: return LITERT_INT64;
    case FS_DT_UINT8: return LITERT_UINT8;
    case FS_DT_UINT16: return LITERT_UINT16;
    case FS_DT_UINT32: return LITERT_UINT32;
    case FS_DT_UINT64: return LITERT_UINT64;
    case FS_DT_BOOL: return LITERT_BOOL;
    case FS_DT_COMPLEX64: return LITERT_COMPLEX64;
    case FS_DT_COMPLEX128: return LITERT_COMPLEX128;
    default: return 0;
    }
}

/* ---- open -------------------------------------------------------------------------------- */

static int add_options(const lite_api *api, LiteRtOptions options, const char *kind, const char *text)
{
    size_t len = strlen(text);
    char *copy = malloc(len + 1);
    if (copy == NULL)
        return LITERT_OUT_OF_MEMORY;
    memcpy(copy, text, len + 1);
    LiteRtOpaqueOptions opaque;
    int status = api->CreateOpaqueOptions(kind, copy, free, &opaque);
    if (status != LITERT_OK) {
        free(copy);
        return status;
    }
    status = api->AddOpaqueOptions(options, opaque);
    if (status != LITERT_OK)
        api->DestroyOpaqueOptions(opaque);
    return status;
}

/* One more interpreter. `cpu`: how it computes, as LiteRT's options of that name have it. */
static int compiled_new(fs_model *model, const char *cpu, LiteRtCompiledModel *out, fs_error *err)
{
    const lite_api *api = &model->runtime->api;
    LiteRtOptions options;
    int status = api->CreateOptions(&options);
    if (status != LITERT_OK)
        return lite_fail_status(status, "make options", err);
    status = api->SetOptionsHardwareAccelerators(options, LITERT_CPU);
    if (status == LITERT_OK)
        status = add_options(api, options, "xnnpack", cpu);
    /* Errors are kept to be asked for, not printed. */
    if (status == LITERT_OK)
        status = add_options(api, options, "runtime_options_string", "error_reporter_mode = 2\n");
    if (status == LITERT_OK)
        status = api->CreateCompiledModel(model->runtime->environment, model->file, options, out);
    api->DestroyOptions(options);
    if (status == LITERT_OK || status == LITERT_OUT_OF_MEMORY)
        return status == LITERT_OK ? 0 : lite_fail_memory(err);
    return fs_fail(err, FS_INVALID_ARGUMENT,
                   "LiteRT cannot make an interpreter of it (status %d): it has ops that are not among LiteRT's "
                   "own, or the file is damaged",
                   status);
}

/* Notes why a signature cannot run. */
static int set_broken(lite_signature *sig, fs_error *err, const char *fmt, const char *alias, const char *what)
{
    if (sig->broken != NULL)
        return 0;
    sig->broken = malloc(sizeof *sig->broken);
    if (sig->broken == NULL)
        return lite_fail_memory(err);
    fs_fail(sig->broken, FS_UNIMPLEMENTED, fmt, alias, what);
    return 0;
}

/* Whether one of the first n is k. */
static bool is_taken(const uint32_t *order, size_t n, uint32_t k)
{
    for (size_t i = 0; i < n; i++) {
        if (order[i] == k)
            return true;
    }
    return false;
}

/* Finds which of `ports` each of the subgraph's tensors is, by name. Those that are missing break the
 * signature. */
static int match_ports(const lite_api *api, lite_signature *sig, LiteRtSubgraph subgraph, const fs_port *ports,
                       uint32_t n_ports, bool inputs, uint32_t *order, fs_error *err)
{
    size_t n = 0;
    int status = inputs ? api->GetNumSubgraphInputs(subgraph, &n) : api->GetNumSubgraphOutputs(subgraph, &n);
    uint32_t found = 0;
    for (size_t i = 0; i < n && n == n_ports && status == LITERT_OK; i++) {
        LiteRtTensor tensor;
        const char *name;
        status = inputs ? api->GetSubgraphInput(subgraph, i, &tensor)
                        : api->GetSubgraphOutput(subgraph, i, &tensor);
        if (status == LITERT_OK)
            status = api->GetTensorName(tensor, &name);
        for (uint32_t k = 0; k < n_ports && status == LITERT_OK; k++)
            if (strcmp(ports[k].tensor, name) == 0 && !is_taken(order, i, k)) {
                order[i] = k;
                found++;
                break;
            }
    }
    if (status != LITERT_OK)
        return lite_fail_status(status, "list the model's tensors", err);
    if (found != n_ports)
        return set_broken(sig, err, "signature '%s' does not name each %s of its subgraph once", sig->spec->name,
                          inputs ? "input" : "output");
    for (uint32_t k = 0; k < n_ports; k++)
        if (lite_element_type(ports[k].dtype) == 0) {
            int rc = set_broken(sig, err, "'%s' is a tensor of type %s, which LiteRT's C API gives no access to",
                                ports[k].alias, fs_dtype_name(ports[k].dtype));
            if (rc != 0)
                return rc;
        }
    return 0;
}

/* LiteRT's number of the signature of this name; of the only one, when the file names none. */
static int find_signature(const fs_model *model, const char *name, size_t *number, LiteRtSignature *out,
                          fs_error *err)
{
    const lite_api *api = &model->runtime->api;
    size_t n = 0;
    int status = api->GetNumModelSignatures(model->file, &n);
    for (size_t i = 0; i < n && status == LITERT_OK; i++) {
        const char *key = NULL;
        status = api->GetModelSignature(model->file, i, out);
        if (status == LITERT_OK)
            status = api->GetSignatureKey(*out, &key);
        *number = i;
        if (status == LITERT_OK && (n == 1 || strcmp(key, name) == 0))
            return 0;
    }
    if (status != LITERT_OK)
        return lite_fail_status(status, "list the model's signatures", err);
    return fs_fail(err, FS_INVALID_ARGUMENT, "the model has no signature '%s'", name);
}

static int signature_open(fs_model *model, const fs_signature *spec, lite_signature *sig, fs_error *err)
{
    const lite_api *api = &model->runtime->api;
    sig->spec = spec;
    sig->feeds = calloc((size_t)spec->n_inputs + 1, sizeof *sig->feeds);
    sig->fetches = calloc((size_t)spec->n_outputs + 1, sizeof *sig->fetches);
    sig->shapes = calloc(FS_LITE_SHAPES, sizeof *sig->shapes);
    if (sig->feeds == NULL || sig->fetches == NULL || sig->shapes == NULL)
        return lite_fail_memory(err);
    LiteRtSignature signature;
    int rc = find_signature(model, spec->name, &sig->number, &signature, err);
    if (rc != 0)
        return rc;
    LiteRtSubgraph subgraph;
    int status = api->GetSignatureSubgraph(signature, &subgraph);
    if (status != LITERT_OK)
        return lite_fail_status(status, "find a signature's subgraph", err);
    rc = match_ports(api, sig, subgraph, spec->inputs, spec->n_inputs, true, sig->feeds, err);
    if (rc == 0)
        rc = match_ports(api, sig, subgraph, spec->outputs, spec->n_outputs, false, sig->fetches, err);
    return rc;
}

static void signature_close(lite_signature *sig)
{
    for (size_t i = 0; i < FS_LITE_SHAPES && sig->shapes != NULL; i++)
        free(atomic_load_explicit(&sig->shapes[i], memory_order_relaxed)); /* relaxed: nobody runs any more */
    free(sig->shapes);
    free(sig->feeds);
    free(sig->fetches);
    free(sig->broken);
}

static void lite_close(fs_model *model)
{
    const lite_api *api = &model->runtime->api;
    for (int32_t i = 0; i < model->n_interpreters && model->interpreters != NULL; i++) {
        if (model->interpreters[i].compiled != NULL)
            api->DestroyCompiledModel(model->interpreters[i].compiled);
        free(model->interpreters[i].current);
    }
    if (model->scout != NULL)
        api->DestroyCompiledModel(model->scout);
    if (model->file != NULL)
        api->DestroyModel(model->file);
    for (uint32_t i = 0; i < model->n_signatures && model->signatures != NULL; i++)
        signature_close(&model->signatures[i]);
    pthread_cond_destroy(&model->freed);
    pthread_mutex_destroy(&model->waiters);
    pthread_mutex_destroy(&model->learning);
    free(model->interpreters);
    free(model->signatures);
    free(model);
}

static int file_open(fs_model *model, const char *dir, fs_error *err)
{
    size_t len = strlen(dir);
    char *path = malloc(len + sizeof "/" FS_LITERT_MODEL);
    if (path == NULL)
        return lite_fail_memory(err);
    memcpy(path, dir, len);
    memcpy(path + len, "/" FS_LITERT_MODEL, sizeof "/" FS_LITERT_MODEL);
    int status = model->runtime->api.CreateModelFromFile(model->runtime->environment, path, &model->file);
    int rc = 0;
    if (status == LITERT_OUT_OF_MEMORY)
        rc = lite_fail_memory(err);
    else if (status != LITERT_OK)
        rc = fs_fail(err, FS_INVALID_ARGUMENT, "%s is not there, or no TFLite model (LiteRT's status %d)", path,
                     status);
    free(path);
    return rc;
}

static int interpreters_open(fs_model *model, fs_error *err)
{
    size_t bytes = (size_t)model->n_interpreters * sizeof *model->interpreters;
    model->interpreters = aligned_alloc(_Alignof(lite_interpreter), bytes);
    if (model->interpreters == NULL)
        return lite_fail_memory(err);
    memset(model->interpreters, 0, bytes);
    char cpu[OPTIONS_MAX];
    snprintf(cpu, sizeof cpu, "num_threads = %d\n", (int)model->runtime->options.threads);
    for (int32_t i = 0; i < model->n_interpreters; i++) {
        lite_interpreter *one = &model->interpreters[i];
        one->current = calloc((size_t)model->n_signatures + 1, sizeof *one->current);
        if (one->current == NULL)
            return lite_fail_memory(err);
        int rc = compiled_new(model, cpu, &one->compiled, err);
        if (rc != 0)
            return rc;
    }
    /* It computes nothing, so it need not prepare weights for that. */
    return compiled_new(model, "num_threads = 1\nkernel_mode = \"builtin\"\n", &model->scout, err);
}

static int lite_open(void *self, const fs_model_spec *spec, fs_model **out, fs_error *err)
{
    fs_model *model = calloc(1, sizeof *model);
    if (model == NULL)
        return lite_fail_memory(err);
    model->runtime = self;
    model->n_signatures = spec->n_signatures;
    model->n_interpreters = model->runtime->options.interpreters;
    pthread_mutex_init(&model->learning, NULL);
    pthread_mutex_init(&model->waiters, NULL);
    pthread_cond_init(&model->freed, NULL);
    int rc = file_open(model, spec->path, err);
    model->signatures = calloc((size_t)spec->n_signatures + 1, sizeof *model->signatures);
    if (rc == 0 && model->signatures == NULL)
        rc = lite_fail_memory(err);
    for (uint32_t i = 0; i < spec->n_signatures && rc == 0; i++)
        rc = signature_open(model, &spec->signatures[i], &model->signatures[i], err);
    if (rc == 0)
        rc = interpreters_open(model, err);
    if (rc != 0) {
        lite_close(model);
        return rc;
    }
    *out = model;
    return 0;
}

/* ---- the library ------------------------------------------------------------------------- */

static const fs_runtime_ops LITERT_OPS = {
    .name = "litert",
    .open = lite_open,
    .run = lite_run,
    .release = lite_release,
    .close = lite_close,
};

static void *library_open(const char *dir, fs_error *err)
{
    static const char file[] = "/libLiteRt.so";
    size_t len = strlen(dir);
    char *path = malloc(len + sizeof file);
    if (path == NULL) {
        lite_fail_memory(err);
        return NULL;
    }
    memcpy(path, dir, len);
    memcpy(path + len, file, sizeof file);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == NULL) {
        const char *why = dlerror();
        fs_fail(err, FS_FAILED_PRECONDITION, "cannot open LiteRT's library: %s", why != NULL ? why : path);
    }
    free(path);
    return library;
}

/* Before 2.3 there was no environment in front of a buffer: then the NULL is the buffer, and refused as such,
 * before anything is touched. Since then it is what lies there that is refused. */
static bool is_new_enough(const lite_api *api)
{
    static const uint8_t no_model[64];
    LiteRtModel none = NULL;
    return api->CreateModelFromBuffer(NULL, no_model, sizeof no_model, &none) != LITERT_INVALID_ARGUMENT;
}

int fs_runtime_litert(const char *library_dir, const fs_litert_options *options, fs_runtime *out, fs_error *err)
{
    void *library = library_open(library_dir, err);
    if (library == NULL)
        return err != NULL ? -err->code : -FS_FAILED_PRECONDITION;
    lite_runtime *runtime = calloc(1, sizeof *runtime);
    if (runtime == NULL)
        return lite_fail_memory(err);
    runtime->options = *options;

    const char *missing = NULL;
#define RESOLVE(result, name, args)                                \
    {                                                              \
        void *symbol = dlsym(library, "LiteRt" #name);             \
        if (symbol == NULL && missing == NULL)                     \
            missing = "LiteRt" #name;                              \
        memcpy(&runtime->api.name, &symbol, sizeof symbol);        \
    }
    FS_LITERT_FUNCTIONS(RESOLVE)
#undef RESOLVE
    if (missing != NULL || !is_new_enough(&runtime->api)) {
        free(runtime);
        return fs_fail(err, FS_FAILED_PRECONDITION, "LiteRT's library in %s %s%s: LiteRT 2.3 or newer is needed",
                       library_dir, missing != NULL ? "has no " : "is too old", missing != NULL ? missing : "");
    }

    /* No search for other hardware, and nothing on stderr. */
    const LiteRtEnvOption quiet[] = {
        {.tag = LITERT_ENV_AUTO_REGISTER_ACCELERATORS, .value = {LITERT_ANY_INT, LITERT_CPU}},
        {.tag = LITERT_ENV_MIN_LOGGER_SEVERITY, .value = {LITERT_ANY_INT, LITERT_LOG_SILENT}},
    };
    int status = runtime->api.CreateEnvironment(2, quiet, &runtime->environment);
    if (status != LITERT_OK) {
        free(runtime);
        return lite_fail_status(status, "make an environment", err);
    }
    if (fs_slab_key(&runtime->slab) != 0) {
        runtime->api.DestroyEnvironment(runtime->environment);
        free(runtime);
        return lite_fail_memory(err);
    }
    *out = (fs_runtime){.ops = &LITERT_OPS, .self = runtime};
    return 0;
}

void fs_runtime_litert_free(fs_runtime *runtime)
{
    lite_runtime *self = runtime->self;
    if (self == NULL)
        return;
    /* Other threads' destructors have run with them; this thread may live on. */
    fs_slab *slab = pthread_getspecific(self->slab);
    if (slab != NULL)
        fs_slab_release(slab);
    pthread_key_delete(self->slab);
    self->api.DestroyEnvironment(self->environment);
    free(self);
    *runtime = (fs_runtime){0};
}
