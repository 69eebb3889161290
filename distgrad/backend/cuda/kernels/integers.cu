// Random whole numbers and truth values.  T: any type of numbers.
#include "common.cuh"
#include "philox.cuh"

typedef T_TYPE T;

// low + a word of 64 bits modulo `span`; 0: all of it.
KERNEL(256) integers(T* out, long long n, long long low, long long span, DRAW) {
  draws<2>(n, drawn_key, given_key, draw, [&](long long i, Words words) {
    for (int j = 0; j < 2 && i + j < n; j++) {
      unsigned long long word = (unsigned long long)words.at[2 * j] << 32 | words.at[2 * j + 1];
      if (span) word %= (unsigned long long)span;
      out[i + j] = (T)(long long)(word + (unsigned long long)low);
    }
  });
}

// True if a word of 32 bits is below `limit`.
KERNEL(256) bernoulli(bool* out, long long n, long long limit, DRAW) {
  draws<4>(n, drawn_key, given_key, draw, [&](long long i, Words words) {
    for (int j = 0; j < 4 && i + j < n; j++) out[i + j] = words.at[j] < limit;
  });
}

// One block of one warp: the key of the draws of a graph, before it is replayed.
KERNEL(32) write_key(long long* to, long long key) {
  if (threadIdx.x == 0) *to = key;
}
