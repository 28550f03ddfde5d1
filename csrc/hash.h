/* hash: the hash functions that TensorFlow's feature ops are defined by.
 *
 * Called by the packing of features, on any thread. Pure functions of bytes. */
#ifndef FS_HASH_H
#define FS_HASH_H

#include <stdint.h>

#include "status.h"

/* FarmHash's Fingerprint64: tf.strings.to_hash_bucket_fast, tf.fingerprint. */
uint64_t fs_fingerprint(fs_slice text);

/* One fingerprint of two, not commutative: tf.sparse.cross_hashed. */
uint64_t fs_fingerprint_join(uint64_t first, uint64_t second);

/* SipHash-2-4 with a key of two words: tf.strings.to_hash_bucket_strong. */
uint64_t fs_siphash(const uint64_t key[2], fs_slice text);

#endif
