// Gradients on their way between ranks: rounded to 16 bits, divided by the number of ranks, and back.
#include "common.cuh"
#include "exact.cuh"

typedef T_TYPE T;  // of 16 bits

// Each result is rounded, as on the host: the number, the divisor, and the quotient.
KERNEL(256) compress(const float* x, T* y, long long n, double ranks) {
  const float by = (float)(T)(float)ranks;
  each<Pack<T>::N>(n, aligned(x, y), [&](auto width, long long i) {
    const int N = decltype(width)::value;
    float a[N];
    load<N>(x + i, a);
#pragma unroll
    for (int j = 0; j < N; j++) a[j] = over((float)(T)a[j], by);
    store<N>(y + i, a);
  });
}

KERNEL(256) decompress(const T* x, float* y, long long n) {
  each<Pack<T>::N>(n, aligned(x, y), [&](auto width, long long i) {
    const int N = decltype(width)::value;
    float a[N];
    load<N>(x + i, a);
    store<N>(y + i, a);
  });
}
