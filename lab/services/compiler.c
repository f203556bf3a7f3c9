// One of the sources of the program that lab/services/compiler.mk builds: the same file, with other numbers.
#include <stdio.h>
#include <stdlib.h>

#define NAME_(number) part_##number
#define NAME(number) NAME_(number)

unsigned long NAME(NUMBER)(unsigned long seed);
#ifdef ALL
#define PART(number) unsigned long part_##number(unsigned long);
ALL
#undef PART
#endif

    static int
    compare(const void* a, const void* b) {
  const unsigned long x = *(const unsigned long*)a, y = *(const unsigned long*)b;
  return x < y ? -1 : x > y;
}

unsigned long NAME(NUMBER)(unsigned long seed) {
  unsigned long table[64];
  for (int i = 0; i < 64; ++i) {
    seed = seed * 6364136223846793005UL + NUMBER;
    table[i] = seed >> 33;
  }
  qsort(table, 64, sizeof *table, compare);
  return table[NUMBER % 64];
}

#ifdef ALL
int main(void) {
  unsigned long sum = 0;
#define PART(number) sum += part_##number(sum);
  ALL printf("%lu\n", sum);
  return 0;
}
#endif
