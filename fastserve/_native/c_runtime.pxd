# Mirror of csrc/runtime.h, runtime_null.h, tf.h, litert.h and plugin_open.h. No logic.
from fastserve._native.c_policy cimport fs_policy
from fastserve._native.c_slab cimport fs_buf, fs_buf_new, fs_buf_unref, fs_slab, fs_slab_new, fs_slab_release
from fastserve._native.c_status cimport fs_error, fs_slice
from fastserve._native.c_tensor cimport FS_DT_STRING, FS_MAX_DIMS, fs_dtype_name, fs_dtype_size, fs_tensor
from libc.stdint cimport int32_t, int64_t, uint32_t


cdef extern from "runtime.h" nogil:
    ctypedef struct fs_port:
        char *alias
        char *tensor
        int32_t dtype
        int32_t ndim
        int64_t *dims

    ctypedef struct fs_signature:
        char *name
        fs_port *inputs
        uint32_t n_inputs
        fs_port *outputs
        uint32_t n_outputs
        char **compiled_outputs

    ctypedef struct fs_model_spec:
        const char *path
        const char **tags
        uint32_t n_tags
        fs_slice session_config
        bint second_session_plain
        fs_slice plain_config
        const fs_signature *signatures
        uint32_t n_signatures

    ctypedef struct fs_model:
        pass

    enum fs_run_variant:
        FS_RUN_PLAIN
        FS_RUN_COMPILED

    ctypedef struct fs_runtime_ops:
        const char *name
        int (*open)(void *self, const fs_model_spec *spec, fs_model **out, fs_error *err) noexcept nogil
        int (*run)(fs_model *model, uint32_t sig, fs_run_variant variant, const fs_tensor *inputs,
                   fs_tensor *outputs, fs_error *err) noexcept nogil
        void (*release)(fs_tensor *output) noexcept nogil
        void (*close)(fs_model *model) noexcept nogil

    ctypedef struct fs_runtime:
        const fs_runtime_ops *ops
        void *self

    void fs_runtime_explain(const fs_runtime *runtime, fs_model *model, uint32_t sig, const fs_tensor *inputs,
                            fs_error *err) noexcept


cdef extern from "runtime_null.h" nogil:
    int fs_runtime_null(const char *options, fs_runtime *out, fs_error *err) noexcept
    void fs_runtime_null_free(fs_runtime *runtime) noexcept


cdef extern from "tf.h" nogil:
    int fs_runtime_tensorflow(const char *library_dir, fs_runtime *out, fs_error *err) noexcept
    int fs_runtime_tensorflow_op_library(const fs_runtime *runtime, const char *path, fs_error *err) noexcept
    int fs_runtime_tensorflow_prime(const fs_runtime *runtime, fs_slice session_config, fs_error *err) noexcept
    void fs_runtime_tensorflow_restore_in_pool(fs_runtime *runtime) noexcept

    enum:
        FS_TF_TRACE_DEVICES
        FS_TF_TRACE_GRAPHS

    ctypedef struct fs_tf_metadata:
        fs_slice bytes

    int fs_runtime_tensorflow_run_traced(fs_model *model, uint32_t sig, fs_run_variant variant, unsigned what,
                                         const fs_tensor *inputs, fs_tensor *outputs,
                                         fs_tf_metadata *metadata, fs_error *err) noexcept
    void fs_runtime_tensorflow_metadata_free(const fs_model *model, fs_tf_metadata *metadata) noexcept
    const char *fs_runtime_tensorflow_version(const fs_runtime *runtime) noexcept
    void fs_runtime_tensorflow_free(fs_runtime *runtime) noexcept


cdef extern from "litert.h" nogil:
    ctypedef struct fs_litert_options:
        int32_t threads
        int32_t interpreters

    int fs_runtime_litert(const char *library_dir, const fs_litert_options *options, fs_runtime *out,
                          fs_error *err) noexcept
    void fs_runtime_litert_free(fs_runtime *runtime) noexcept


cdef extern from "plugin_open.h" nogil:
    ctypedef struct fs_plugin:
        const char *name

    int fs_runtime_plugin(const char *path, const fs_plugin **plugin, fs_runtime *out, fs_error *err) noexcept
    void fs_runtime_plugin_free(const fs_plugin *plugin, fs_runtime *runtime) noexcept
    int fs_policy_plugin(const char *path, fs_policy *policy, fs_error *err) noexcept
