/* A shifted wall clock for a dynamically linked program: LD_PRELOAD=libclock_shift.so FAKETIME=+3600s program
 *
 * Reads of the wall clock get FAKETIME's seconds added; waits until a wall clock time get them taken off again.
 * Everything relative or monotonic is left alone.
 *
 * The syntax is libfaketime's (of which only whole seconds are taken), but not the library: that one shows the real
 * time to a signal handler that interrupts a wait. Postgres fires its timeouts in just such a handler, so under a
 * clock that is ahead statement_timeout and idle_in_transaction_session_timeout never fire. It also guards each
 * reading with a semaphore, which costs a Kafka broker several times its CPU, and leaves shared memory behind.
 *
 * With CLOCK_SHIFT_FILE in place of FAKETIME the seconds are read from that file at every call, a 64-bit integer in the
 * machine's own form: whoever writes to it makes the clock jump.
 *
 * Not covered, as nothing in the stack uses it: timerfd and POSIX timers set to an absolute wall clock time, file times.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

static long fixed_offset_s;
static const volatile long *offset_at = &fixed_offset_s;

/* Looked up once, before main: dlsym must not run in a signal handler. */
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_clock_nanosleep)(clockid_t, int, const struct timespec *, struct timespec *);
static int (*real_cond_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static int (*real_cond_clockwait)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
static int (*real_mutex_timedlock)(pthread_mutex_t *, const struct timespec *);
static int (*real_cnd_timedwait)(cnd_t *, mtx_t *, const struct timespec *);
static int (*real_mtx_timedlock)(mtx_t *, const struct timespec *);
static int (*real_sem_timedwait)(sem_t *, const struct timespec *);
static int (*real_sem_clockwait)(sem_t *, clockid_t, const struct timespec *);

#define LOOK_UP(variable, name) (*(void **)&(variable) = dlsym(RTLD_NEXT, name))

__attribute__((constructor)) static void begin(void)
{
    LOOK_UP(real_clock_gettime, "clock_gettime");
    LOOK_UP(real_clock_nanosleep, "clock_nanosleep");
    LOOK_UP(real_cond_timedwait, "pthread_cond_timedwait");
    LOOK_UP(real_cond_clockwait, "pthread_cond_clockwait");
    LOOK_UP(real_mutex_timedlock, "pthread_mutex_timedlock");
    LOOK_UP(real_cnd_timedwait, "cnd_timedwait");
    LOOK_UP(real_mtx_timedlock, "mtx_timedlock");
    LOOK_UP(real_sem_timedwait, "sem_timedwait");
    LOOK_UP(real_sem_clockwait, "sem_clockwait");
    const char *text = getenv("FAKETIME");
    fixed_offset_s = text ? strtol(text, NULL, 10) : 0;
    const char *path = getenv("CLOCK_SHIFT_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *mapped = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
        if (mapped != MAP_FAILED)
            offset_at = mapped;
        close(file);
    }
}

static int is_wall(clockid_t clock)
{
    return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_TAI;
}

static struct timespec unshifted(const struct timespec *until)
{
    return (struct timespec){.tv_sec = until->tv_sec - *offset_at, .tv_nsec = until->tv_nsec};
}

/* Reads */

int clock_gettime(clockid_t clock, struct timespec *now)
{
    /* Another library's constructor may run before ours. */
    int result = real_clock_gettime ? real_clock_gettime(clock, now) : (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && is_wall(clock))
        now->tv_sec += *offset_at;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    *now = (struct timeval){.tv_sec = precise.tv_sec, .tv_usec = precise.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *now)
{
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now)
        *now = precise.tv_sec;
    return precise.tv_sec;
}

int timespec_get(struct timespec *now, int base)
{
    if (base != TIME_UTC)
        return 0;
    clock_gettime(CLOCK_REALTIME, now);
    return base;
}

/* Waits. The C11 functions are calls of their own: glibc's do not go through the POSIX names. */

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until)
{
    /* glibc keeps the clock that the attributes chose in this bit: set for CLOCK_MONOTONIC. */
    if (cond->__data.__wrefs & 2)
        return real_cond_timedwait(cond, mutex, until);
    struct timespec real = unshifted(until);
    return real_cond_timedwait(cond, mutex, &real);
}

int pthread_cond_clockwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, clockid_t clock,
                           const struct timespec *restrict until)
{
    struct timespec real = is_wall(clock) ? unshifted(until) : *until;
    return real_cond_clockwait(cond, mutex, clock, &real);
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict until)
{
    struct timespec real = unshifted(until);
    return real_mutex_timedlock(mutex, &real);
}

int cnd_timedwait(cnd_t *restrict cond, mtx_t *restrict mutex, const struct timespec *restrict until)
{
    struct timespec real = unshifted(until);
    return real_cnd_timedwait(cond, mutex, &real);
}

int mtx_timedlock(mtx_t *restrict mutex, const struct timespec *restrict until)
{
    struct timespec real = unshifted(until);
    return real_mtx_timedlock(mutex, &real);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until)
{
    struct timespec real = unshifted(until);
    return real_sem_timedwait(semaphore, &real);
}

int sem_clockwait(sem_t *restrict semaphore, clockid_t clock, const struct timespec *restrict until)
{
    struct timespec real = is_wall(clock) ? unshifted(until) : *until;
    return real_sem_clockwait(semaphore, clock, &real);
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *request, struct timespec *left)
{
    if (!(flags & TIMER_ABSTIME) || !is_wall(clock))
        return real_clock_nanosleep(clock, flags, request, left);
    struct timespec real = unshifted(request);
    return real_clock_nanosleep(clock, flags, &real, left);
}
