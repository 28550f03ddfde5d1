/* tf_api: the part of TensorFlow's C API that tf.c calls, declared here so that the build needs no
 * TensorFlow.
 *
 * Included by tf.c, which resolves each function by name at run time, by its parts (tf_*), and by the stub library
 * of the tests, which defines them. The C API is stable within TensorFlow 2: types are opaque, or as laid out below. */
#ifndef FS_TF_API_H
#define FS_TF_API_H

#include <stddef.h>
#include <stdint.h>

typedef struct TF_Status TF_Status;
typedef struct TF_Tensor TF_Tensor;
typedef struct TF_Graph TF_Graph;
typedef struct TF_Operation TF_Operation;
typedef struct TF_Session TF_Session;
typedef struct TF_SessionOptions TF_SessionOptions;
typedef struct TF_Library TF_Library;
typedef struct TF_Function TF_Function;
typedef struct TF_OperationDescription TF_OperationDescription;

typedef struct TF_Buffer {
    const void *data;
    size_t length;
    void (*data_deallocator)(void *data, size_t length);
} TF_Buffer;

typedef struct TF_Output {
    TF_Operation *oper;
    int index;
} TF_Output;

typedef struct TF_Input {
    TF_Operation *oper;
    int index;
} TF_Input;

/* One element of a string tensor: 24 bytes that only TF_String* may look into. */
typedef struct TF_TString {
    uint64_t raw[3];
} TF_TString;

/* X(result, name after "TF_", arguments) */
#define FS_TF_FUNCTIONS(X)                                                                              \
    X(const char *, Version, (void))                                                                    \
    X(TF_Status *, NewStatus, (void))                                                                   \
    X(void, DeleteStatus, (TF_Status *))                                                                \
    X(void, SetStatus, (TF_Status *, int, const char *))                                                \
    X(int, GetCode, (const TF_Status *))                                                                \
    X(const char *, Message, (const TF_Status *))                                                       \
    X(TF_Buffer *, NewBufferFromString, (const void *, size_t))                                         \
    X(TF_Buffer *, NewBuffer, (void))                                                                   \
    X(void, DeleteBuffer, (TF_Buffer *))                                                                \
    X(TF_Tensor *, NewTensor,                                                                           \
      (int, const int64_t *, int, void *, size_t, void (*)(void *, size_t, void *), void *))            \
    X(TF_Tensor *, AllocateTensor, (int, const int64_t *, int, size_t))                                 \
    X(void, DeleteTensor, (TF_Tensor *))                                                                \
    X(int, TensorType, (const TF_Tensor *))                                                             \
    X(int, NumDims, (const TF_Tensor *))                                                                \
    X(int64_t, Dim, (const TF_Tensor *, int))                                                           \
    X(size_t, TensorByteSize, (const TF_Tensor *))                                                      \
    X(void *, TensorData, (const TF_Tensor *))                                                          \
    X(void, StringInit, (TF_TString *))                                                                 \
    X(void, StringCopy, (TF_TString *, const char *, size_t))                                           \
    X(void, StringDealloc, (TF_TString *))                                                              \
    X(const char *, StringGetDataPointer, (const TF_TString *))                                         \
    X(size_t, StringGetSize, (const TF_TString *))                                                      \
    X(TF_Library *, LoadLibrary, (const char *, TF_Status *))                                           \
    X(void, DeleteLibraryHandle, (TF_Library *))                                                        \
    X(TF_SessionOptions *, NewSessionOptions, (void))                                                   \
    X(void, DeleteSessionOptions, (TF_SessionOptions *))                                                \
    X(void, SetConfig, (TF_SessionOptions *, const void *, size_t, TF_Status *))                        \
    X(TF_Graph *, NewGraph, (void))                                                                     \
    X(void, DeleteGraph, (TF_Graph *))                                                                  \
    X(TF_Operation *, GraphOperationByName, (TF_Graph *, const char *))                                 \
    X(const char *, OperationName, (TF_Operation *))                                                    \
    X(const char *, OperationOpType, (TF_Operation *))                                                  \
    X(int, OperationNumOutputs, (TF_Operation *))                                                       \
    X(int, OperationNumInputs, (TF_Operation *))                                                        \
    X(int, OperationNumControlInputs, (TF_Operation *))                                                 \
    X(TF_Output, OperationInput, (TF_Input))                                                            \
    X(int, OperationOutputType, (TF_Output))                                                            \
    X(void, OperationGetAttrValueProto, (TF_Operation *, const char *, TF_Buffer *, TF_Status *))       \
    X(TF_OperationDescription *, NewOperation, (TF_Graph *, const char *, const char *))                \
    X(void, AddInputList, (TF_OperationDescription *, const TF_Output *, int))                          \
    X(void, SetAttrTypeList, (TF_OperationDescription *, const char *, const int *, int))               \
    X(void, SetAttrFuncName, (TF_OperationDescription *, const char *, const char *, size_t))           \
    X(TF_Operation *, FinishOperation, (TF_OperationDescription *, TF_Status *))                        \
    X(int, GraphNumFunctions, (TF_Graph *))                                                             \
    X(int, GraphGetFunctions, (TF_Graph *, TF_Function **, int, TF_Status *))                           \
    X(void, GraphCopyFunction, (TF_Graph *, const TF_Function *, const TF_Function *, TF_Status *))     \
    X(const char *, FunctionName, (TF_Function *))                                                      \
    X(void, FunctionToFunctionDef, (TF_Function *, TF_Buffer *, TF_Status *))                           \
    X(TF_Function *, FunctionImportFunctionDef, (const void *, size_t, TF_Status *))                    \
    X(void, DeleteFunction, (TF_Function *))                                                            \
    X(TF_Session *, NewSession, (TF_Graph *, const TF_SessionOptions *, TF_Status *))                   \
    X(TF_Session *, LoadSessionFromSavedModel,                                                          \
      (const TF_SessionOptions *, const TF_Buffer *, const char *, const char *const *, int, TF_Graph *, \
       TF_Buffer *, TF_Status *))                                                                       \
    X(void, ExtendSession, (TF_Session *, TF_Status *))                                                 \
    X(void, CloseSession, (TF_Session *, TF_Status *))                                                  \
    X(void, DeleteSession, (TF_Session *, TF_Status *))                                                 \
    X(void, SessionRun,                                                                                 \
      (TF_Session *, const TF_Buffer *, const TF_Output *, TF_Tensor *const *, int, const TF_Output *,  \
       TF_Tensor **, int, const TF_Operation *const *, int, TF_Buffer *, TF_Status *))

#define FS_TF_FIELD(result, name, args) result(*name) args;
/* All of them, resolved. */
typedef struct fs_tf_api {
    FS_TF_FUNCTIONS(FS_TF_FIELD)
} fs_tf_api;
#undef FS_TF_FIELD

#endif
