/* shared: what the dynamic linker sees of objects that hide the rest. Used by csrc/preload and breaks.h. */
#ifndef FS_SHARED_H
#define FS_SHARED_H

#define FS_SHARED __attribute__((visibility("default")))

#endif
