/*
 * Data-parallel training in small: one process per rank, each step a pause, a kernel, an all-reduce and the
 * synchronisation of its stream. Every rank writes each call it makes to OUT.RANK, with CLOCK_BOOTTIME before and after,
 * and at the end how many calls of each kind there were: the truth for the tests.
 *
 * ranks --out FILE [--ranks 4] [--steps 50] [--step-ms 2] [--late-rank R] [--late-ms 30]
 *       [--late-by sleep|spin|disk|futex|socket|post|nap|work] [--late-cpu N] [--late-cgroup DIRECTORY] [--disk FILE] [--busy-ms 10]
 *       [--stream own|default] [--init plain|config] [--count 1000] [--realtime 0] [--pause-at start|init]
 *       [--pause-file FILE] [--settle-ms 0] [--linger-ms 0]
 *       [--late-every 1] [--late-priority N] [--first-netns FILE] [--server ADDRESS --port N]
 *
 * With --realtime 1, a priority, no other load on the host makes a rank late. The late rank can be late for a cause that
 * is planted (planted.h; "work" is nothing but its CPU time), whose spans it writes down; it can be pinned to a CPU, have
 * a priority of its own, and be in a cgroup of its own (without real-time priority then). With --first-netns rank 0 is in
 * another network namespace.
 */
#include "planted.h"
#include "nccl.h"

#include <sched.h>
#include <sys/wait.h>

enum call { MALLOC, FREE, MEMCPY, LAUNCH, SYNCHRONIZE, ALL_REDUCE, INIT, DESTROY, STREAM, CALLS };
static const char *names[CALLS] = {
	"cudaMalloc", "cudaFree", "cudaMemcpy", "cudaLaunchKernel", "cudaStreamSynchronize", "ncclAllReduce", NULL,
	"ncclCommDestroy", "cudaStreamCreate",
};
static uint64_t counts[CALLS];
static FILE *truth;
static uint64_t before;

static void begin(void)
{
	before = boottime_ns();
}

static void end(enum call call, int code)
{
	uint64_t after = boottime_ns();

	counts[call]++;
	fprintf(truth, "{\"op\":\"%s\",\"before_ns\":%llu,\"after_ns\":%llu,\"return_code\":%d}\n", names[call],
		(unsigned long long)before, (unsigned long long)after, code);
	if (code)
		die(names[call], "returned an error");
}

static struct planted *plan; /* of the late rank, if its cause is planted */
static char throttled_file[4096]; /* of its cgroup, if it has one of its own */

static void late(const char *how, uint64_t us)
{
	if (plan) {
		plan->count = 0;
		planted_off(plan, NULL, 0); /* since it fell asleep: woken, and no CPU was there */
		planted_ready(plan);
		planted_cause(plan);
		planted_work(plan);
	} else if (!strcmp(how, "spin")) {
		spin_us(us);
	} else {
		nap_us(us);
	}
}

/* throttled_ns: how long its cgroup had been when this step began. */
static void tell_lateness(uint64_t arrived_ns, uint64_t throttled_ns)
{
	fprintf(truth, "{\"late_ns\":%llu,\"stolen_so_far_ns\":%llu,\"throttled_ns\":%llu,\"spans\":",
		(unsigned long long)arrived_ns, (unsigned long long)planted_stolen_ns(),
		(unsigned long long)(planted_throttled_ns(throttled_file) - throttled_ns));
	planted_print(truth, plan);
	fprintf(truth, "}\n");
}

static void plan_lateness(int argc, char **argv, const char *how)
{
	const char *cgroup = option(argc, argv, "late-cgroup", NULL);
	long cpu = number(argc, argv, "late-cpu", -1);
	struct sched_param priority = {.sched_priority = (int)number(argc, argv, "late-priority", 0)};
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((int)(cpu < 0 ? 0 : cpu), &set);
	if (cpu >= 0 && sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity", NULL);
	if (priority.sched_priority && sched_setscheduler(0, SCHED_FIFO, &priority))
		die("sched_setscheduler", NULL);
	if (cgroup) {
		struct sched_param ordinary = {0};
		char path[4096];
		FILE *procs;

		snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
		procs = fopen(path, "w");
		if (sched_setscheduler(0, SCHED_OTHER, &ordinary) || !procs || fprintf(procs, "%d", getpid()) < 0 ||
		    fclose(procs))
			die(path, "cannot be joined");
		snprintf(throttled_file, sizeof(throttled_file), "%s/cpu.stat", cgroup);
	}
	if (strcmp(how, "sleep") && strcmp(how, "spin"))
		plan = planted_new(argc, argv, how);
	if (plan)
		planted_look(plan); /* the first one makes what it reads, which takes time */
}

static void run_rank(int argc, char **argv, int rank, ncclUniqueId id)
{
	int ranks = (int)number(argc, argv, "ranks", 4);
	long steps = number(argc, argv, "steps", 50), step_ms = number(argc, argv, "step-ms", 2);
	long late_rank = number(argc, argv, "late-rank", -1), late_ms = number(argc, argv, "late-ms", 30);
	long count = number(argc, argv, "count", 1000), late_every = number(argc, argv, "late-every", 1);
	const char *netns = option(argc, argv, "first-netns", NULL);
	const char *how = option(argc, argv, "late-by", "sleep"), *pause_file = option(argc, argv, "pause-file", NULL);
	int own_stream = !strcmp(option(argc, argv, "stream", "own"), "own");
	int with_config = !strcmp(option(argc, argv, "init", "plain"), "config");
	ncclConfig_t config = {.size = sizeof(config), .magic = 0xcafebeef, .version = 21700, .blocking = 1};
	cudaStream_t stream = NULL;
	ncclComm_t comm;
	void *device;
	float *send = calloc((size_t)count, sizeof(*send)), *receive = calloc((size_t)count, sizeof(*receive));
	char path[4096];

	snprintf(path, sizeof(path), "%s.%d", option(argc, argv, "out", "ranks"), rank);
	truth = fopen(path, "w");
	if (!truth || !send || !receive)
		die(path, "cannot be written");
	fprintf(truth, "{\"rank\":%d,\"pid\":%d,\"tid\":%d,\"nranks\":%d,\"late\":%d,\"count\":%ld}\n", rank, getpid(),
		thread_id(), ranks, rank == late_rank, count);
	if (netns && rank == 0 && setns(open(netns, O_RDONLY), CLONE_NEWNET))
		die(netns, "cannot be entered");
	if (rank == late_rank)
		plan_lateness(argc, argv, how);
	names[INIT] = with_config ? "ncclCommInitRankConfig" : "ncclCommInitRank";
	if (own_stream) {
		begin();
		end(STREAM, cudaStreamCreate(&stream));
	}
	begin();
	end(INIT, with_config ? ncclCommInitRankConfig(&comm, ranks, id, rank, &config) :
				ncclCommInitRank(&comm, ranks, id, rank));
	begin();
	end(MALLOC, cudaMalloc(&device, (size_t)count * sizeof(float)));
	if (!strcmp(option(argc, argv, "pause-at", ""), "init"))
		pause_for("init", pause_file);
	nap_us((uint64_t)number(argc, argv, "settle-ms", 0) * 1000u);
	for (long step = 0; step < steps; step++) {
		int is_late = rank == late_rank && step % late_every == 0;
		uint64_t arrived_ns, throttled_ns = planted_throttled_ns(throttled_file);

		if (plan)
			planted_look(plan);
		nap_us((uint64_t)step_ms * 1000u);
		if (is_late)
			late(how, (uint64_t)late_ms * 1000u);
		for (long i = 0; i < count; i++)
			send[i] = (float)(rank + 1 + step);
		begin();
		end(LAUNCH, cudaLaunchKernel((void *)run_rank, (dim3){2, 3, 4}, (dim3){32, 2, 1}, NULL, 64, stream));
		if (plan && is_late)
			planted_off(plan, NULL, 0); /* since its work: switched out in the launch */
		begin();
		arrived_ns = before;
		end(ALL_REDUCE, ncclAllReduce(send, receive, (size_t)count, ncclFloat32, ncclSum, comm, stream));
		if (plan && is_late)
			planted_off(plan, NULL, 0); /* in the all-reduce */
		begin();
		end(SYNCHRONIZE, cudaStreamSynchronize(stream));
		if (plan && is_late) {
			planted_off(plan, NULL, 0); /* while it waited for that */
			tell_lateness(arrived_ns, throttled_ns);
		}
		if (count <= 1024 && receive[count - 1] != (float)(ranks * (ranks + 1) / 2 + ranks * step))
			die("ncclAllReduce", "wrong sum");
	}
	begin();
	end(MEMCPY, cudaMemcpy(device, receive, (size_t)count * sizeof(float), cudaMemcpyHostToDevice));
	begin();
	end(FREE, cudaFree(device));
	begin();
	end(DESTROY, ncclCommDestroy(comm));
	fprintf(truth, "{\"counts\":{");
	for (int i = 0; i < CALLS; i++)
		fprintf(truth, "%s\"%s\":%llu", i ? "," : "", names[i], (unsigned long long)counts[i]);
	fprintf(truth, "}}\n");
	fclose(truth);
	nap_us((uint64_t)number(argc, argv, "linger-ms", 0) * 1000u);
	exit(0);
}

int main(int argc, char **argv)
{
	long ranks = number(argc, argv, "ranks", 4);
	struct sched_param priority = {.sched_priority = (int)number(argc, argv, "realtime", 0)};
	int status, worst = 0;
	ncclUniqueId id;

	if (priority.sched_priority && sched_setscheduler(0, SCHED_FIFO, &priority))
		die("sched_setscheduler", NULL);
	if (!strcmp(option(argc, argv, "pause-at", ""), "start"))
		pause_for("start", option(argc, argv, "pause-file", NULL));
	if (ncclGetUniqueId(&id))
		die("ncclGetUniqueId", NULL);
	for (long rank = 0; rank < ranks; rank++) {
		pid_t pid = fork();

		if (pid < 0)
			die("fork", NULL);
		if (pid == 0)
			run_rank(argc, argv, (int)rank, id);
	}
	while (wait(&status) > 0) {
		if (status)
			worst = 1;
	}
	return worst;
}
