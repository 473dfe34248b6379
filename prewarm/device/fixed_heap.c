/* malloc whose blocks have the same addresses in every run: preloaded into programs whose output
 * follows the addresses of their own objects. Blocks are powers of two, kept by size when freed,
 * cut from chunks that lie one behind the other from BASE on. */

#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define BASE ((uintptr_t)0x100000000000)
#define CHUNK ((size_t)32 << 20)
#define ORDERS 47
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/* Stands before each block; sixteen bytes, the alignment that malloc promises. */
struct header {
    uint64_t order;
    struct header *start; /* of the whole block: an aligned one begins later */
};

static struct header *freed[ORDERS];
static uintptr_t next = BASE, end = BASE;
static atomic_flag lock = ATOMIC_FLAG_INIT;

static struct header *cut(unsigned order)
{
    size_t size = (size_t)1 << order;
    if (end - next < size) {
        size_t length = size > CHUNK ? size : CHUNK;
        void *got = mmap((void *)end, length, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
        if (got != (void *)end)
            return NULL;
        end += length;
    }
    struct header *block = (struct header *)next;
    next += size;
    return block;
}

static void *take(size_t alignment, size_t size)
{
    size_t extra = sizeof(struct header) + (alignment > 16 ? alignment : 0);
    if (size > ((size_t)1 << (ORDERS - 2)) || extra > ((size_t)1 << (ORDERS - 2))) {
        errno = ENOMEM;
        return NULL;
    }
    unsigned order = 5;
    while (((size_t)1 << order) < size + extra)
        order++;
    while (atomic_flag_test_and_set_explicit(&lock, memory_order_acquire))
        ;
    struct header *block = freed[order];
    if (block != NULL)
        freed[order] = block->start;
    else
        block = cut(order);
    atomic_flag_clear_explicit(&lock, memory_order_release);
    if (block == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    uintptr_t at = (uintptr_t)(block + 1);
    if (alignment > 16)
        at = (at + alignment - 1) & ~(uintptr_t)(alignment - 1);
    struct header *before = (struct header *)at - 1;
    before->order = order;
    before->start = block;
    return (void *)at;
}

static int is_ours(const void *pointer)
{
    return (uintptr_t)pointer >= BASE && (uintptr_t)pointer < end;
}

size_t malloc_usable_size(void *pointer)
{
    if (!is_ours(pointer))
        return 0;
    struct header *before = (struct header *)pointer - 1;
    return (size_t)((uintptr_t)before->start + ((size_t)1 << before->order) - (uintptr_t)pointer);
}

void *malloc(size_t size) { return take(16, size); }

void free(void *pointer)
{
    if (!is_ours(pointer)) /* NULL, or from the loader before this library was there */
        return;
    struct header *before = (struct header *)pointer - 1;
    struct header *block = before->start;
    uint64_t order = before->order;
    while (atomic_flag_test_and_set_explicit(&lock, memory_order_acquire))
        ;
    block->start = freed[order];
    freed[order] = block;
    atomic_flag_clear_explicit(&lock, memory_order_release);
}

void *calloc(size_t count, size_t size)
{
    size_t total;
    if (__builtin_mul_overflow(count, size, &total)) {
        errno = ENOMEM;
        return NULL;
    }
    void *pointer = take(16, total);
    return pointer == NULL ? NULL : memset(pointer, 0, total);
}

void *realloc(void *pointer, size_t size)
{
    size_t usable = malloc_usable_size(pointer);
    if (pointer != NULL && usable >= size && size > 0)
        return pointer;
    void *moved = take(16, size);
    if (moved != NULL && pointer != NULL) {
        memcpy(moved, pointer, usable < size ? usable : size);
        free(pointer);
    }
    return moved;
}

void *memalign(size_t alignment, size_t size) { return take(alignment, size); }
void *aligned_alloc(size_t alignment, size_t size) { return take(alignment, size); }
void *valloc(size_t size) { return take(4096, size); }

int posix_memalign(void **pointer, size_t alignment, size_t size)
{
    if (alignment < sizeof(void *) || (alignment & (alignment - 1)) != 0)
        return EINVAL;
    void *got = take(alignment, size);
    if (got == NULL)
        return ENOMEM;
    *pointer = got;
    return 0;
}
