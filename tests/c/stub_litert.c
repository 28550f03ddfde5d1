/* stub_litert: a stand-in for LiteRT's C API, so that sanitizers see all of csrc/litert.c.
 *
 * Built as a shared library and opened by test_litert under LiteRT's own file name. It behaves as the real
 * one where that matters to its caller: shapes that have to be set before a run, outputs in memory that is
 * given, stale memory that a growing shape trips over, errors that are kept until they are asked for,
 * interpreters for one thread each.
 *
 * Every model has these signatures; the order of inputs and outputs is the subgraph's, and not by name:
 *
 *   "mix"     b, a: float -> sum: a + b, half: 0.5 a + 2     NaN in a fails the run, unequal shapes are refused
 *   "bytes"   x: any type -> y: the same                     ranks up to 8
 *   "values"  x: float -> y: float                           y is never written
 *   "late"    x: float -> y: the same                        the shape of y is not known before a run
 *   "some"    x: float -> y: those above 0                   always at least one
 *   "wide"    20 in, 20 out                                  each is passed on
 *
 * A file that is not there is no model; one that begins with "bad" cannot be made an interpreter of; one that
 * begins with "unnamed" has "bytes" only, without a name. */
#include "litert_api.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DECLARE(result, name, args) result LiteRt##name args;
FS_LITERT_FUNCTIONS(DECLARE)
#undef DECLARE

enum { WIDE = 20, PORTS = 24, SIGNATURES = 6 };

static atomic_long live;            /* objects that have not been destroyed */
static atomic_long until_failure;   /* calls that may fail, until one does; 0: none does */
static atomic_bool old;             /* as before 2.3 */
static atomic_long resizes, scouted; /* resizes of interpreters; shapes that were asked for */

long stub_litert_live(void);
long stub_litert_live(void)
{
    return atomic_load(&live);
}

/* The n-th call from now that can fail does, for want of memory. True: it has, since this was last called. */
int stub_litert_fail_after(long n);
int stub_litert_fail_after(long n)
{
    return atomic_exchange(&until_failure, n) < 0;
}

void stub_litert_be_old(int is_old);
void stub_litert_be_old(int is_old)
{
    atomic_store(&old, is_old != 0);
}

long stub_litert_resizes(void);
long stub_litert_resizes(void)
{
    return atomic_load(&resizes);
}

long stub_litert_scouted(void);
long stub_litert_scouted(void)
{
    return atomic_load(&scouted);
}

/* Whether it is the turn of this call to fail; -1 stands there from then on. */
static bool fails(void)
{
    long left = atomic_load(&until_failure);
    while (left > 0)
        if (atomic_compare_exchange_weak(&until_failure, &left, left == 1 ? -1 : left - 1))
            return left == 1;
    return false;
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

/* ---- what the models are ------------------------------------------------------------------ */

struct LiteRtTensorT {
    char name[16];
};

struct LiteRtSubgraphT {
    struct LiteRtTensorT tensors[2][PORTS];
    size_t n[2]; /* inputs, outputs */
};

struct LiteRtSignatureT {
    const char *key;
    struct LiteRtSubgraphT subgraph;
};

struct LiteRtModelT {
    bool bad;
    size_t n_signatures;
    struct LiteRtSignatureT signatures[SIGNATURES];
};

struct LiteRtEnvironmentT {
    int quiet;
};

static void signature(struct LiteRtSignatureT *sig, const char *key, size_t n_in, const char *const *in, size_t n_out,
                      const char *const *out)
{
    sig->key = key;
    sig->subgraph.n[0] = n_in;
    sig->subgraph.n[1] = n_out;
    for (size_t i = 0; i < n_in; i++)
        snprintf(sig->subgraph.tensors[0][i].name, 16, "%s", in[i]);
    for (size_t i = 0; i < n_out; i++)
        snprintf(sig->subgraph.tensors[1][i].name, 16, "%s", out[i]);
}

int LiteRtCreateEnvironment(int n, const LiteRtEnvOption *options, LiteRtEnvironment *out)
{
    if (fails())
        return LITERT_OUT_OF_MEMORY;
    if (n != 2 || options[0].tag != LITERT_ENV_AUTO_REGISTER_ACCELERATORS || options[0].value.int_value != LITERT_CPU)
        return LITERT_INVALID_ARGUMENT;
    *out = made(calloc(1, sizeof **out));
    return LITERT_OK;
}

void LiteRtDestroyEnvironment(LiteRtEnvironment environment)
{
    gone(environment);
}

int LiteRtCreateModelFromBuffer(LiteRtEnvironment environment, const void *data, size_t size, LiteRtModel *out)
{
    (void)out;
    if (atomic_load(&old) && environment == NULL)
        return LITERT_INVALID_ARGUMENT; /* there it is the buffer */
    return data == NULL || size == 0 ? LITERT_INVALID_ARGUMENT : LITERT_INVALID_FLATBUFFER;
}

int LiteRtCreateModelFromFile(LiteRtEnvironment environment, const char *path, LiteRtModel *out)
{
    if (environment == NULL)
        abort();
    if (fails())
        return LITERT_OUT_OF_MEMORY;
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return LITERT_FILE_IO;
    char text[16] = "";
    size_t len = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[len] = '\0';
    LiteRtModel model = made(calloc(1, sizeof *model));
    model->bad = strncmp(text, "bad", 3) == 0;
    static const char *const x[] = {"x"}, *const y[] = {"y"}, *const ba[] = {"b", "a"}, *const sh[] = {"sum", "half"};
    const char *wide_in[WIDE], *wide_out[WIDE];
    char names[2][WIDE][16];
    for (int i = 0; i < WIDE; i++) {
        snprintf(names[0][i], 16, "in%d", i);
        snprintf(names[1][i], 16, "out%d", i);
        wide_in[i] = names[0][i];
        wide_out[i] = names[1][i];
    }
    if (strncmp(text, "unnamed", 7) == 0) {
        model->n_signatures = 1;
        signature(&model->signatures[0], "<placeholder signature>", 1, x, 1, y);
        *out = model;
        return LITERT_OK;
    }
    model->n_signatures = SIGNATURES;
    signature(&model->signatures[0], "mix", 2, ba, 2, sh);
    signature(&model->signatures[1], "bytes", 1, x, 1, y);
    signature(&model->signatures[2], "values", 1, x, 1, y);
    signature(&model->signatures[3], "late", 1, x, 1, y);
    signature(&model->signatures[5], "some", 1, x, 1, y);
    signature(&model->signatures[4], "wide", WIDE, wide_in, WIDE, wide_out);
    *out = model;
    return LITERT_OK;
}

void LiteRtDestroyModel(LiteRtModel model)
{
    gone(model);
}

int LiteRtGetNumModelSignatures(LiteRtModel model, size_t *n)
{
    *n = model->n_signatures;
    return fails() ? LITERT_OUT_OF_MEMORY : LITERT_OK;
}

int LiteRtGetModelSignature(LiteRtModel model, size_t i, LiteRtSignature *out)
{
    *out = &model->signatures[i];
    return fails() ? LITERT_OUT_OF_MEMORY : LITERT_OK;
}

int LiteRtGetSignatureKey(LiteRtSignature sig, const char **key)
{
    *key = sig->key;
    return fails() ? LITERT_OUT_OF_MEMORY : LITERT_OK;
}

int LiteRtGetSignatureSubgraph(LiteRtSignature sig, LiteRtSubgraph *out)
{
    *out = &sig->subgraph;
    return fails() ? LITERT_OUT_OF_MEMORY : LITERT_OK;
}

int LiteRtGetNumSubgraphInputs(LiteRtSubgraph subgraph, size_t *n)
{
    *n = subgraph->n[0];
    return fails() ? LITERT_OUT_OF_MEMORY : LITERT_OK;
}

int LiteRtGetNumSubgraphOutputs(LiteRtSubgraph subgraph, size_t *n)
{
    *n = subgraph->n[1];
    return fails() ? LITERT_OUT_OF_MEMORY : LITERT_OK;
}

int LiteRtGetSubgraphInput(LiteRtSubgraph subgraph, size_t i, LiteRtTensor *out)
{
    *out = &subgraph->tensors[0][i];
    return fails() ? LITERT_OUT_OF_MEMORY : LITERT_OK;
}

int LiteRtGetSubgraphOutput(LiteRtSubgraph subgraph, size_t i, LiteRtTensor *out)
{
    *out = &subgraph->tensors[1][i];
    return fails() ? LITERT_OUT_OF_MEMORY : LITERT_OK;
}

int LiteRtGetTensorName(LiteRtTensor tensor, const char **name)
{
    *name = tensor->name;
    return fails() ? LITERT_OUT_OF_MEMORY : LITERT_OK;
}

/* ---- options ----------------------------------------------------------------------------- */

struct LiteRtOpaqueOptionsT {
    char kind[32];
    char *text;
    void (*destroy)(void *);
    struct LiteRtOpaqueOptionsT *next;
};

struct LiteRtOptionsT {
    int hardware;
    struct LiteRtOpaqueOptionsT *first;
};

int LiteRtCreateOptions(LiteRtOptions *out)
{
    if (fails())
        return LITERT_OUT_OF_MEMORY;
    *out = made(calloc(1, sizeof **out));
    return LITERT_OK;
}

void LiteRtDestroyOptions(LiteRtOptions options)
{
    while (options->first != NULL) {
        LiteRtOpaqueOptions next = options->first->next;
        LiteRtDestroyOpaqueOptions(options->first);
        options->first = next;
    }
    gone(options);
}

int LiteRtSetOptionsHardwareAccelerators(LiteRtOptions options, int hardware)
{
    options->hardware = hardware;
    return fails() ? LITERT_OUT_OF_MEMORY : LITERT_OK;
}

int LiteRtCreateOpaqueOptions(const char *kind, void *text, void (*destroy)(void *), LiteRtOpaqueOptions *out)
{
    if (fails())
        return LITERT_OUT_OF_MEMORY;
    *out = made(calloc(1, sizeof **out));
    snprintf((*out)->kind, sizeof(*out)->kind, "%s", kind);
    (*out)->text = text;
    (*out)->destroy = destroy;
    return LITERT_OK;
}

void LiteRtDestroyOpaqueOptions(LiteRtOpaqueOptions opaque)
{
    opaque->destroy(opaque->text);
    gone(opaque);
}

int LiteRtAddOpaqueOptions(LiteRtOptions options, LiteRtOpaqueOptions opaque)
{
    if (fails())
        return LITERT_OUT_OF_MEMORY;
    opaque->next = options->first;
    options->first = opaque;
    return LITERT_OK;
}

static const char *option(LiteRtOptions options, const char *kind)
{
    for (LiteRtOpaqueOptions one = options->first; one != NULL; one = one->next)
        if (strcmp(one->kind, kind) == 0)
            return one->text;
    return "";
}

/* ---- interpreters ------------------------------------------------------------------------ */

struct LiteRtTensorBufferT {
    LiteRtRankedTensorType type;
    void *data;
    size_t bytes;
};

struct LiteRtCompiledModelT {
    LiteRtModel model;
    LiteRtLayout inputs[SIGNATURES][PORTS];
    int some;                /* values above 0 in the last run of "some" */
    size_t lent[SIGNATURES]; /* bytes of the first input's memory in the last run; 0: it has not run */
    char errors[256];
    atomic_bool in_use;
};

/* The real one breaks when two threads use it at once. */
static void enter(LiteRtCompiledModel compiled)
{
    if (atomic_exchange(&compiled->in_use, true))
        abort();
}

static int leave(LiteRtCompiledModel compiled, int status)
{
    atomic_store(&compiled->in_use, false);
    return status;
}

static int refuse(LiteRtCompiledModel compiled, const char *why)
{
    snprintf(compiled->errors, sizeof compiled->errors, "%s\n", why);
    return leave(compiled, LITERT_RUNTIME_FAILURE);
}

int LiteRtCreateCompiledModel(LiteRtEnvironment environment, LiteRtModel model, LiteRtOptions options,
                              LiteRtCompiledModel *out)
{
    if (environment == NULL || options->hardware != LITERT_CPU ||
        strstr(option(options, "xnnpack"), "num_threads = ") == NULL ||
        strstr(option(options, "runtime_options_string"), "error_reporter_mode = 2") == NULL)
        abort();
    if (fails())
        return LITERT_OUT_OF_MEMORY;
    if (model->bad)
        return LITERT_RUNTIME_FAILURE;
    LiteRtCompiledModel compiled = made(calloc(1, sizeof *compiled));
    compiled->model = model;
    *out = compiled;
    return LITERT_OK;
}

void LiteRtDestroyCompiledModel(LiteRtCompiledModel compiled)
{
    enter(compiled);
    gone(compiled);
}

int LiteRtCompiledModelResizeInputTensorNonStrict(LiteRtCompiledModel compiled, size_t sig, size_t input,
                                                  const int *dims, size_t rank)
{
    enter(compiled);
    if (fails())
        return leave(compiled, LITERT_OUT_OF_MEMORY);
    if (rank == 0 || rank > LITERT_MAX_RANK)
        return refuse(compiled, "New shape must not be empty.");
    LiteRtLayout *layout = &compiled->inputs[sig][input];
    layout->rank = (unsigned)rank & 0x7f;
    for (size_t i = 0; i < rank; i++) {
        if (dims[i] <= 0)
            abort();
        layout->dims[i] = dims[i];
    }
    atomic_fetch_add(&resizes, 1);
    return leave(compiled, LITERT_OK);
}

static size_t elements(const LiteRtLayout *layout)
{
    size_t n = 1;
    for (unsigned i = 0; i < layout->rank; i++)
        n *= (size_t)layout->dims[i];
    return n;
}

static bool same(const LiteRtLayout *a, const LiteRtLayout *b)
{
    return a->rank == b->rank && memcmp(a->dims, b->dims, a->rank * sizeof a->dims[0]) == 0;
}

static const char *key_of(LiteRtCompiledModel compiled, size_t sig)
{
    return compiled->model->signatures[sig].key;
}

/* Which input an output is like. */
static size_t like(const char *key, size_t output)
{
    return strcmp(key, "wide") == 0 ? output : strcmp(key, "mix") == 0 ? 1 : 0;
}

int LiteRtGetCompiledModelOutputTensorLayouts(LiteRtCompiledModel compiled, size_t sig, size_t n, LiteRtLayout *out,
                                              bool update)
{
    enter(compiled);
    if (fails())
        return leave(compiled, LITERT_OUT_OF_MEMORY);
    const char *key = key_of(compiled, sig);
    if (n != compiled->model->signatures[sig].subgraph.n[1])
        abort();
    if (update && compiled->lent[sig] != 0)
        return refuse(compiled, "Custom allocation is too small for tensor idx: 0");
    if (strcmp(key, "mix") == 0 && !same(&compiled->inputs[sig][0], &compiled->inputs[sig][1]))
        return refuse(compiled, "a and b have unequal shapes");
    for (size_t i = 0; i < n; i++) {
        LiteRtLayout layout = compiled->inputs[sig][like(key, i)];
        memset(&out[i], 0xee, sizeof out[i]);
        out[i].rank = layout.rank;
        memcpy(out[i].dims, layout.dims, sizeof layout.dims);
        /* Before a run it is not known that there are as many. */
        if (strcmp(key, "late") == 0 && update)
            out[i].dims[0] = 0;
        if (strcmp(key, "some") == 0)
            out[i].dims[0] = update ? 1 : compiled->some;
    }
    if (update)
        atomic_fetch_add(&scouted, 1);
    return leave(compiled, LITERT_OK);
}

int LiteRtCompiledModelClearErrors(LiteRtCompiledModel compiled)
{
    enter(compiled);
    compiled->errors[0] = '\0';
    return leave(compiled, LITERT_OK);
}

int LiteRtCompiledModelGetErrorMessages(LiteRtCompiledModel compiled, char **words)
{
    enter(compiled);
    size_t len = strlen(compiled->errors);
    *words = malloc(len + 1);
    if (*words == NULL)
        abort();
    memcpy(*words, compiled->errors, len + 1);
    return leave(compiled, LITERT_OK);
}

/* ---- runs -------------------------------------------------------------------------------- */

int LiteRtCreateTensorBufferFromHostMemory(const LiteRtRankedTensorType *type, void *data, size_t bytes,
                                           void (*destroy)(void *), LiteRtTensorBuffer *out)
{
    if (fails())
        return LITERT_OUT_OF_MEMORY;
    if (destroy != NULL || type->layout.has_strides)
        abort();
    if (data == NULL || (uintptr_t)data % LITERT_ALIGNMENT != 0)
        return LITERT_INVALID_ARGUMENT;
    *out = made(calloc(1, sizeof **out));
    **out = (struct LiteRtTensorBufferT){.type = *type, .data = data, .bytes = bytes};
    return LITERT_OK;
}

void LiteRtDestroyTensorBuffer(LiteRtTensorBuffer buffer)
{
    gone(buffer);
}

static void compute(const char *key, size_t output, LiteRtTensorBuffer *in, LiteRtTensorBuffer out)
{
    if (strcmp(key, "mix") != 0) {
        memcpy(out->data, in[like(key, output)]->data, out->bytes);
        return;
    }
    const float *b = in[0]->data, *a = in[1]->data;
    float *y = out->data;
    for (size_t i = 0; i < elements(&out->type.layout); i++)
        y[i] = output == 0 ? a[i] + b[i] : 0.5f * a[i] + 2.0f;
}

int LiteRtRunCompiledModel(LiteRtCompiledModel compiled, size_t sig, size_t n_in, LiteRtTensorBuffer *in, size_t n_out,
                           LiteRtTensorBuffer *out)
{
    enter(compiled);
    if (fails())
        return leave(compiled, LITERT_OUT_OF_MEMORY);
    const char *key = key_of(compiled, sig);
    const struct LiteRtSubgraphT *subgraph = &compiled->model->signatures[sig].subgraph;
    if (n_in != subgraph->n[0] || n_out != subgraph->n[1])
        abort();
    for (size_t i = 0; i < n_in; i++)
        if (!same(&in[i]->type.layout, &compiled->inputs[sig][i]))
            return refuse(compiled, "Input tensor shape mismatch");
    compiled->lent[sig] = in[0]->bytes;
    if (strcmp(key, "mix") == 0)
        for (size_t i = 0; i < elements(&in[1]->type.layout); i++)
            if (isnan(((const float *)in[1]->data)[i]))
                return refuse(compiled, "a has a NaN");
    if (strcmp(key, "some") == 0) {
        const float *from = in[0]->data;
        compiled->some = 0;
        for (size_t i = 0; i < in[0]->bytes / sizeof(float); i++)
            compiled->some += from[i] > 0;
        if (out[0]->bytes < (size_t)compiled->some * sizeof(float))
            return refuse(compiled, "Custom allocation is too small");
        float *to = out[0]->data;
        for (size_t i = 0; i < in[0]->bytes / sizeof(float); i++)
            if (from[i] > 0)
                *to++ = from[i];
        return leave(compiled, LITERT_OK);
    }
    for (size_t i = 0; i < n_out && strcmp(key, "values") != 0; i++) {
        if (out[i]->bytes != in[like(key, i)]->bytes)
            return refuse(compiled, "Custom allocation is too small");
        compute(key, i, in, out[i]);
    }
    return leave(compiled, LITERT_OK);
}
