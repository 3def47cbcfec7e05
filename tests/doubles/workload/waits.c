/*
 * Threads that are off their CPU for known reasons, one reason each: naps, a futex, a pipe, poll, a disk read, a page of
 * a disk, moves between CPUs, and a CPU that somebody else uses. Two threads wait before the line comes on standard
 * input that lets the others begin; one of them is woken then, the other never.
 *
 * Prints {"cause":NAME,"tid":N,"rounds":N,"argument":N} for each, and waits for another line.
 *
 * waits --cudart PATH --disk DEVICE --cpu N --other-cpu N [--rounds 5]
 */
#include "truth.h"
#include "cuda_runtime_api.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>

enum { STRIDE = 1 << 18, NICE = 7, LATE_ROUNDS = 60 };

static long rounds;
static volatile int at, tid;
static int word, hung_word, woken_word, pipe_in[2], pipe_polled[2], disk, cpus[2];
static struct pollfd polled;

static void tell(const char *cause, uint64_t argument)
{
	printf("{\"cause\":\"%s\",\"tid\":%d,\"rounds\":%ld,\"argument\":%lu}\n", cause, tid, rounds, (unsigned long)argument);
}

static char state_of(int thread)
{
	char path[64], text[512] = {}, *end;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", thread);
	f = fopen(path, "r");
	if (!f || !fread(text, 1, sizeof(text) - 1, f))
		die("stat", path);
	fclose(f);
	end = strrchr(text, ')');
	return end[2];
}

/* Until the thread has begun its n-th wait and sleeps. */
static void await_asleep(int n)
{
	while (at < n)
		nap_us(500);
	while (state_of(tid) != 'S')
		nap_us(500);
}

static void futex_wait(int *address)
{
	syscall(SYS_futex, address, FUTEX_WAIT, 0, NULL, NULL, 0);
}

static void futex_wake(int *address)
{
	syscall(SYS_futex, address, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void *wait_on(void *address)
{
	tid = thread_id();
	at++;
	futex_wait(address);
	return NULL;
}

static void *nap(void *unused)
{
	tid = thread_id();
	for (long i = 0; i < rounds; i++)
		nap_us(2000);
	return unused;
}

static void *on_futex(void *unused)
{
	tid = thread_id();
	for (long i = 0; i < rounds; i++) {
		at++;
		futex_wait(&word);
	}
	return unused;
}

static void *on_pipe(void *unused)
{
	char c;

	tid = thread_id();
	for (long i = 0; i < rounds; i++) {
		at++;
		if (read(pipe_in[0], &c, 1) != 1)
			die("read", NULL);
	}
	return unused;
}

static void *on_poll(void *unused)
{
	char c;

	tid = thread_id();
	for (long i = 0; i < rounds; i++) {
		at++;
		if (poll(&polled, 1, -1) != 1 || read(polled.fd, &c, 1) != 1)
			die("poll", NULL);
	}
	return unused;
}

static void *on_disk(void *unused)
{
	void *buffer = aligned_alloc(4096, 4096);

	tid = thread_id();
	for (long i = 0; i < rounds; i++) {
		if (pread(disk, buffer, 4096, i * STRIDE) != 4096)
			die("pread", NULL);
	}
	return unused;
}

static void *on_fault(void *unused)
{
	size_t length = (size_t)(rounds * STRIDE);
	volatile char *pages = mmap(NULL, length, PROT_READ, MAP_SHARED, disk, 0);
	static volatile char sum;

	if (pages == MAP_FAILED || madvise((void *)pages, length, MADV_RANDOM))
		die("mmap", NULL);
	tid = thread_id();
	for (long i = 0; i < rounds; i++)
		sum += pages[i * STRIDE];
	return unused;
}

static void move_to(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity", NULL);
}

static void *on_move(void *unused)
{
	tid = thread_id();
	for (long i = 0; i <= rounds; i++)
		move_to(cpus[i % 2]);
	return unused;
}

/* On the CPU that another program takes again and again: when it wakes, and while it works, it has to wait. */
static void *late(void *unused)
{
	tid = thread_id();
	move_to(cpus[0]);
	if (setpriority(PRIO_PROCESS, (id_t)tid, NICE))
		die("setpriority", NULL);
	for (long i = 0; i < LATE_ROUNDS; i++) {
		nap_us(1000);
		spin_us(1000);
	}
	return unused;
}

static void run(const char *cause, void *(*thread)(void *), uint64_t argument, void (*wake)(void))
{
	pthread_t t;

	at = 0;
	pthread_create(&t, NULL, thread, NULL);
	for (int i = 1; wake && i <= rounds; i++) {
		await_asleep(i);
		wake();
	}
	pthread_join(t, NULL);
	tell(cause, argument);
}

static void wake_futex(void)
{
	futex_wake(&word);
}

static void wake_pipe(void)
{
	if (write(pipe_in[1], "x", 1) != 1)
		die("write", NULL);
}

static void wake_poll(void)
{
	if (write(pipe_polled[1], "x", 1) != 1)
		die("write", NULL);
}

static void begin_waiting(const char *cause, int *address)
{
	pthread_t t;

	at = 0;
	pthread_create(&t, NULL, wait_on, address);
	await_asleep(1);
	tell(cause, (uint64_t)address);
}

int main(int argc, char **argv)
{
	void *library = dlopen(option(argc, argv, "cudart", ""), RTLD_NOW | RTLD_GLOBAL);

	if (!library)
		die("dlopen", dlerror());
	((__typeof__(&cudaDeviceSynchronize))dlsym(library, "cudaDeviceSynchronize"))();
	rounds = number(argc, argv, "rounds", 5);
	cpus[0] = (int)number(argc, argv, "cpu", 0);
	cpus[1] = (int)number(argc, argv, "other-cpu", 1);
	disk = open(option(argc, argv, "disk", ""), O_RDONLY | O_DIRECT);
	if (disk < 0 || pipe(pipe_in) || pipe(pipe_polled))
		die("open", option(argc, argv, "disk", "--disk"));
	polled = (struct pollfd){.fd = pipe_polled[0], .events = POLLIN};
	begin_waiting("hung", &hung_word);
	begin_waiting("woken", &woken_word);
	printf("at ready\n");
	fflush(stdout);
	getchar();
	futex_wake(&woken_word);
	run("nap", nap, 0, NULL);
	run("futex", on_futex, (uint64_t)&word, wake_futex);
	run("pipe", on_pipe, (uint64_t)pipe_in[0], wake_pipe);
	run("poll", on_poll, (uint64_t)&polled, wake_poll);
	run("disk", on_disk, (uint64_t)disk, NULL);
	ioctl(disk, BLKFLSBUF, 0);
	run("fault", on_fault, 0, NULL);
	run("move", on_move, 0, NULL);
	run("late", late, 0, NULL);
	printf("at done\n");
	fflush(stdout);
	getchar();
	_exit(0);
}
