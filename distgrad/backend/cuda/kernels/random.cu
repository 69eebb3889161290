// Random real numbers, and dropout: four words of Philox make four numbers of 32 bits or two of 64.
//
// float32 and narrower are the same to the last bit wherever they are made: their functions are
// polynomials in operations that round in one way (the Cephes library's, S. Moshier, as in
// backend/random.py).
#include "common.cuh"
#include "philox.cuh"

typedef T_TYPE T;

__device__ __forceinline__ double uniform64(unsigned high, unsigned low) {
  return (double)(((unsigned long long)high << 32 | low) >> 11) * 1.1102230246251565e-16;
}
__device__ __forceinline__ float uniform32(unsigned word) {
  return (float)(word >> 8) * 5.9604644775390625e-08f;
}

// ---------------------------------------------------------------- numbers from words
template <class A>
struct Numbers {};

template <>
struct Numbers<double> {
  static const int EACH = 2;
  static __device__ __forceinline__ void uniform(Words words, double* to) {
    to[0] = uniform64(words.at[0], words.at[1]);
    to[1] = uniform64(words.at[2], words.at[3]);
  }
  // The logarithm of 1 − u, and the sine and cosine of 2πu.
  static __device__ __forceinline__ double logarithm(double u) { return log1p(-u); }
  static __device__ __forceinline__ void circle(double u, double* sine, double* cosine) {
    *sine = sin(6.283185307179586 * u);
    *cosine = cos(6.283185307179586 * u);
  }
  static __device__ __forceinline__ double root(double x) { return sqrt(x); }
  static __device__ __forceinline__ double fused(double a, double b, double c) {
    return fma(a, b, c);
  }
};

template <>
struct Numbers<float> {
  static const int EACH = 4;
  static __device__ __forceinline__ void uniform(Words words, float* to) {
#pragma unroll
    for (int j = 0; j < 4; j++) to[j] = uniform32(words.at[j]);
  }
  static __device__ __forceinline__ float logarithm(float u) {
    const float x = __fadd_rn(1.0f, -u);  // exact, in (0, 1]
    const int bits = __float_as_int(x);
    float exponent = (float)((bits >> 23) - 126);
    float m = __int_as_float((bits & 0x007FFFFF) | 0x3F000000);  // in [0.5, 1)
    const bool small = m < 0.707106781186547524f;
    if (small) exponent = __fadd_rn(exponent, -1.0f);
    m = __fadd_rn(__fadd_rn(m, -1.0f), small ? m : 0.0f);
    const float square = __fmul_rn(m, m);
    float y = 7.0376836292e-2f;
    y = fmaf(y, m, -1.1514610310e-1f);
    y = fmaf(y, m, 1.1676998740e-1f);
    y = fmaf(y, m, -1.2420140846e-1f);
    y = fmaf(y, m, 1.4249322787e-1f);
    y = fmaf(y, m, -1.6668057665e-1f);
    y = fmaf(y, m, 2.0000714765e-1f);
    y = fmaf(y, m, -2.4999993993e-1f);
    y = fmaf(y, m, 3.3333331174e-1f);
    y = __fmul_rn(y, m);
    y = fmaf(y, square, __fmul_rn(exponent, -2.12194440e-4f));
    y = fmaf(square, -0.5f, y);
    return fmaf(exponent, 0.693359375f, __fadd_rn(m, y));
  }
  static __device__ __forceinline__ void circle(float u, float* sine, float* cosine) {
    float x = __fmul_rn(6.28318530717958648f, u);
    const int octant = ((int)__fmul_rn(x, 1.27323954473516f) + 1) & ~1;
    const float y = (float)octant;
    x = fmaf(y, -0.78515625f, x);
    x = fmaf(y, -2.4187564849853515625e-4f, x);
    x = fmaf(y, -3.77489497744594108e-8f, x);
    const float square = __fmul_rn(x, x);
    float c = fmaf(fmaf(2.443315711809948e-5f, square, -1.388731625493765e-3f), square,
                   4.166664568298827e-2f);
    c = __fmul_rn(c, square);
    c = __fadd_rn(fmaf(c, square, __fmul_rn(square, -0.5f)), 1.0f);
    float s = fmaf(fmaf(-1.9515295891e-4f, square, 8.3321608736e-3f), square, -1.6666654611e-1f);
    s = __fmul_rn(s, square);
    s = fmaf(s, x, x);
    const bool straight = (octant & 2) == 0;
    const float up = straight ? s : c, along = straight ? c : s;
    *sine = octant & 4 ? -up : up;
    *cosine = ~(octant - 2) & 4 ? -along : along;
  }
  static __device__ __forceinline__ float root(float x) { return sqrtf(x); }
  static __device__ __forceinline__ float fused(float a, float b, float c) {
    return fmaf(a, b, c);
  }
};

// ---------------------------------------------------------------- distributions of real numbers
typedef Wide<T>::type A;
typedef Numbers<A> R;

// In [low, high): where rounding reaches the end, low.
KERNEL(256) uniform(T* out, long long n, double low, double high, DRAW) {
  const A start = (A)low, span = (A)high - (A)low;
  const A end = (A)(T)(A)high;
  draws<R::EACH>(n, drawn_key, given_key, draw, [&](long long i, Words words) {
    A u[R::EACH];
    R::uniform(words, u);
    for (int j = 0; j < R::EACH && i + j < n; j++) {
      T value = (T)R::fused(u[j], span, start);
      out[i + j] = (A)value == end ? (T)start : value;
    }
  });
}

// Box and Muller's: a pair from two uniform numbers.
KERNEL(256) normal(T* out, long long n, double mean, double std, DRAW) {
  draws<R::EACH>(n, drawn_key, given_key, draw, [&](long long i, Words words) {
    A u[R::EACH], sine, cosine;
    R::uniform(words, u);
#pragma unroll
    for (int j = 0; j < R::EACH; j += 2) {
      A radius = R::root((A)-2 * R::logarithm(u[j]));
      R::circle(u[j + 1], &sine, &cosine);
      if (i + j < n) out[i + j] = (T)R::fused(radius * cosine, (A)std, (A)mean);
      if (i + j + 1 < n) out[i + j + 1] = (T)R::fused(radius * sine, (A)std, (A)mean);
    }
  });
}

KERNEL(256) exponential(T* out, long long n, double rate, DRAW) {
  draws<R::EACH>(n, drawn_key, given_key, draw, [&](long long i, Words words) {
    A u[R::EACH];
    R::uniform(words, u);
    for (int j = 0; j < R::EACH && i + j < n; j++)
      out[i + j] = (T)(R::logarithm(u[j]) * (A)(-1 / rate));
  });
}

// True with the probability at its place.
KERNEL(256) bernoulli_of(const T* chances, bool* out, long long n, DRAW) {
  draws<R::EACH>(n, drawn_key, given_key, draw, [&](long long i, Words words) {
    A u[R::EACH];
    R::uniform(words, u);
    for (int j = 0; j < R::EACH && i + j < n; j++) out[i + j] = u[j] < (A)chances[i + j];
  });
}

// One of the words, whose number is not known to the compiler: they stay in registers.
__device__ __forceinline__ unsigned word_of(const Words& words, int number) {
  const unsigned low = number & 1 ? words.at[1] : words.at[0];
  const unsigned high = number & 1 ? words.at[3] : words.at[2];
  return number & 2 ? high : low;
}

// x / (1 − p) with probability 1 − p, else 0: number i is kept if word i is at least `limit`.
// Forward and backward are the same.
KERNEL(256) dropout(const T* x, T* y, long long n, long long limit, double scale, DRAW) {
  each<Pack<T>::N>(n, aligned(x, y), [&](auto width, long long i) {
    const int N = decltype(width)::value;
    A a[N];
    load<N>(x + i, a);
#pragma unroll
    for (int k = 0; k < N; k += 4) {
      Words words = WORDS((i + k) / 4);
#pragma unroll
      for (int j = 0; j < 4 && k + j < N; j++) {
        const unsigned word = N < 4 ? word_of(words, (int)(i + j) & 3) : words.at[j];
        a[k + j] = word >= limit ? a[k + j] * (A)scale : (A)0;
      }
    }
    store<N>(y + i, a);
  });
}
