/*
 * Two processes that send to and receive from each other over TCP (IPv4, IPv6), UDP and Unix sockets, with every call
 * that there is for it, from threads that share a socket too; and files, which are no sockets. Each counts its own
 * calls per socket and direction. Stops half way, and again between two uses of the socket that threads share, until a
 * line comes on its standard input.
 *
 * Prints one line for each: {"pid":N,"inode":N,"receive":0|1,"calls":N,"errors":N,"not_ready":N,"bytes":N,"sum_ns":N,
 * "max_ns":N,"family":N,"local":"a","local_port":N,"remote":"a","remote_port":N}, addresses "" and ports 0 where none.
 *
 * transfers --cudart PATH [--rounds 20] [--many 5000]
 */
#include "truth.h"
#include "cuda_runtime_api.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum { CHUNK = 1000, MESSAGES = 3, WAIT_MS = 30, PAIRS = 40 };

struct total {
	uint64_t calls, errors, not_ready, bytes, sum_ns, max_ns;
};
static struct total totals[1024][2]; /* by descriptor and direction */
static pthread_mutex_t one_counts = PTHREAD_MUTEX_INITIALIZER;
static char bytes[CHUNK * MESSAGES];
static long rounds, many;

static long took(int fd, int receive, uint64_t began_ns, long returned, long moved)
{
	uint64_t ns = boottime_ns() - began_ns;
	struct total *t = &totals[fd][receive];
	int why = errno;

	pthread_mutex_lock(&one_counts);
	t->calls++;
	t->errors += returned < 0;
	t->not_ready += returned < 0 && why == EAGAIN;
	t->bytes += moved > 0 ? (uint64_t)moved : 0;
	t->sum_ns += ns;
	t->max_ns = ns > t->max_ns ? ns : t->max_ns;
	pthread_mutex_unlock(&one_counts);
	return moved;
}

#define SEND(fd, call)                                            \
	({                                                        \
		uint64_t __began = boottime_ns();                 \
		long __r = (call);                                \
		took(fd, 0, __began, __r, __r);                   \
	})
#define RECEIVE(fd, call)                                         \
	({                                                        \
		uint64_t __began = boottime_ns();                 \
		long __r = (call);                                \
		took(fd, 1, __began, __r, __r);                   \
	})

static long many_messages(int fd, int receive, int flags)
{
	struct mmsghdr messages[MESSAGES];
	struct iovec parts[MESSAGES];
	uint64_t began_ns;
	long returned, moved = 0;

	memset(messages, 0, sizeof(messages));
	for (int i = 0; i < MESSAGES; i++) {
		parts[i] = (struct iovec){bytes + CHUNK * i, receive ? CHUNK : 100 * ((size_t)i + 1)};
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	began_ns = boottime_ns();
	returned = receive ? recvmmsg(fd, messages, MESSAGES, flags, NULL) : sendmmsg(fd, messages, MESSAGES, 0);
	for (int i = 0; i < returned; i++)
		moved += messages[i].msg_len;
	return took(fd, receive, began_ns, returned, moved);
}

/* A round sends 6 chunks and what many_messages() sends, each in its own way. */
static void send_round(int fd, int file)
{
	struct iovec part = {bytes, CHUNK};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	off_t from = 0;

	SEND(fd, write(fd, bytes, CHUNK));
	SEND(fd, writev(fd, &part, 1));
	SEND(fd, send(fd, bytes, CHUNK, 0));
	SEND(fd, sendmsg(fd, &message, 0));
	SEND(fd, sendfile(fd, file, &from, CHUNK));
	SEND(fd, sendto(fd, bytes, CHUNK, 0, NULL, 0));
	many_messages(fd, 0, 0);
}

enum { MANY_BYTES = 100 + 200 + 300, ROUND_BYTES = 6 * CHUNK + MANY_BYTES };

static void receive_stream(int fd, long wanted)
{
	for (long got = 0, way = 0; got < wanted; way++) {
		size_t room = (size_t)(wanted - got < CHUNK ? wanted - got : CHUNK);
		struct iovec part = {bytes, room};
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
		struct mmsghdr one = {.msg_hdr = message};

		switch (way % 5) {
		case 0:
			got += RECEIVE(fd, read(fd, bytes, room));
			break;
		case 1:
			got += RECEIVE(fd, readv(fd, &part, 1));
			break;
		case 2:
			got += RECEIVE(fd, recv(fd, bytes, room, 0));
			break;
		case 3:
			got += RECEIVE(fd, recvmsg(fd, &message, 0));
			break;
		default: {
			uint64_t began_ns = boottime_ns();
			long returned = recvmmsg(fd, &one, 1, 0, NULL);

			got += took(fd, 1, began_ns, returned, returned == 1 ? (long)one.msg_len : 0);
		}
		}
	}
}

static void *send_many(void *fd)
{
	for (long i = 0; i < many; i++)
		SEND((int)(long)fd, send((int)(long)fd, "x", 1, 0));
	return NULL;
}

/* Two threads send through one socket what a third receives byte by byte. */
static void share(int from, int to)
{
	pthread_t a, b;

	pthread_create(&a, NULL, send_many, (void *)(long)from);
	pthread_create(&b, NULL, send_many, (void *)(long)from);
	for (long i = 0; i < 2 * many; i++)
		RECEIVE(to, recv(to, bytes, 1, MSG_WAITALL));
	pthread_join(a, NULL);
	pthread_join(b, NULL);
}

static void where(struct sockaddr_storage *s, char *text, int *port)
{
	*text = 0;
	*port = 0;
	if (s->ss_family == AF_INET) {
		inet_ntop(AF_INET, &((struct sockaddr_in *)s)->sin_addr, text, INET6_ADDRSTRLEN);
		*port = ntohs(((struct sockaddr_in *)s)->sin_port);
	} else if (s->ss_family == AF_INET6) {
		inet_ntop(AF_INET6, &((struct sockaddr_in6 *)s)->sin6_addr, text, INET6_ADDRSTRLEN);
		*port = ntohs(((struct sockaddr_in6 *)s)->sin6_port);
	}
}

static void tell(void)
{
	for (int fd = 0; fd < 1024; fd++) {
		for (int receive = 0; receive < 2; receive++) {
			struct total *t = &totals[fd][receive];
			struct sockaddr_storage near = {}, far = {};
			socklen_t length = sizeof(near);
			char local[INET6_ADDRSTRLEN], remote[INET6_ADDRSTRLEN];
			int local_port, remote_port;
			struct stat s;

			if (!t->calls || fstat(fd, &s))
				continue;
			getsockname(fd, (struct sockaddr *)&near, &length);
			length = sizeof(far);
			getpeername(fd, (struct sockaddr *)&far, &length);
			where(&near, local, &local_port);
			where(&far, remote, &remote_port);
			printf("{\"pid\":%d,\"inode\":%lu,\"receive\":%d,\"calls\":%lu,\"errors\":%lu,\"not_ready\":%lu,\"bytes\":%lu,"
			       "\"sum_ns\":%lu,\"max_ns\":%lu,\"family\":%d,\"local\":\"%s\",\"local_port\":%d,\"remote\":\"%s\","
			       "\"remote_port\":%d}\n",
			       getpid(), s.st_ino, receive, t->calls, t->errors, t->not_ready, t->bytes, t->sum_ns, t->max_ns,
			       near.ss_family, local, local_port, remote, remote_port);
		}
	}
	fflush(stdout);
}

static int listening(int family, struct sockaddr_storage *at, socklen_t *length)
{
	int fd = socket(family, SOCK_STREAM, 0);

	memset(at, 0, sizeof(*at));
	at->ss_family = (sa_family_t)family;
	if (family == AF_INET)
		((struct sockaddr_in *)at)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	else
		((struct sockaddr_in6 *)at)->sin6_addr = in6addr_loopback;
	*length = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	if (fd < 0 || bind(fd, (struct sockaddr *)at, *length) || listen(fd, 1) ||
	    getsockname(fd, (struct sockaddr *)at, length))
		die("listen", NULL);
	return fd;
}

/* The child: sends on every stream, answers nothing; waits before it sends, so that the other side has to. */
static void child(int four, int six, int unix_stream, int datagrams, int file, int go)
{
	char line;

	nap_us(WAIT_MS * 1000);
	for (int half = 0; half < 2; half++) {
		for (long i = 0; i < rounds; i++) {
			send_round(four, file);
			send_round(six, file);
			send_round(unix_stream, file);
			many_messages(datagrams, 0, 0);
		}
		if (read(go, &line, 1) != 1)
			die("pipe", NULL);
	}
	shutdown(four, SHUT_WR);
	for (int i = 0; i < 7; i++)
		SEND(four, send(four, bytes, 1, MSG_NOSIGNAL)); /* EPIPE */
	if (read(go, &line, 1) != 1)
		die("pipe", NULL);
	tell();
	_exit(0);
}

static void stop(const char *point)
{
	printf("at %s\n", point);
	fflush(stdout);
	getchar();
}

static void nothing(int number)
{
	(void)number;
}

/* A receive that nobody answers and a signal ends: EINTR. The signal comes again in case it came too early. */
static void interrupted(void)
{
	struct itimerval soon = {{0, 5000}, {0, 5000}}, never = {};
	struct sigaction quiet = {.sa_handler = nothing};
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || sigaction(SIGALRM, &quiet, NULL))
		die("socketpair", NULL);
	setitimer(ITIMER_REAL, &soon, NULL);
	RECEIVE(pair[1], recv(pair[1], bytes, 1, 0));
	setitimer(ITIMER_REAL, &never, NULL);
}

/* Many sockets with little to do, all in one window. */
static void crowd(void)
{
	int pair[2];

	for (int i = 0; i < PAIRS; i++) {
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
			die("socketpair", NULL);
		SEND(pair[0], send(pair[0], bytes, (size_t)i + 1, 0));
		RECEIVE(pair[1], recv(pair[1], bytes, CHUNK, 0));
	}
}

static void parent(int four, int six, int unix_stream, int datagrams, int go[2])
{
	int pair[2];
	long got = 0; /* of datagrams: a call may take those of the next round too */

	for (int i = 0; i < 5; i++)
		RECEIVE(six, recv(six, bytes, 1, MSG_DONTWAIT)); /* EAGAIN: nothing was sent yet */
	for (int half = 0; half < 2; half++) {
		for (long i = 0; i < rounds; i++) {
			receive_stream(four, ROUND_BYTES);
			receive_stream(six, ROUND_BYTES);
			receive_stream(unix_stream, ROUND_BYTES);
			while (got < MANY_BYTES)
				got += many_messages(datagrams, 1, MSG_WAITFORONE);
			got -= MANY_BYTES;
		}
		if (!half) {
			crowd();
			interrupted();
			stop("half");
		}
		if (write(go[1], "x", 1) != 1)
			die("pipe", NULL);
	}
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		die("socketpair", NULL);
	share(pair[0], pair[1]);
	stop("shared");
	share(pair[0], pair[1]);
	RECEIVE(four, recv(four, bytes, 1, 0)); /* 0: the other side sends no more */
	if (write(go[1], "x", 1) != 1)
		die("pipe", NULL);
	wait(NULL);
	tell();
}

int main(int argc, char **argv)
{
	void *library = dlopen(option(argc, argv, "cudart", ""), RTLD_NOW | RTLD_GLOBAL);
	int pair[2], datagrams[2], go[2], file = open("/proc/self/exe", O_RDONLY);
	struct sockaddr_storage four, six;
	__typeof__(&cudaDeviceSynchronize) synchronize;
	socklen_t four_length, six_length;
	int at_four, at_six, fd4, fd6;

	if (!library)
		die("dlopen", dlerror());
	synchronize = (__typeof__(synchronize))dlsym(library, "cudaDeviceSynchronize");
	synchronize(); /* a traced process from here on, and its child too */
	rounds = number(argc, argv, "rounds", 20);
	many = number(argc, argv, "many", 5000);
	at_four = listening(AF_INET, &four, &four_length);
	at_six = listening(AF_INET6, &six, &six_length);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams) || pipe(go) || file < 0)
		die("sockets", NULL);
	if (!fork()) {
		fd4 = socket(AF_INET, SOCK_STREAM, 0);
		fd6 = socket(AF_INET6, SOCK_STREAM, 0);
		if (connect(fd4, (struct sockaddr *)&four, four_length) || connect(fd6, (struct sockaddr *)&six, six_length))
			die("connect", NULL);
		child(fd4, fd6, pair[0], datagrams[0], file, go[0]);
	}
	fd4 = accept(at_four, NULL, NULL);
	fd6 = accept(at_six, NULL, NULL);
	parent(fd4, fd6, pair[1], datagrams[1], go);
	return 0;
}
