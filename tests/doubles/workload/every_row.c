/*
 * Calls every function of generated doubles (tests/doubles/generate.py), one library after the other, on one thread.
 *
 * every_row OUT_FOLDER LIBRARY... waits for OUT_FOLDER/go, and at the end for OUT_FOLDER/leave if OUT_FOLDER/stay exists;
 * the truth of each library is OUT_FOLDER/NAME.jsonl. If the first library is the driver, cuStreamSynchronize(0x77) is
 * called inside the calls of a CUDA runtime. A library that is no double is loaded for those after it.
 */
#include "truth.h"

#include <dlfcn.h>
#include <libgen.h>

static int (*synchronise)(void *);

static void nested(void)
{
	if (synchronise)
		synchronise((void *)0x77);
}

int main(int argc, char **argv)
{
	char path[4096];

	if (argc < 3)
		die("usage", "every_row OUT_FOLDER LIBRARY...");
	snprintf(path, sizeof(path), "%s/go", argv[1]);
	pause_for("start", path);
	for (int i = 2; i < argc; i++) {
		void *library = dlopen(argv[i], RTLD_LAZY | RTLD_LOCAL);
		FILE *out;

		if (!library)
			die("dlopen", dlerror());
		if (!dlsym(library, "double_run")) {
			dlopen(argv[i], RTLD_LAZY | RTLD_GLOBAL);
			continue;
		}
		if (i == 2)
			synchronise = (int (*)(void *))dlsym(library, "cuStreamSynchronize");
		*(void (**)(void))dlsym(library, "double_nested") = nested;
		snprintf(path, sizeof(path), "%s/%s.jsonl", argv[1], basename(argv[i]));
		out = fopen(path, "w");
		if (!out)
			die(path, NULL);
		((void (*)(FILE *))dlsym(library, "double_run"))(out);
		fclose(out);
	}
	snprintf(path, sizeof(path), "%s/stay", argv[1]);
	if (!access(path, F_OK)) {
		snprintf(path, sizeof(path), "%s/leave", argv[1]);
		pause_for("end", path);
	}
	return 0;
}
