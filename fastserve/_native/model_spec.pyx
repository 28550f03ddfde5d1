"""ModelSpec: a ServableSpec's dictionary turned into the structs of csrc/runtime.h, and their owner.

Made by the core and by trial processes from JSON. Knows no runtime.
"""

from base64 import b64decode

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport calloc, free

from fastserve._native.c_runtime cimport FS_MAX_DIMS, fs_port, fs_signature, fs_slice


@cython.no_gc  # holds bytes and str only; and the collector must not clear `texts` first
cdef class ModelSpec:
    """Owns the fs_model_spec made from `spec` and everything it points to.

    Raises KeyError or ValueError for a dictionary that is no ServableSpec.
    """

    def __init__(self, dict spec):
        if self.texts is not None:
            raise RuntimeError("a ModelSpec is made once")
        self.texts = []
        self.model = spec["model"]
        self.version = spec["version"]
        self.runtime = spec["runtime"]
        self.c.path = self.text(spec["path"])

        cdef list tags = spec["tags"]
        self.c.tags = <const char **>calloc(len(tags) + 1, sizeof(char *))
        if self.c.tags is NULL:
            raise MemoryError
        for tag in tags:
            self.c.tags[self.c.n_tags] = self.text(tag)
            self.c.n_tags += 1

        self.c.session_config = self.data(spec.get("session_config"))
        plain_config = spec.get("plain_config")
        self.c.second_session_plain = plain_config is not None
        self.c.plain_config = self.data(plain_config)

        cdef list signatures = spec["signatures"]
        self.signatures = <fs_signature *>calloc(len(signatures) + 1, sizeof(fs_signature))
        self.methods = <const char **>calloc(len(signatures) + 1, sizeof(char *))
        self.defaults = <fs_slice **>calloc(len(signatures) + 1, sizeof(fs_slice *))
        if self.signatures is NULL or self.methods is NULL or self.defaults is NULL:
            raise MemoryError
        self.c.signatures = self.signatures
        names = []
        for signature in signatures:
            # Counted first: what it has taken so far is freed if the rest is wrong.
            self.c.n_signatures += 1
            self.fill_signature(self.c.n_signatures - 1, signature)
            names.append(signature["name"])
        self.names = tuple(names)
        if len(set(names)) != len(names):
            raise ValueError(f"signature names are not distinct: {names}")

    def __dealloc__(self):
        cdef fs_signature *signature
        cdef unsigned i, j
        if self.signatures is not NULL:
            for i in range(self.c.n_signatures):
                signature = &self.signatures[i]
                for j in range(signature.n_inputs):
                    free(signature.inputs[j].dims)
                for j in range(signature.n_outputs):
                    free(signature.outputs[j].dims)
                free(signature.inputs)
                free(signature.outputs)
                free(signature.compiled_outputs)
                if self.defaults is not NULL:
                    free(self.defaults[i])
        free(self.signatures)
        free(<void *>self.methods)
        free(self.defaults)
        free(<void *>self.c.tags)

    cdef char *text(self, str text) except NULL:
        """`text` as a C string that lives as long as this object."""
        data = text.encode()
        if b"\0" in data:
            raise ValueError(f"a name must not contain a NUL character: {text!r}")
        self.texts.append(data)
        return PyBytes_AS_STRING(data)

    cdef fs_slice data(self, text) except *:
        """The bytes behind base64 `text`; empty for None."""
        cdef fs_slice out
        data = b64decode(text or "", validate=True)
        self.texts.append(data)
        out.data = <const uint8_t *>PyBytes_AS_STRING(data)
        out.len = PyBytes_GET_SIZE(data)
        return out

    cdef void fill_port(self, fs_port *port, dict spec) except *:
        port.alias = self.text(spec["alias"])
        port.tensor = self.text(spec["tensor"])
        port.dtype = spec["dtype"]
        dims = spec["dims"]
        if dims is None:
            port.ndim = -1
            return
        if len(dims) > FS_MAX_DIMS:
            raise ValueError(f"'{spec['alias']}' has {len(dims)} dimensions, more than {FS_MAX_DIMS}")
        port.ndim = len(dims)
        port.dims = <int64_t *>calloc(len(dims) + 1, sizeof(int64_t))
        if port.dims is NULL:
            raise MemoryError
        for i, dim in enumerate(dims):
            port.dims[i] = dim

    cdef void fill_defaults(self, unsigned index, list inputs) except *:
        cdef fs_slice *defaults
        for i, port in enumerate(inputs):
            if port.get("default") is None:
                continue
            if self.defaults[index] is NULL:
                self.defaults[index] = <fs_slice *>calloc(len(inputs), sizeof(fs_slice))
            defaults = self.defaults[index]
            if defaults is NULL:
                raise MemoryError
            defaults[i] = self.data(port["default"])

    cdef void fill_signature(self, unsigned index, dict spec) except *:
        cdef fs_signature *signature = &self.signatures[index]
        cdef list inputs = sorted(spec["inputs"], key=_alias)
        cdef list outputs = sorted(spec["outputs"], key=_alias)
        if inputs != spec["inputs"] or outputs != spec["outputs"]:
            raise ValueError(f"inputs and outputs of '{spec['name']}' are not in the order of their aliases")
        signature.name = self.text(spec["name"])
        self.methods[index] = self.text(spec.get("method_name", ""))
        self.fill_defaults(index, inputs)
        signature.inputs = <fs_port *>calloc(len(inputs) + 1, sizeof(fs_port))
        signature.outputs = <fs_port *>calloc(len(outputs) + 1, sizeof(fs_port))
        if signature.inputs is NULL or signature.outputs is NULL:
            raise MemoryError
        for port in inputs:
            self.fill_port(&signature.inputs[signature.n_inputs], port)
            signature.n_inputs += 1
        for port in outputs:
            self.fill_port(&signature.outputs[signature.n_outputs], port)
            signature.n_outputs += 1

        compiled = spec.get("compiled_outputs")
        if compiled is None:
            return
        if len(compiled) != len(outputs):
            raise ValueError(
                f"'{spec['name']}' has {len(outputs)} outputs and {len(compiled)} compiled ones"
            )
        signature.compiled_outputs = <char **>calloc(len(compiled) + 1, sizeof(char *))
        if signature.compiled_outputs is NULL:
            raise MemoryError
        for i, tensor in enumerate(compiled):
            signature.compiled_outputs[i] = self.text(tensor)


def _alias(dict port):
    return port["alias"]
