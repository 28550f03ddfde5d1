/* litert_api: the part of LiteRT's C API that litert.c calls, declared here so that the build needs no
 * LiteRT.
 *
 * Included by litert.c, which resolves each function by name at run time, and by the stub library of the
 * tests, which defines them. As in LiteRT 2.3: functions that make a model take the environment first since
 * then, which litert.c makes sure of. Handles are opaque, the rest is laid out as LiteRT promises to keep it.
 * */
#ifndef FS_LITERT_API_H
#define FS_LITERT_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct LiteRtEnvironmentT *LiteRtEnvironment;
typedef struct LiteRtModelT *LiteRtModel;
typedef struct LiteRtSignatureT *LiteRtSignature;
typedef struct LiteRtSubgraphT *LiteRtSubgraph;
typedef struct LiteRtTensorT *LiteRtTensor;
typedef struct LiteRtOptionsT *LiteRtOptions;
typedef struct LiteRtOpaqueOptionsT *LiteRtOpaqueOptions;
typedef struct LiteRtCompiledModelT *LiteRtCompiledModel;
typedef struct LiteRtTensorBufferT *LiteRtTensorBuffer;

/* LiteRtStatus: 0 is success. */
enum {
    LITERT_OK = 0,
    LITERT_INVALID_ARGUMENT = 1,
    LITERT_OUT_OF_MEMORY = 2,
    LITERT_RUNTIME_FAILURE = 3,
    LITERT_FILE_IO = 500,
    LITERT_INVALID_FLATBUFFER = 501,
};

/* LiteRtHwAccelerators, a bit mask. */
enum { LITERT_CPU = 1 };

/* LiteRtElementType. */
enum {
    LITERT_FLOAT32 = 1, LITERT_INT32 = 2, LITERT_UINT8 = 3, LITERT_INT64 = 4, LITERT_BOOL = 6,
    LITERT_INT16 = 7, LITERT_COMPLEX64 = 8, LITERT_INT8 = 9, LITERT_FLOAT16 = 10, LITERT_FLOAT64 = 11,
    LITERT_COMPLEX128 = 12, LITERT_UINT64 = 13, LITERT_UINT32 = 16, LITERT_UINT16 = 17, LITERT_BFLOAT16 = 19,
};

enum { LITERT_MAX_RANK = 8, LITERT_ALIGNMENT = 64 };

typedef struct LiteRtLayout {
    unsigned rank : 7;
    bool has_strides : 1;
    int32_t dims[LITERT_MAX_RANK];
    uint32_t strides[LITERT_MAX_RANK];
} LiteRtLayout;

typedef struct LiteRtRankedTensorType {
    int32_t element_type;
    LiteRtLayout layout;
} LiteRtRankedTensorType;

_Static_assert(sizeof(LiteRtRankedTensorType) == 72, "LiteRT's own size of a tensor's type");

/* LiteRtEnvOption: a tag, and a tagged value (LiteRtAny). */
enum { LITERT_ENV_AUTO_REGISTER_ACCELERATORS = 24, LITERT_ENV_MIN_LOGGER_SEVERITY = 25 };
enum { LITERT_ANY_INT = 2 };
enum { LITERT_LOG_SILENT = 4 };

typedef struct LiteRtEnvOption {
    int32_t tag;
    struct {
        int32_t type;
        int64_t int_value;
    } value;
} LiteRtEnvOption;

_Static_assert(sizeof(LiteRtEnvOption) == 24, "LiteRT's own size of an option");

/* X(result, name after "LiteRt", arguments) */
#define FS_LITERT_FUNCTIONS(X)                                                                            \
    X(int, CreateEnvironment, (int, const LiteRtEnvOption *, LiteRtEnvironment *))                        \
    X(void, DestroyEnvironment, (LiteRtEnvironment))                                                      \
    X(int, CreateModelFromBuffer, (LiteRtEnvironment, const void *, size_t, LiteRtModel *))               \
    X(int, CreateModelFromFile, (LiteRtEnvironment, const char *, LiteRtModel *))                         \
    X(void, DestroyModel, (LiteRtModel))                                                                  \
    X(int, GetNumModelSignatures, (LiteRtModel, size_t *))                                                \
    X(int, GetModelSignature, (LiteRtModel, size_t, LiteRtSignature *))                                   \
    X(int, GetSignatureKey, (LiteRtSignature, const char **))                                             \
    X(int, GetSignatureSubgraph, (LiteRtSignature, LiteRtSubgraph *))                                     \
    X(int, GetNumSubgraphInputs, (LiteRtSubgraph, size_t *))                                              \
    X(int, GetSubgraphInput, (LiteRtSubgraph, size_t, LiteRtTensor *))                                    \
    X(int, GetNumSubgraphOutputs, (LiteRtSubgraph, size_t *))                                             \
    X(int, GetSubgraphOutput, (LiteRtSubgraph, size_t, LiteRtTensor *))                                   \
    X(int, GetTensorName, (LiteRtTensor, const char **))                                                  \
    X(int, CreateOptions, (LiteRtOptions *))                                                              \
    X(void, DestroyOptions, (LiteRtOptions))                                                              \
    X(int, SetOptionsHardwareAccelerators, (LiteRtOptions, int))                                          \
    X(int, CreateOpaqueOptions, (const char *, void *, void (*)(void *), LiteRtOpaqueOptions *))          \
    X(void, DestroyOpaqueOptions, (LiteRtOpaqueOptions))                                                  \
    X(int, AddOpaqueOptions, (LiteRtOptions, LiteRtOpaqueOptions))                                        \
    X(int, CreateCompiledModel, (LiteRtEnvironment, LiteRtModel, LiteRtOptions, LiteRtCompiledModel *))   \
    X(void, DestroyCompiledModel, (LiteRtCompiledModel))                                                  \
    X(int, CompiledModelResizeInputTensorNonStrict,                                                       \
      (LiteRtCompiledModel, size_t, size_t, const int *, size_t))                                         \
    X(int, GetCompiledModelOutputTensorLayouts, (LiteRtCompiledModel, size_t, size_t, LiteRtLayout *, bool)) \
    X(int, CompiledModelClearErrors, (LiteRtCompiledModel))                                               \
    X(int, CompiledModelGetErrorMessages, (LiteRtCompiledModel, char **))                                 \
    X(int, CreateTensorBufferFromHostMemory,                                                              \
      (const LiteRtRankedTensorType *, void *, size_t, void (*)(void *), LiteRtTensorBuffer *))           \
    X(void, DestroyTensorBuffer, (LiteRtTensorBuffer))                                                    \
    X(int, RunCompiledModel,                                                                              \
      (LiteRtCompiledModel, size_t, size_t, LiteRtTensorBuffer *, size_t, LiteRtTensorBuffer *))

#endif
