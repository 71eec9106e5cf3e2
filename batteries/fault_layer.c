/* A layer between a process and the C library, for LD_PRELOAD: it counts and logs operations that change files
   under one folder, and makes the chosen ones fail with a disk error.

   fault_arm(folder, from, to, error) begins: operations number `from` to `to`, counted from 1, fail with this
   errno; 0, 0 lets all pass. fault_disarm() ends; fault_count() and fault_log() return the operations. An
   operation is one line of the log: its name, the path that it changes, for a rename the second path, and the
   inode of an open file or 0. Removals are logged, but neither counted nor made to fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static size_t folder_length;
static long count, first, last;
static int armed, error_number;
static char *log_text;
static size_t log_size, log_used;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void fault_arm(const char *path, long from, long to, int error) {
    pthread_mutex_lock(&lock);
    snprintf(folder, sizeof folder, "%s", path);
    folder_length = strlen(folder);
    count = 0, first = from, last = to, error_number = error, log_used = 0, armed = 1;
    pthread_mutex_unlock(&lock);
}

void fault_disarm(void) { armed = 0; }
long fault_count(void) { return count; }
const char *fault_log(void) { return log_used ? log_text : ""; }

static int inside(const char *path) {
    return strncmp(path, folder, folder_length) == 0 && (path[folder_length] == '/' || path[folder_length] == 0);
}

/* The absolute path of a name relative to an open directory (or to the working directory). */
static void resolve(int directory, const char *name, char *out) {
    char link[64], base[PATH_MAX];
    ssize_t length;
    if (name[0] == '/') {
        snprintf(out, PATH_MAX, "%s", name);
        return;
    }
    snprintf(link, sizeof link, directory == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", directory);
    length = readlink(link, base, sizeof base - 1);
    base[length > 0 ? length : 0] = 0;
    if (snprintf(out, PATH_MAX, "%s/%s", base, name) >= PATH_MAX)
        out[0] = 0;
}

static void write_down(const char *name, const char *path, const char *second, unsigned long inode) {
    size_t needed = strlen(name) + strlen(path) + strlen(second) + 32;
    if (log_used + needed > log_size) {
        log_size = 2 * (log_used + needed) + 65536;
        log_text = realloc(log_text, log_size);
    }
    log_used += (size_t)sprintf(log_text + log_used, "%s\t%s\t%s\t%lu\n", name, path, second, inode);
}

/* Counts an operation; returns true and sets errno if it must fail. */
static int fails(const char *name, const char *path, const char *second, unsigned long inode) {
    int failing = 0;
    if (!armed || !(inside(path) || (second[0] && inside(second))))
        return 0;
    pthread_mutex_lock(&lock);
    count++;
    write_down(name, path, second, inode);
    failing = first && count >= first && count <= last;
    pthread_mutex_unlock(&lock);
    if (failing)
        errno = error_number;
    return failing;
}

static int fails_at(const char *name, int directory, const char *path) {
    char resolved[PATH_MAX];
    if (!armed)
        return 0;
    resolve(directory, path, resolved);
    return fails(name, resolved, "", 0);
}

static int fails_pair(const char *name, int from, const char *source, int to, const char *target) {
    char one[PATH_MAX], other[PATH_MAX];
    if (!armed)
        return 0;
    resolve(from, source, one);
    resolve(to, target, other);
    return fails(name, one, other, 0);
}

static int fails_file(const char *name, int file) {
    char link[64], path[PATH_MAX];
    struct stat status;
    ssize_t length;
    if (!armed)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    return fails(name, path, "", fstat(file, &status) ? 0 : status.st_ino);
}

/* Logs a removal, which never fails. */
static void note_removal(int directory, const char *path) {
    char resolved[PATH_MAX];
    if (!armed)
        return;
    resolve(directory, path, resolved);
    if (!inside(resolved))
        return;
    pthread_mutex_lock(&lock);
    write_down("remove", resolved, "", 0);
    pthread_mutex_unlock(&lock);
}

#define ORIGINAL(kind, name) ((kind)dlsym(RTLD_NEXT, #name))
#define IF_FAILS(check) if (check) return -1

#define OPEN(name)                                                                     \
    int name(const char *path, int flags, ...) {                                       \
        va_list rest;                                                                  \
        va_start(rest, flags);                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;        \
        va_end(rest);                                                                  \
        if (flags & O_CREAT) IF_FAILS(fails_at("create", AT_FDCWD, path));             \
        return ORIGINAL(int (*)(const char *, int, ...), name)(path, flags, mode);     \
    }
#define OPENAT(name)                                                                        \
    int name(int directory, const char *path, int flags, ...) {                             \
        va_list rest;                                                                       \
        va_start(rest, flags);                                                              \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;             \
        va_end(rest);                                                                       \
        if (flags & O_CREAT) IF_FAILS(fails_at("create", directory, path));                 \
        return ORIGINAL(int (*)(int, const char *, int, ...), name)(directory, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                                 \
    FILE *name(const char *path, const char *mode) {                                                \
        if (strpbrk(mode, "wa+") && fails_at("create", AT_FDCWD, path)) return NULL;                \
        return ORIGINAL(FILE *(*)(const char *, const char *), name)(path, mode);                   \
    }
FOPEN(fopen)
FOPEN(fopen64)

int creat(const char *path, mode_t mode) {
    IF_FAILS(fails_at("create", AT_FDCWD, path));
    return ORIGINAL(int (*)(const char *, mode_t), creat)(path, mode);
}

ssize_t write(int file, const void *data, size_t size) {
    IF_FAILS(fails_file("write", file));
    return ORIGINAL(ssize_t (*)(int, const void *, size_t), write)(file, data, size);
}
ssize_t writev(int file, const struct iovec *parts, int number) {
    IF_FAILS(fails_file("write", file));
    return ORIGINAL(ssize_t (*)(int, const struct iovec *, int), writev)(file, parts, number);
}
#define PWRITE(name, offset_type)                                                                       \
    ssize_t name(int file, const void *data, size_t size, offset_type offset) {                         \
        IF_FAILS(fails_file("write", file));                                                            \
        return ORIGINAL(ssize_t (*)(int, const void *, size_t, offset_type), name)(file, data, size, offset); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

size_t fwrite(const void *data, size_t size, size_t number, FILE *stream) {
    if (armed && fails_file("write", fileno(stream))) return 0;
    return ORIGINAL(size_t (*)(const void *, size_t, size_t, FILE *), fwrite)(data, size, number, stream);
}

ssize_t copy_file_range(int in, off64_t *at, int out, off64_t *to, size_t size, unsigned flags) {
    IF_FAILS(fails_file("write", out));
    return ORIGINAL(ssize_t (*)(int, off64_t *, int, off64_t *, size_t, unsigned), copy_file_range)(
        in, at, out, to, size, flags);
}
#define SENDFILE(name, offset_type)                                                            \
    ssize_t name(int out, int in, offset_type *at, size_t size) {                              \
        IF_FAILS(fails_file("write", out));                                                    \
        return ORIGINAL(ssize_t (*)(int, int, offset_type *, size_t), name)(out, in, at, size); \
    }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

#define TRUNCATE(name, offset_type)                                        \
    int name(int file, offset_type size) {                                 \
        IF_FAILS(fails_file("write", file));                               \
        return ORIGINAL(int (*)(int, offset_type), name)(file, size);      \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int fsync(int file) {
    IF_FAILS(fails_file("fsync", file));
    return ORIGINAL(int (*)(int), fsync)(file);
}
int fdatasync(int file) {
    IF_FAILS(fails_file("fsync", file));
    return ORIGINAL(int (*)(int), fdatasync)(file);
}

int rename(const char *source, const char *target) {
    IF_FAILS(fails_pair("rename", AT_FDCWD, source, AT_FDCWD, target));
    return ORIGINAL(int (*)(const char *, const char *), rename)(source, target);
}
int renameat(int from, const char *source, int to, const char *target) {
    IF_FAILS(fails_pair("rename", from, source, to, target));
    return ORIGINAL(int (*)(int, const char *, int, const char *), renameat)(from, source, to, target);
}
int renameat2(int from, const char *source, int to, const char *target, unsigned flags) {
    IF_FAILS(fails_pair(flags & 2 ? "exchange" : "rename", from, source, to, target)); /* RENAME_EXCHANGE */
    return ORIGINAL(int (*)(int, const char *, int, const char *, unsigned), renameat2)(
        from, source, to, target, flags);
}
int link(const char *source, const char *target) {
    IF_FAILS(fails_pair("link", AT_FDCWD, source, AT_FDCWD, target));
    return ORIGINAL(int (*)(const char *, const char *), link)(source, target);
}
int linkat(int from, const char *source, int to, const char *target, int flags) {
    IF_FAILS(fails_pair("link", from, source, to, target));
    return ORIGINAL(int (*)(int, const char *, int, const char *, int), linkat)(from, source, to, target, flags);
}
/* mkdir of an existing folder writes nothing, so it is not an operation. */
int mkdir(const char *path, mode_t mode) {
    if (access(path, F_OK) == 0) return ORIGINAL(int (*)(const char *, mode_t), mkdir)(path, mode);
    IF_FAILS(fails_at("mkdir", AT_FDCWD, path));
    return ORIGINAL(int (*)(const char *, mode_t), mkdir)(path, mode);
}
int mkdirat(int directory, const char *path, mode_t mode) {
    if (faccessat(directory, path, F_OK, 0) == 0)
        return ORIGINAL(int (*)(int, const char *, mode_t), mkdirat)(directory, path, mode);
    IF_FAILS(fails_at("mkdir", directory, path));
    return ORIGINAL(int (*)(int, const char *, mode_t), mkdirat)(directory, path, mode);
}

int unlink(const char *path) {
    note_removal(AT_FDCWD, path);
    return ORIGINAL(int (*)(const char *), unlink)(path);
}
int unlinkat(int directory, const char *path, int flags) {
    note_removal(directory, path);
    return ORIGINAL(int (*)(int, const char *, int), unlinkat)(directory, path, flags);
}
int rmdir(const char *path) {
    note_removal(AT_FDCWD, path);
    return ORIGINAL(int (*)(const char *), rmdir)(path);
}
