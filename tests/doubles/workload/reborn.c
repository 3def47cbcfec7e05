/*
 * Runs a program under a process id of the caller's choice, by clone3(2) with set_tid (Linux 5.5, CAP_SYS_ADMIN), and
 * ends with its exit code.
 *
 * reborn PID PROGRAM [ARGUMENTS]
 */
#include "truth.h"

#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/wait.h>

int main(int argc, char **argv)
{
	pid_t wanted = argc > 2 ? (pid_t)strtol(argv[1], NULL, 10) : 0;
	struct clone_args arguments = {.exit_signal = SIGCHLD, .set_tid = (uint64_t)(uintptr_t)&wanted, .set_tid_size = 1};
	int status;
	pid_t pid;

	if (wanted <= 1)
		die("usage", "reborn PID PROGRAM [ARGUMENTS]");
	pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof(arguments));
	if (pid < 0)
		die("clone3", strerror(errno));
	if (!pid) {
		execv(argv[2], argv + 2);
		_exit(127);
	}
	if (waitpid(pid, &status, 0) != pid)
		die("waitpid", strerror(errno));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}
