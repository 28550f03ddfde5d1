/* log_files: see log_files.h. */
#include "log_files.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "record_file.h"

#define SUFFIX ".tfrecord"

int fs_log_files_name(const char *prefix, char path[PATH_MAX])
{
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    int n = snprintf(path, PATH_MAX, "%s-%04d%02d%02dT%02d%02d%02d.%06ldZ-%ld" SUFFIX, prefix,
                     utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec,
                     now.tv_nsec / 1000, (long)getpid());
    /* Its other name must fit, too. */
    return n < 0 || (size_t)n + sizeof FS_RECORD_PART > PATH_MAX ? ENAMETOOLONG : 0;
}

/* The prefix' directory, and what names in it begin with. */
static const char *split(const char *prefix, char directory[PATH_MAX])
{
    const char *slash = strrchr(prefix, '/');
    size_t len = slash == NULL ? 0 : (size_t)(slash - prefix);
    if (len >= PATH_MAX - 2)
        len = 0;
    memcpy(directory, prefix, len);
    if (slash != NULL && len == 0) /* at the root */
        directory[len++] = '/';
    if (slash == NULL)
        directory[len++] = '.';
    directory[len] = '\0';
    return slash == NULL ? prefix : slash + 1;
}

static bool matches(const char *text, const char *pattern)
{
    for (; *pattern != '\0'; text++, pattern++) {
        if (*pattern == '0' ? *text < '0' || *text > '9' : *text != *pattern)
            return false;
    }
    return true;
}

/* Whether a file is one that fs_log_files_name has named, with `after` behind that. */
static bool is_ours(const char *file, const char *base, const char *after)
{
    static const char stamp[] = "-00000000T000000.000000Z-";
    size_t base_len = strlen(base);
    if (strncmp(file, base, base_len) != 0 || !matches(file + base_len, stamp))
        return false;
    const char *pid = file + base_len + sizeof stamp - 1;
    size_t digits = strspn(pid, "0123456789");
    return digits > 0 && strncmp(pid + digits, SUFFIX, sizeof SUFFIX - 1) == 0 &&
           strcmp(pid + digits + sizeof SUFFIX - 1, after) == 0;
}

static bool join(const char *directory, const char *file, char path[PATH_MAX])
{
    int n = snprintf(path, PATH_MAX, "%s/%s", directory, file);
    return n > 0 && n < PATH_MAX;
}

/* The name of the oldest file in `oldest`; how many there are. */
static uint32_t look(const char *directory, const char *base, char oldest[NAME_MAX + 1])
{
    uint32_t n = 0;
    DIR *dir = opendir(directory);
    struct dirent *entry;
    oldest[0] = '\0';
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        if (!is_ours(entry->d_name, base, ""))
            continue;
        if (n++ == 0 || strcmp(entry->d_name, oldest) < 0)
            memcpy(oldest, entry->d_name, strlen(entry->d_name) + 1);
    }
    if (dir != NULL)
        closedir(dir);
    return n;
}

uint32_t fs_log_files_prune(const char *prefix, uint32_t keep)
{
    char directory[PATH_MAX], oldest[NAME_MAX + 1], path[PATH_MAX];
    const char *base = split(prefix, directory);
    uint32_t gone = 0;
    /* One look for each that goes: after a rotation that is one. */
    while (keep > 0 && look(directory, base, oldest) > keep && join(directory, oldest, path) &&
           unlink(path) == 0)
        gone++;
    return gone;
}

uint32_t fs_log_files_salvage(const char *prefix)
{
    char directory[PATH_MAX], path[PATH_MAX];
    const char *base = split(prefix, directory);
    uint32_t n = 0;
    DIR *dir = opendir(directory);
    struct dirent *entry;
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        if (is_ours(entry->d_name, base, FS_RECORD_PART) && join(directory, entry->d_name, path) &&
            fs_record_file_salvage(path) == 0 && access(path, F_OK) != 0)
            n++;
    }
    if (dir != NULL)
        closedir(dir);
    return n;
}
