/*
 * What a CPython 3.14 process looks like to somebody who reads its memory, constructed: no registry offers a 3.14. The
 * order of the words of _Py_DebugOffsets is that of its header (Include/internal/pycore_debug_offsets.h); where things
 * lie in the structures is chosen here, as the interpreter tells it. Executables of frames are tagged in their lowest
 * bits, frames between C and Python have owner 3 or 4, and the state of a str begins with 16 bits of `interned`.
 *
 *   python3.14 CUDART
 *
 * Says "ready" and waits for a line on stdin; calls cudaMalloc(1) in train.py:142 forward <- train.py:203 <module>, and in
 * another thread cudaMalloc(2) in loader.py:15 Loader.fetch. Then its memory turns bad, each time in another way:
 * cudaMalloc(3) has a frame that is its own caller, (4) one whose code is no memory, (5) one whose code is no code object,
 * (6) a list of threads that has no end, (7) interpreters that are no memory. Says "made" and waits for another line.
 */
#include "../workload/truth.h"
#include "cuda_runtime_api.h"

#include <dlfcn.h>

struct object {
	uint64_t references;
	const void *type;
};
struct type {
	struct object object;
	uint64_t size;
	const char *name;
};
struct text {
	struct object object;
	int64_t length, hash;
	uint16_t interned, kind : 3, compact : 1, ascii : 1, rest : 11;
	uint32_t pad;
	char data[32];
};
struct bytes {
	struct object object;
	int64_t size, hash;
	unsigned char data[32];
};
struct code {
	struct object object;
	int64_t size;
	const struct text *filename, *name, *qualname;
	int32_t first_line, flags;
	const struct bytes *line_table;
	uint16_t instructions[16];
};
struct frame {
	uintptr_t executable;
	struct frame *previous;
	void *function, *globals, *builtins, *locals, *object;
	const uint16_t *instruction;
	void *stack_pointer;
	uint16_t return_offset;
	char owner;
};
struct thread {
	struct thread *previous, *next;
	void *interpreter;
	uint64_t status[6];
	struct frame *current_frame;
	uint64_t thread_id, native_thread_id;
};
struct interpreter {
	uint64_t id;
	char much[7400];
	struct interpreter *next;
	struct thread *threads;
};

/* Not read by the capture: 0. */
#define SKIP(name) uint64_t name

struct debug_offsets {
	char cookie[8];
	uint64_t version, free_threaded;
	struct { SKIP(size); SKIP(finalizing); uint64_t interpreters_head; } runtime;
	struct { SKIP(size); SKIP(id); uint64_t next, threads_head; SKIP(threads_main); SKIP(rest[11]); } interpreter;
	struct { SKIP(size); SKIP(prev); uint64_t next; SKIP(interp); uint64_t current_frame, thread_id, native_thread_id; SKIP(rest[2]); } thread;
	struct { SKIP(size); uint64_t previous, executable, instr_ptr; SKIP(localsplus); uint64_t owner; SKIP(stackpointer); SKIP(tlbc_index); } frame;
	struct { SKIP(size); uint64_t filename, name, qualname, linetable, firstlineno; SKIP(rest[3]); uint64_t code_adaptive; SKIP(tlbc); } code;
	struct { SKIP(size); uint64_t ob_type; } object;
	struct { SKIP(size); uint64_t name; SKIP(rest[2]); } type;
	SKIP(tuple[3]);
	SKIP(list[3]);
	SKIP(set[4]);
	SKIP(dict[3]);
	SKIP(floating[2]);
	SKIP(integer[3]);
	struct { SKIP(size); uint64_t ob_size, ob_sval; } bytes;
	struct { SKIP(size); uint64_t state, length, asciiobject_size; } text;
	SKIP(gc[2]);
	SKIP(generator[4]);
	SKIP(llist[2]);
	SKIP(debugger[6]);
};
struct runtime {
	struct debug_offsets offsets;
	char much[200];
	struct interpreter *interpreters;
};

__attribute__((section(".PyRuntime"), used)) struct runtime _PyRuntime = {
	.offsets = {
		.cookie = "xdebugpy",
		.version = 0x030e00f0,
		.runtime = {.interpreters_head = offsetof(struct runtime, interpreters)},
		.interpreter = {.next = offsetof(struct interpreter, next), .threads_head = offsetof(struct interpreter, threads)},
		.thread = {
			.next = offsetof(struct thread, next), .current_frame = offsetof(struct thread, current_frame),
			.thread_id = offsetof(struct thread, thread_id), .native_thread_id = offsetof(struct thread, native_thread_id),
		},
		.frame = {
			.previous = offsetof(struct frame, previous), .executable = offsetof(struct frame, executable),
			.instr_ptr = offsetof(struct frame, instruction), .owner = offsetof(struct frame, owner),
		},
		.code = {
			.filename = offsetof(struct code, filename), .name = offsetof(struct code, name),
			.qualname = offsetof(struct code, qualname), .linetable = offsetof(struct code, line_table),
			.firstlineno = offsetof(struct code, first_line), .code_adaptive = offsetof(struct code, instructions),
		},
		.object = {.ob_type = offsetof(struct object, type)},
		.type = {.name = offsetof(struct type, name)},
		.bytes = {.ob_size = offsetof(struct bytes, size), .ob_sval = offsetof(struct bytes, data)},
		.text = {
			.state = offsetof(struct text, interned), .length = offsetof(struct text, length),
			.asciiobject_size = offsetof(struct text, data),
		},
	},
};

static const struct type code_type = {{1, NULL}, 0, "code"}, text_type = {{1, NULL}, 0, "str"};
static const struct type bytes_type = {{1, NULL}, 0, "bytes"}, none_type = {{1, NULL}, 0, "NoneType"};
static const struct object none = {0xffffffff, &none_type};

#define TEXT(name, value) \
	static const struct text name = {{0xc0000000, &text_type}, sizeof(value) - 1, 0, 3, 1, 1, 1, 1, 0, value}
TEXT(train, "train.py");
TEXT(loader, "loader.py");
TEXT(forward, "forward");
TEXT(module, "<module>");
TEXT(fetch, "Loader.fetch");
TEXT(plain, "not the qualified name");

/* Two entries without columns: one instruction on the first line, then eight instructions `lines` further on. */
#define LINES(name, lines) \
	static const struct bytes name = {{2, &bytes_type}, 4, 0, {0x80 | 13 << 3, 0, 0x80 | 13 << 3 | 7, 2 * (lines)}}
LINES(two_on, 2);
LINES(three_on, 3);

#define CODE(name, file, qualified, first, table) \
	static const struct code name = {{3, &code_type}, 16, &file, &plain, &qualified, first, 0, &table, {0}}
CODE(forward_code, train, forward, 140, two_on);
CODE(module_code, train, module, 200, three_on);
CODE(fetch_code, loader, fetch, 13, two_on);

#define TAGGED(code) ((uintptr_t)((const char *)&(code) + 1))
static struct frame base = {.executable = (uintptr_t)&none, .owner = 4};
static struct frame module_frame = {.executable = TAGGED(module_code), .previous = &base, .instruction = &module_code.instructions[5]};
static struct frame shim = {.executable = (uintptr_t)&none, .previous = &module_frame, .owner = 3};
static struct frame forward_frame = {.executable = TAGGED(forward_code), .previous = &shim, .instruction = &forward_code.instructions[1]};
static struct frame fetch_frame = {.executable = TAGGED(fetch_code), .instruction = &fetch_code.instructions[8], .owner = 1};

static struct interpreter main_interpreter, other_interpreter = {.id = 1, .next = &main_interpreter};
static struct thread main_thread = {.current_frame = &forward_frame};
static struct thread second_thread = {.next = &main_thread, .current_frame = &fetch_frame};
static struct thread idle_thread = {0}; /* of the main thread too, in the other interpreter: it has no frame */

static cudaError_t (*allocate)(void **, size_t);

static void *call(void *size)
{
	void *memory;

	if (allocate(&memory, (size_t)size))
		die("cudaMalloc", NULL);
	return NULL;
}

static void *in_thread(void *size)
{
	second_thread.thread_id = (uint64_t)pthread_self();
	second_thread.native_thread_id = (uint64_t)thread_id();
	return call(size);
}

static void turn_bad(void)
{
	forward_frame.previous = &forward_frame;
	call((void *)3);
	forward_frame.executable = 0x1234560;
	call((void *)4);
	forward_frame.executable = (uintptr_t)&none;
	forward_frame.previous = NULL;
	call((void *)5);
	second_thread.next = &second_thread;
	call((void *)6);
	_PyRuntime.interpreters = (void *)0x10;
	call((void *)7);
}

int main(int argc, char **argv)
{
	void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL;
	pthread_t thread;

	if (!library)
		die("dlopen", dlerror());
	*(void **)&allocate = dlsym(library, "cudaMalloc");
	main_thread.thread_id = idle_thread.thread_id = (uint64_t)pthread_self();
	main_thread.native_thread_id = (uint64_t)thread_id();
	main_interpreter.threads = &second_thread;
	other_interpreter.threads = &idle_thread;
	_PyRuntime.interpreters = &other_interpreter;
	puts("ready");
	fflush(stdout);
	getchar();
	call((void *)1);
	pthread_create(&thread, NULL, in_thread, (void *)2);
	pthread_join(thread, NULL);
	turn_bad();
	puts("made");
	fflush(stdout);
	getchar();
	return 0;
}
