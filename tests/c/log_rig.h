/* log_rig: directories of log files for tests, and what is in them, read by code of their own. */
#ifndef FS_LOG_RIG_H
#define FS_LOG_RIG_H

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

typedef struct folder {
    char path[64];
} folder;

static inline folder folder_make(void)
{
    folder f = {"/tmp/fastserve-test-log-XXXXXX"};
    REQUIRE(mkdtemp(f.path) != NULL);
    return f;
}

/* Calls `see` for every file, in the order of their names. */
static inline int folder_walk(const char *path, void (*see)(const char *path, void *arg), void *arg)
{
    struct dirent **names;
    int n = scandir(path, &names, NULL, alphasort), files = 0;
    for (int i = 0; i < n; i++) {
        char full[400];
        snprintf(full, sizeof full, "%s/%.300s", path, names[i]->d_name);
        struct stat status;
        if (stat(full, &status) == 0 && S_ISREG(status.st_mode)) {
            files++;
            if (see != NULL)
                see(full, arg);
        }
        free(names[i]);
    }
    if (n >= 0)
        free(names);
    return files;
}

static inline void folder_forget(const char *path, void *arg)
{
    (void)arg;
    unlink(path);
}

static inline void folder_remove(folder *f)
{
    chmod(f->path, 0700);
    folder_walk(f->path, folder_forget, NULL);
    rmdir(f->path);
}

static inline int folder_count(const folder *f, const char *suffix)
{
    DIR *dir = opendir(f->path);
    struct dirent *entry;
    int n = 0;
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        size_t len = strlen(entry->d_name), tail = strlen(suffix);
        n += entry->d_name[0] != '.' && len >= tail && strcmp(entry->d_name + len - tail, suffix) == 0;
    }
    if (dir != NULL)
        closedir(dir);
    return n;
}

/* The checksum bit by bit, as the standard defines it. */
static inline uint32_t plain_crc32c(const uint8_t *data, size_t len)
{
    uint32_t value = ~UINT32_C(0);
    for (size_t i = 0; i < len; i++) {
        value ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? UINT32_C(0x82f63b78) : 0);
    }
    return ~value;
}

static inline uint32_t plain_masked(const uint8_t *data, size_t len)
{
    uint32_t crc = plain_crc32c(data, len);
    return (crc >> 15 | crc << 17) + UINT32_C(0xa282ead8);
}

typedef struct records {
    uint8_t *data[4096];
    size_t len[4096];
    int n;
    int torn; /* files that do not end with a whole record */
} records;

/* Adds a file's records: each must be right, save what is torn off at the end. */
static inline void records_add(const char *path, void *arg)
{
    records *r = arg;
    FILE *file = fopen(path, "rb");
    REQUIRE(file != NULL);
    for (;;) {
        uint8_t head[12];
        size_t got = fread(head, 1, sizeof head, file);
        uint64_t len = 0;
        uint32_t check;
        if (got == sizeof head)
            memcpy(&len, head, sizeof len);
        if (got < sizeof head) {
            r->torn += got > 0;
            break;
        }
        memcpy(&check, head + 8, sizeof check);
        CHECK_EQ(check, plain_masked(head, 8));
        uint8_t *data = malloc(len + 1);
        REQUIRE(data != NULL);
        if (fread(data, 1, len, file) < len || fread(&check, 1, sizeof check, file) < sizeof check) {
            r->torn++;
            free(data);
            break;
        }
        CHECK_EQ(check, plain_masked(data, len));
        REQUIRE(r->n < 4096);
        r->data[r->n] = data;
        r->len[r->n++] = len;
    }
    fclose(file);
}

static inline void records_free(records *r)
{
    for (int i = 0; i < r->n; i++)
        free(r->data[i]);
    r->n = r->torn = 0;
}

static inline void records_read(records *r, const folder *f)
{
    records_free(r);
    folder_walk(f->path, records_add, r);
}

#endif
