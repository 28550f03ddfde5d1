"""Breaks of a thread that gives way, for processes that try models: see csrc/breaks.h.

Used by a trial and by the fork server, on their main thread.
"""


cdef extern from "breaks.h" nogil:
    ctypedef struct fs_breaks:
        pass
    void fs_breaks_start(fs_breaks *breaks, int normal)
    void fs_breaks_stop(fs_breaks *breaks)


cdef class Breaks:
    """with Breaks(normal): the calling thread stops for a moment every few milliseconds while its nice value is above
    `normal`."""

    cdef fs_breaks _breaks
    cdef int _normal

    def __init__(self, int normal):
        self._normal = normal

    def __enter__(self):
        fs_breaks_start(&self._breaks, self._normal)

    def __exit__(self, *_):
        fs_breaks_stop(&self._breaks)
