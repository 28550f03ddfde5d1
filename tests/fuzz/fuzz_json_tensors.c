/* fuzz_json_tensors: any bytes as a predict request in JSON, for inputs of several types.
 *
 * The first byte says which types. What is read must have as many bytes as its shape says, and a number must be what
 * strtod makes of its text. */
#include <stdlib.h>
#include <string.h>

#include "json_number.h"
#include "json_tensors.h"
#include "tensor.h"

static void require(bool cond)
{
    if (!cond)
        abort();
}

static void check_tensor(const fs_json_tensor *t)
{
    size_t elements = 1;
    require(t->ndim >= 0 && t->ndim <= FS_JSON_MAX_DIMS);
    for (int i = 0; i < t->ndim; i++) {
        require(t->dims[i] > 0);
        elements *= (size_t)t->dims[i];
    }
    require(t->bytes == elements * fs_dtype_size(t->dtype));
    require(t->data != NULL && t->bytes <= t->room);
}

static void check_number(const uint8_t *data, size_t size)
{
    fs_json_number n;
    const uint8_t *at = data;
    if (!fs_json_number_read(&at, data + size, &n)) {
        require(at == data);
        return;
    }
    char text[64];
    size_t len = (size_t)(at - data);
    require(len > 0 && len <= size);
    if (len >= sizeof text)
        return;
    memcpy(text, data, len);
    text[len] = '\0';
    double value = n.real ? n.value : n.negative ? -(double)n.magnitude : (double)n.magnitude;
    double want = strtod(text, NULL);
    require(memcmp(&value, &want, sizeof want) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const int32_t types[] = {FS_DT_FLOAT, FS_DT_DOUBLE, FS_DT_BOOL,   FS_DT_INT8,   FS_DT_INT16, FS_DT_INT32,
                                    FS_DT_INT64, FS_DT_UINT8,  FS_DT_UINT16, FS_DT_UINT32, FS_DT_UINT64};
    enum { TYPES = sizeof types / sizeof *types };
    if (size == 0)
        return 0;
    unsigned which = data[0];
    size_t len = size - 1;
    uint8_t *copy = malloc(len + (len == 0)); /* so that a sanitizer sees reads past it */
    require(copy != NULL);
    memcpy(copy, data + 1, len);
    fs_slice text = {copy, len};
    fs_slice signature = fs_json_signature(text);
    for (uint32_t count = 1; count <= 2; count++) {
        fs_json_tensor tensors[] = {
            {.name = {(const uint8_t *)"x", 1}, .dtype = types[which % TYPES]},
            {.name = {(const uint8_t *)"ids", 3}, .dtype = types[which / TYPES % TYPES]},
        };
        bool in_rows = false;
        int rc = fs_json_tensors_read(text, signature, tensors, count, &in_rows);
        require(rc == 0 || rc == -FS_INVALID_ARGUMENT);
        for (uint32_t i = 0; i < count; i++) {
            if (rc == 0)
                check_tensor(&tensors[i]);
            if (rc == 0 && in_rows)
                require(tensors[i].dims[0] == tensors[0].dims[0]);
            free(tensors[i].data);
        }
    }
    check_number(copy, len);
    free(copy);
    return 0;
}
