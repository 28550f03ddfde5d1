/* visibility: what the dynamic linker sees of objects that hide the rest. Used by csrc/preload and breaks.h. */
#ifndef FS_VISIBILITY_H
#define FS_VISIBILITY_H

#define FS_SHARED __attribute__((visibility("default")))

#endif
