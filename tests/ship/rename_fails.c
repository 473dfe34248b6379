/* rename() as a network file system may answer it: fails with RENAME_ERRNO from call RENAME_FROM on,
   or, with RENAME_DONE set, after it was done, as where a reply was lost. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>

static int calls;

int rename(const char *from, const char *to)
{
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    const char *number = getenv("RENAME_ERRNO");
    const char *first = getenv("RENAME_FROM");
    if (number == NULL || first == NULL || calls++ < atoi(first))
        return real(from, to);
    if (getenv("RENAME_DONE") != NULL)
        real(from, to);
    errno = atoi(number);
    return -1;
}
