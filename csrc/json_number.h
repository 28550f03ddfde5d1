/* json_number: numbers in JSON, read exactly.
 *
 * Called by json_tensors.c, on any thread. Pure: bytes in, a number out. */
#ifndef FS_JSON_NUMBER_H
#define FS_JSON_NUMBER_H

#include <stdbool.h>
#include <stdint.h>

typedef struct fs_json_number {
    bool negative;
    bool real;          /* it has a fraction or an exponent: `value` is it, otherwise `magnitude` */
    uint64_t magnitude; /* of a whole number; a negative one is not 0 */
    double value;       /* the double that is nearest, of two the even one */
} fs_json_number;

/* Reads the number at *at and moves *at behind it. False: there is none by JSON's grammar, or one of those that are
 * left to a slower reader: of more than 19 significant digits, a whole -0, or a power of ten beyond 27 in what is left
 * when the digits are taken for a whole number. */
bool fs_json_number_read(const uint8_t **at, const uint8_t *end, fs_json_number *number);

#endif
