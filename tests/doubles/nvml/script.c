/* The script of the NVML double: reading it, and what a field reads at a moment. */
#include "script.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define AS_ROW(constant, name, otherwise) {name, otherwise},
static const struct {
	const char *name;
	long long otherwise;
} fields[] = {FIELDS(AS_ROW)};

static struct line lines[MAX_LINES];
static int line_count, gpu_count, initialised;
static long long began_ms;

static long long clock_ms(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000ll + t.tv_nsec / 1000000;
}

unsigned long long script_now_us(void)
{
	return (unsigned long long)clock_ms(CLOCK_REALTIME) * 1000;
}

long script_now_ms(void)
{
	return (long)(clock_ms(CLOCK_BOOTTIME) - began_ms);
}

int script_gpus(void)
{
	return gpu_count;
}

static int field_named(const char *name)
{
	for (int i = 0; i < FIELD_COUNT; i++)
		if (!strcmp(fields[i].name, name))
			return i;
	fprintf(stderr, "nvml double: no field %s\n", name);
	abort();
}

/* Verbs of a line, by what follows them; 0 where it is none of them. */
static int parse_verb(struct line *l, const char *verb, const char *rest)
{
	char name[32];

	l->gi = l->ci = ~0u;
	l->field = -1;
	if (!strcmp(verb, "lost"))
		return l->action = LOST, 1;
	if (!strcmp(verb, "hang")) {
		l->action = HANG;
		if (sscanf(rest, "%31s %lld", name, &l->value) == 2)
			return l->field = field_named(name), 1;
		return sscanf(rest, "%lld", &l->value) == 1;
	}
	if (!strcmp(verb, "process") || !strcmp(verb, "graphics")) {
		l->action = *verb == 'p' ? PROCESS : GRAPHICS_PROCESS;
		return sscanf(rest, "%u %lld %u %u", &l->pid, &l->value, &l->gi, &l->ci) >= 2;
	}
	if (!strcmp(verb, "use"))
		return l->action = USE, sscanf(rest, "%u %u %u", &l->pid, &l->sm, &l->memory) == 3;
	if (!strcmp(verb, "account"))
		return l->action = ACCOUNT, sscanf(rest, "%u %u %u %lld %llu", &l->pid, &l->sm, &l->memory, &l->value,
						   &l->milliseconds) == 5;
	if (!strcmp(verb, "event"))
		return l->action = EVENT, sscanf(rest, "%llu %lld %u %u", &l->milliseconds, &l->value, &l->gi,
						 &l->ci) >= 2; /* the type stands where milliseconds do */
	if (!strcmp(verb, "mig"))
		return l->action = MIG, sscanf(rest, "%u %u %lld", &l->gi, &l->ci, &l->value) == 3;
	if (!strcmp(verb, "link")) {
		l->action = LINK;
		if (sscanf(rest, "%u %31s %lld", &l->link, name, &l->value) != 3)
			return 0;
		return l->field = field_named(name), 1;
	}
	if (!strcmp(verb, "refuse") || !strcmp(verb, "grow")) {
		l->action = *verb == 'r' ? REFUSE : GROW;
		if (sscanf(rest, "%31s %lld", name, &l->value) != 2)
			return 0;
		return l->field = field_named(name), 1;
	}
	l->action = SET;
	l->field = field_named(verb);
	return sscanf(rest, "%lld", &l->value) == 1;
}

/* One line of the script; returns 0 where it is none of ours. */
static int parse(const char *text, int *init_code)
{
	struct line *l = &lines[line_count];
	char gpu[8], verb[32];
	int used = 0;

	if (sscanf(text, "gpus %d", &gpu_count) == 1 || sscanf(text, "init %d", init_code) == 1)
		return 1;
	memset(l, 0, sizeof(*l));
	if (sscanf(text, "%ld %7s %31s%n", &l->at_ms, gpu, verb, &used) != 3 || !parse_verb(l, verb, text + used))
		return 0;
	l->gpu = strcmp(gpu, "*") ? atoi(gpu) : -1;
	line_count++;
	return 1;
}

int script_read(void)
{
	const char *path = getenv("DOUBLE_NVML_SCRIPT");
	FILE *script = path ? fopen(path, "r") : NULL;
	char text[256];
	int init_code = NVML_SUCCESS;

	gpu_count = 2;
	line_count = 0;
	if (path && !script) {
		perror(path);
		abort();
	}
	while (script && line_count < MAX_LINES && fgets(text, sizeof(text), script)) {
		text[strcspn(text, "#\n")] = '\0';
		if (strspn(text, " \t") != strlen(text) && !parse(text, &init_code)) {
			fprintf(stderr, "nvml double: not understood: %s\n", text);
			abort();
		}
	}
	if (script)
		fclose(script);
	began_ms = clock_ms(CLOCK_BOOTTIME);
	initialised = !init_code;
	return init_code;
}

/* A handle is the GPU's index + 1; of a MIG device, its line's number + 1 above 16 bits. */
int index_of(nvmlDevice_t device)
{
	return (int)((unsigned long)device & 0xffff) - 1;
}

struct line *mig_of(nvmlDevice_t device)
{
	unsigned long at = (unsigned long)device >> 16;

	return at ? &lines[at - 1] : NULL;
}

int number_of(const struct line *l)
{
	return (int)(l - lines);
}

nvmlDevice_t mig_handle(nvmlDevice_t device, const struct line *mig)
{
	return (nvmlDevice_t)((unsigned long)device | (unsigned long)(mig - lines + 1) << 16);
}

struct line *next_line(struct line *l, nvmlDevice_t device, long now)
{
	for (l = l ? l + 1 : lines; l < lines + line_count; l++)
		if ((l->gpu < 0 || l->gpu == index_of(device)) && l->at_ms <= now)
			return l;
	return NULL;
}

static void hang_if_due(nvmlDevice_t device, enum field field, long now)
{
	for (struct line *l = NULL; (l = next_line(l, device, now));) {
		if (l->action == HANG && (l->field < 0 || l->field == (int)field) && !__sync_fetch_and_add(&l->done, 1)) {
			struct timespec t = {l->value / 1000, l->value % 1000 * 1000000};

			nanosleep(&t, NULL);
		}
	}
}

nvmlReturn_t ask_link(nvmlDevice_t device, int link, enum field field, long long *value)
{
	nvmlReturn_t code = NVML_SUCCESS;
	long now = script_now_ms();

	if (!initialised)
		return NVML_ERROR_UNINITIALIZED;
	if (index_of(device) < 0 || index_of(device) >= gpu_count)
		return NVML_ERROR_INVALID_ARGUMENT;
	hang_if_due(device, field, now);
	*value = fields[field].otherwise;
	for (struct line *l = NULL; (l = next_line(l, device, now));) {
		if (l->action == LOST)
			return NVML_ERROR_GPU_IS_LOST;
		if (l->field != (int)field)
			continue;
		if (l->action == SET || (l->action == LINK && (int)l->link == link))
			*value = l->value;
		else if (l->action == GROW)
			*value += (now - l->at_ms) / 1000 * l->value;
		else if (l->action == REFUSE)
			code = (nvmlReturn_t)l->value;
	}
	return code;
}

nvmlReturn_t ask(nvmlDevice_t device, enum field field, long long *value)
{
	return ask_link(device, -1, field, value);
}

nvmlReturn_t ask_unsigned(nvmlDevice_t device, enum field field, unsigned int *out)
{
	long long value = 0;
	nvmlReturn_t code = ask(device, field, &value);

	if (!code)
		*out = (unsigned int)value;
	return code;
}

nvmlReturn_t ask_long(nvmlDevice_t device, enum field field, unsigned long long *out)
{
	long long value = 0;
	nvmlReturn_t code = ask(device, field, &value);

	if (!code)
		*out = (unsigned long long)value;
	return code;
}
