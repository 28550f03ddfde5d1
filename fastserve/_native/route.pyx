"""Route: how a model's traffic is divided between two versions, and what has come of it since.

Used by the engine, on the loop's thread. Holds a reference to the native route, so that its figures can be read for
as long as anybody wants them, whatever the catalog does meanwhile.
"""

from libc.stdint cimport uint8_t, uint64_t

from fastserve._native.c_engine cimport (
    FS_OUTCOME_CANCELLED,
    FS_OUTCOME_FAILED,
    FS_OUTCOME_OK,
    FS_OUTCOME_REFUSED,
    FS_ROUTE_CANARY,
    FS_ROUTE_SHADOW,
    FS_SIDE_FRESH,
    FS_SIDE_STABLE,
    FS_SIDES,
    fs_figures,
    fs_figures_latency,
    fs_figures_read,
    fs_route_new,
    fs_route_settings,
    fs_route_unref,
    fs_shadow_tally,
)
from fastserve._native.c_runtime cimport fs_slice


cdef fs_slice slice_of(bytes text):
    cdef fs_slice result
    result.data = <const uint8_t *><const char *>text
    result.len = <size_t>len(text)
    return result


cdef dict figures_of(const fs_figures *figures):
    cdef double[3] quantiles
    cdef uint64_t[3] us
    quantiles[0], quantiles[1], quantiles[2] = 0.5, 0.9, 0.99
    fs_figures_latency(figures, quantiles, us, 3)
    failed = fs_figures_read(figures, FS_OUTCOME_FAILED)
    refused = fs_figures_read(figures, FS_OUTCOME_REFUSED)
    return {
        "requests": fs_figures_read(figures, FS_OUTCOME_OK) + failed + refused,
        "failed": failed,
        "refused": refused,
        "cancelled": fs_figures_read(figures, FS_OUTCOME_CANCELLED),
        "latency_us": {"p50": us[0], "p90": us[1], "p99": us[2]},
    }


cdef class Route:
    """`settings`: mode ("canary" or "shadow"), stable, new, share, and perhaps sticky_header and max_difference."""

    def __init__(self, str model not None, dict settings not None):
        cdef fs_route_settings c
        self.model = model
        self.name = model.encode()
        cdef bytes header = settings.get("sticky_header", "").encode()
        modes = {"canary": FS_ROUTE_CANARY, "shadow": FS_ROUTE_SHADOW}
        if settings["mode"] not in modes:
            raise ValueError(f'mode "{settings["mode"]}": canary or shadow')
        c.mode = modes[settings["mode"]]
        c.versions[<int>FS_SIDE_STABLE] = settings["stable"]
        c.versions[<int>FS_SIDE_FRESH] = settings["new"]
        if settings["stable"] == settings["new"]:
            raise ValueError(f"stable and new are both version {settings['new']}")
        c.share = settings["share"]
        if not 0 <= c.share <= 1:
            raise ValueError(f"share {c.share}: 0 to 1")
        c.sticky_header = slice_of(header)
        c.max_difference = settings.get("max_difference", 0.0)
        self.c = fs_route_new(slice_of(self.name), &c)
        if self.c is NULL:
            raise MemoryError

    def __dealloc__(self):
        fs_route_unref(self.c)

    def stats(self) -> dict:
        """What has become of the requests that it divided, and of their shadows."""
        cdef const fs_shadow_tally *shadow = &self.c.shadow
        cdef int side
        versions = {}
        for side in range(FS_SIDES):
            versions[str(self.c.versions[side])] = figures_of(&self.c.figures[side])
        return {
            "versions": versions,
            "shadow": {
                "compared": shadow.compared,
                "rows": shadow.rows,
                "different_rows": shadow.different_rows,
                "largest_difference": shadow.largest_difference,
                "missing_outputs": shadow.missing_outputs,
                "failed": shadow.failed,
                "dropped": shadow.dropped,
                "skipped": shadow.skipped,
            },
        }
