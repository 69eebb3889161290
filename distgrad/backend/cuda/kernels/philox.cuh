// Philox4x32-10: four random words for each counter and key (Salmon, Moraes, Dror, Shaw,
// "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).
//
// A draw has a key of its own.  In a graph that is replayed the key lies in memory, where the host
// writes a new one before each replay, and the draws of the graph are told apart by number.
struct Words {
  unsigned at[4];
};

__device__ __forceinline__ Words philox(unsigned long long place, unsigned long long draw,
                                        unsigned long long key) {
  unsigned a = (unsigned)place, b = (unsigned)(place >> 32);
  unsigned c = (unsigned)draw, d = (unsigned)(draw >> 32);
  unsigned k = (unsigned)key, l = (unsigned)(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    unsigned high = __umulhi(0xD2511F53u, a), low = 0xD2511F53u * a;
    unsigned other = __umulhi(0xCD9E8D57u, c), rest = 0xCD9E8D57u * c;
    a = other ^ b ^ k;
    b = rest;
    c = high ^ d ^ l;
    d = low;
    k += 0x9E3779B9u;
    l += 0xBB67AE85u;
  }
  return {{a, b, c, d}};
}

// What a kernel is given to draw from.
#define DRAW const long long *drawn_key, long long given_key, long long draw
#define WORDS(place) philox(place, draw, drawn_key ? *drawn_key : given_key)

// Calls f(i, words) for every fourth (or second) number i of n.
template <int EACH, class F>
__device__ __forceinline__ void draws(long long n, DRAW, F f) {
  each<1>((n + EACH - 1) / EACH, false,
          [&](auto, long long place) { f(place * EACH, WORDS(place)); });
}
