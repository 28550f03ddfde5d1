// op_library: a TensorFlow op in a library of its own, TripleForTest: x float -> y = 3 x, by TensorFlow's C API.
//
// Built by test_op_libraries.py against the headers and libraries of the installed wheel.
#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"

namespace {

void compute(void*, TF_OpKernelContext* context) {
  TF_Status* status = TF_NewStatus();
  TF_Tensor* x = nullptr;
  TF_GetInput(context, 0, &x, status);
  if (TF_GetCode(status) == TF_OK) {
    int64_t dims[16];
    int ndim = TF_NumDims(x);
    for (int i = 0; i < ndim && i < 16; i++) dims[i] = TF_Dim(x, i);
    TF_Tensor* y = TF_AllocateOutput(context, 0, TF_FLOAT, dims, ndim, TF_TensorByteSize(x), status);
    if (TF_GetCode(status) == TF_OK) {
      const float* from = static_cast<const float*>(TF_TensorData(x));
      float* to = static_cast<float*>(TF_TensorData(y));
      for (int64_t i = 0; i < TF_TensorElementCount(x); i++) to[i] = 3 * from[i];
      TF_DeleteTensor(y);
    }
    TF_DeleteTensor(x);
  }
  if (TF_GetCode(status) != TF_OK) TF_OpKernelContext_Failure(context, status);
  TF_DeleteStatus(status);
}

struct Register {
  Register() {
    TF_Status* status = TF_NewStatus();
    TF_OpDefinitionBuilder* op = TF_NewOpDefinitionBuilder("TripleForTest");
    TF_OpDefinitionBuilderAddInput(op, "x: float");
    TF_OpDefinitionBuilderAddOutput(op, "y: float");
    TF_OpDefinitionBuilderSetShapeInferenceFunction(op, &TF_ShapeInferenceContextSetUnknownShape);
    TF_RegisterOpDefinition(op, status);
    TF_KernelBuilder* kernel = TF_NewKernelBuilder("TripleForTest", "CPU", nullptr, &compute, nullptr);
    TF_RegisterKernelBuilder("TripleForTest", kernel, status);
    TF_DeleteStatus(status);
  }
} register_all;

}  // namespace
