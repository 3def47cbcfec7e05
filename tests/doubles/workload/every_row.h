/* What every generated double shares: how arguments are made different from each other, and the truth written down. */
#include "truth.h"

enum round { SUCCESS, FAILURE, NO_ARRAYS, NULL_POINTERS, NESTED };

int double_code;		/* what a function returns */
void (*double_inner)(void);	/* what it calls before, if set */
void (*double_nested)(void);	/* that, in the round NESTED; set by the program */
static FILE *truth;
static int first;

/* Different for each function, parameter and member, and small: a product of three stays below 2^63. */
#define V(function, parameter, member) \
	((uint64_t)(function) * 4096 + (parameter) * 256 + (member) * 16 + 2 * (unsigned int)round + 3)
#define CHANGE(place) change(&(place), sizeof(place))
#define TELL(name, object) tell(name, &(object), sizeof(object))
#define TELL_ID(name, object) tell_id(name, object)

static void fill(void *object, size_t size, uint64_t value)
{
	for (size_t i = 0; i < size; i++)
		((unsigned char *)object)[i] = (unsigned char)(value + 7 * i);
}

static void change(void *object, size_t size)
{
	if (size == 4)
		*(uint32_t *)object += 5;
	else if (size == 8)
		*(uint64_t *)object += 5;
	else
		((unsigned char *)object)[0] += 5;
}

static void begin(const char *op, enum round round, int number)
{
	double_code = round == FAILURE ? 100 + number : 0;
	double_inner = round == NESTED ? double_nested : NULL;
	fprintf(truth, "{\"op\":\"%s\",\"round\":%d,\"tid\":%d,\"values\":{", op, round, thread_id());
	fflush(truth); /* so that a call that kills the program is the last one told of */
	first = 1;
}

static void name_it(const char *name)
{
	fprintf(truth, "%s\"%s\":", first ? "" : ",", name);
	first = 0;
}

static void tell(const char *name, const void *object, size_t size)
{
	uint64_t value = 0;

	memcpy(&value, object, size < 8 ? size : 8);
	name_it(name);
	fprintf(truth, "%llu", (unsigned long long)value);
}

static void tell_id(const char *name, const void *object)
{
	name_it(name);
	fprintf(truth, "\"");
	for (int i = 0; i < 128; i++)
		fprintf(truth, "%02x", ((const unsigned char *)object)[i]);
	fprintf(truth, "\"");
}

static void called(uint64_t before_ns, int code)
{
	uint64_t after_ns = boottime_ns();

	double_inner = NULL;
	name_it("return_code");
	fprintf(truth, "%d", code);
	name_it("before_ns");
	fprintf(truth, "%llu", (unsigned long long)before_ns);
	name_it("after_ns");
	fprintf(truth, "%llu", (unsigned long long)after_ns);
}

static void end(void)
{
	fprintf(truth, "}}\n");
}
