/* stormy FILE: the storm of cudart/storm.c as a program that is linked with it, so that no call is made before probes. */
int storm(int threads, long calls, long slow_us, const char *path);

int main(int argc, char **argv)
{
	return argc == 2 ? storm(2, 40000, 1500, argv[1]) : 2;
}
