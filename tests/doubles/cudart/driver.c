/* A CUDA driver that gives out addresses and takes them back: what a runtime double calls. */
#include <stddef.h>

int cuMemAlloc_v2(unsigned long long *pointer, size_t size)
{
	*pointer = 0x7000 + size;
	return size ? 0 : 1;
}

int cuMemFree_v2(unsigned long long pointer)
{
	return pointer == 13 ? 700 : 0;
}
