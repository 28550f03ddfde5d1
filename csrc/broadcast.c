/* broadcast: see broadcast.h. */
#include "broadcast.h"

static bool has_rows(const fs_port *port, const fs_tensor_view *view)
{
    return view->ndim > 0 && (port->ndim < 0 || (port->ndim > 0 && port->dims[0] < 0));
}

/* The view's one row stands for so many. */
static void repeat(fs_tensor_view *view, int64_t rows)
{
    int64_t *dims = (int64_t *)(uintptr_t)view->dims; /* the arena's, and this view's alone */
    int64_t elements = 1;
    dims[0] = rows;
    for (int32_t d = 0; d < view->ndim; d++) {
        if (__builtin_mul_overflow(elements, dims[d], &elements)) {
            elements = INT64_MAX;
            break;
        }
    }
    view->elements = elements;
    view->repeats = true;
}

void fs_broadcast(const fs_signature *sig, const bool *broadcast, fs_tensor_view *views)
{
    int64_t rows = 1;
    bool known = false;
    for (uint32_t i = 0; i < sig->n_inputs; i++) {
        if (!has_rows(&sig->inputs[i], &views[i]) || (broadcast[i] && views[i].dims[0] == 1))
            continue;
        if (known && views[i].dims[0] != rows)
            return;
        rows = views[i].dims[0];
        known = true;
    }
    for (uint32_t i = 0; i < sig->n_inputs && rows != 1; i++) {
        if (broadcast[i] && has_rows(&sig->inputs[i], &views[i]) && views[i].dims[0] == 1)
            repeat(&views[i], rows);
    }
}
