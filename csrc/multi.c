/* multi: see multi.h. */
#include "multi.h"

#include <string.h>

#include "call_check.h"
#include "engine.h"
#include "infer_request.h"
#include "queue.h"
#include "text.h"

static int out_of_memory(fs_error *err)
{
    return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
}

static int fail_with_name(fs_error *err, enum fs_code code, const char *what, fs_slice name)
{
    fs_text text = fs_text_begin(err, code);
    fs_text_put(&text, what);
    fs_text_put_slice(&text, name);
    return fs_text_end(&text);
}

static bool same(fs_slice a, fs_slice b)
{
    return fs_slice_compare(a, b) == 0;
}

/* Makes the call of task number `i`; those before it are there. */
static int add_task(fs_call *whole, fs_servable *servable, uint32_t i, fs_error *err)
{
    const fs_infer_task *tasks = whole->infer->tasks, *asked = &tasks[i];
    fs_multi *multi = whole->multi;
    if (asked->model.name.len == 0)
        return fs_fail(err, FS_INVALID_ARGUMENT, "Found ModelSpec with an empty model name.");
    if (!same(asked->model.name, tasks[0].model.name)) {
        return fs_fail(err, FS_INVALID_ARGUMENT,
                       "All ModelSpecs in a MultiInferenceRequest must access the same model name.");
    }
    fs_slice name = fs_signature_or_default(asked->model.signature);
    fs_queue *queue = fs_servable_find(servable, name);
    if (queue == NULL)
        return fail_with_name(err, FS_INVALID_ARGUMENT, "Requested signature not found in model graph: ", name);
    for (uint32_t k = 0; k < i; k++) {
        if (multi->tasks[k]->queue == queue)
            return fail_with_name(err, FS_INVALID_ARGUMENT, "Duplicate evaluation of signature: ", name);
    }
    enum fs_call_kind kind = FS_CALL_CLASSIFY;
    if (same(asked->method, fs_slice_of(FS_METHOD_REGRESS)))
        kind = FS_CALL_REGRESS;
    else if (!same(asked->method, fs_slice_of(FS_METHOD_CLASSIFY)))
        return fail_with_name(err, FS_UNIMPLEMENTED, "Unsupported signature method_name: ", asked->method);
    int rc = fs_infer_check_signature(whole, kind, queue, err);
    if (rc != 0)
        return rc;
    const fs_signature *first = i == 0 ? queue->signature : multi->tasks[0]->queue->signature;
    if (strcmp(first->inputs[0].tensor, queue->signature->inputs[0].tensor) != 0)
        return fs_fail(err, FS_INVALID_ARGUMENT, "Input tensor must be the same for all Signatures.");

    fs_call *task = fs_call_new(whole->owner, whole->rpc);
    if (task == NULL)
        return out_of_memory(err);
    task->whole = whole;
    task->kind = kind;
    task->queue = queue;
    multi->tasks[multi->n++] = task;
    return 0;
}

static int make_tasks(fs_call *whole, fs_servable *servable, fs_error *err)
{
    const fs_infer_request *request = whole->infer;
    uint32_t n = request->n_tasks; /* at least one, whose model was found */
    fs_multi *multi = fs_arena_alloc(&whole->arena, sizeof *multi + n * sizeof(fs_call *));
    if (multi == NULL)
        return out_of_memory(err);
    multi->n = 0;
    atomic_init(&multi->left, n);
    whole->multi = multi;
    for (uint32_t i = 0; i < n; i++) {
        int rc = add_task(whole, servable, i, err);
        if (rc != 0)
            return rc;
    }
    if (request->more_tasks)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "more than %d tasks in one request", FS_MAX_TASKS);
    for (uint32_t i = 0; i < n; i++) {
        int rc = fs_infer_check_input(multi->tasks[i], &request->examples, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* No task is out any more. Those that were are over. */
static void refused(fs_call *whole, fs_error *err)
{
    const fs_multi *multi = whole->multi;
    fs_call_refused(whole, multi->tasks[0]->queue, err);
    for (uint32_t i = 0; i < multi->n; i++) {
        if (FS_COUNTED(multi->tasks[i]->meter))
            fs_meter_finished(multi->tasks[i]->meter);
    }
}

int fs_multi_admit(fs_call *whole, fs_servable *servable, fs_error *err)
{
    int rc = make_tasks(whole, servable, err);
    if (rc != 0) {
        bool found = whole->multi != NULL && whole->multi->n > 0;
        fs_call_refused(whole, found ? whole->multi->tasks[0]->queue : NULL, err);
        fs_servable_unpin(servable, 1);
        return rc;
    }
    fs_multi *multi = whole->multi;
    uint32_t n = multi->n;
    fs_servable_pin(servable, n - 1);
    for (uint32_t i = 0; i < n; i++) {
        fs_call *task = multi->tasks[i];
        fs_queue *queue = task->queue;
        rc = fs_queue_push(queue, task, err); /* with the last one in its queue the whole may be gone */
        if (rc == 0)
            continue;
        fs_count(queue, FS_COUNT_FAILED, 1);
        fs_call_fail(whole, whole->owner->slab, err->code, err->msg, err->len);
        /* acq_rel: as every finished task; the failure above is for the last of them to see. */
        bool last = atomic_fetch_sub_explicit(&multi->left, n - i, memory_order_acq_rel) == n - i;
        if (last)
            refused(whole, err);
        fs_servable_unpin(servable, n - i);
        return last ? rc : 0; /* else the tasks that are out bring the failure home */
    }
    return 0;
}

fs_call *fs_multi_finish(fs_call *task, const fs_reply_config *config, fs_slab *slab)
{
    fs_call *whole = task->whole;
    fs_multi *multi = whole->multi;
    /* acq_rel: see fs_multi.left. */
    if (atomic_fetch_sub_explicit(&multi->left, 1, memory_order_acq_rel) != 1)
        return NULL;
    for (uint32_t i = 0; i < multi->n && whole->code == FS_OK; i++) {
        fs_call *failed = multi->tasks[i];
        if (failed->code == FS_OK)
            continue;
        whole->code = failed->code;
        whole->text = failed->text;
        whole->text_len = failed->text_len;
        failed->text = NULL;
    }
    if (whole->code == FS_OK)
        fs_reply_join(whole, config, slab);
    return whole;
}

void fs_multi_discard(fs_multi *multi)
{
    for (uint32_t i = 0; i < multi->n; i++)
        fs_call_discard(multi->tasks[i]);
}
