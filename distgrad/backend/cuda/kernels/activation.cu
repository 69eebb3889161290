// Activation functions of contiguous arrays, forward and backward, each in one pass.
#include "common.cuh"

typedef T_TYPE T;
typedef Wide<T>::type A;

__device__ __forceinline__ float erf_(float x) { return erff(x); }
__device__ __forceinline__ double erf_(double x) { return erf(x); }
__device__ __forceinline__ float tanh_(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_(double x) { return tanh(x); }

#define RSQRT_2 0.70710678118654752
#define SQRT_2_PI 0.79788456080286536  // the square root of 2/pi

__device__ __forceinline__ A sigmoid(A x) { return (A)1 / ((A)1 + exp_(-x)); }

// tanh(softplus(x)) = n / (n + 2) with n = e·(e + 2), e = exp(x); beyond 20 it is 1
__device__ __forceinline__ A mish_ratio(A x) {
  A e = exp_(x < (A)20 ? x : (A)20), n = e * (e + (A)2);
  return n / (n + (A)2);
}

// Each has a value, and g times its derivative.
struct Relu {
  static __device__ __forceinline__ A value(A x) { return x < (A)0 ? (A)0 : x; }  // nan stays
  static __device__ __forceinline__ A times(A g, A x) { return x > (A)0 ? g : (A)0; }
};

struct Gelu {
  static __device__ __forceinline__ A value(A x) {
    return (A)0.5 * x * ((A)1 + erf_(x * (A)RSQRT_2));
  }
  static __device__ __forceinline__ A times(A g, A x) {
    A density = (A)(0.5 * SQRT_2_PI) * exp_((A)-0.5 * x * x);
    return g * ((A)0.5 * ((A)1 + erf_(x * (A)RSQRT_2)) + x * density);
  }
};

struct GeluTanh {
  static __device__ __forceinline__ A inner(A x) {
    return (A)SQRT_2_PI * x * ((A)1 + (A)0.044715 * x * x);
  }
  static __device__ __forceinline__ A value(A x) {
    return (A)0.5 * x * ((A)1 + tanh_(inner(x)));
  }
  static __device__ __forceinline__ A times(A g, A x) {
    A t = tanh_(inner(x)), d = (A)SQRT_2_PI * ((A)1 + (A)(3 * 0.044715) * x * x);
    return g * ((A)0.5 * ((A)1 + t) * ((A)1 + ((A)1 - t) * x * d));
  }
};

struct Silu {
  static __device__ __forceinline__ A value(A x) { return x * sigmoid(x); }
  static __device__ __forceinline__ A times(A g, A x) {
    A s = sigmoid(x);
    return g * (s * ((A)1 + x * ((A)1 - s)));
  }
};

struct Mish {
  static __device__ __forceinline__ A value(A x) { return x * mish_ratio(x); }
  static __device__ __forceinline__ A times(A g, A x) {
    A t = mish_ratio(x);
    return g * (t + x * sigmoid(x) * ((A)1 - t * t));
  }
};

template <class F>
__device__ __forceinline__ void forward(const T* x, T* y, long long n) {
  each<Pack<T>::N>(n, aligned(x, y), [&](auto width, long long i) {
    const int N = decltype(width)::value;
    A a[N];
    load<N>(x + i, a);
#pragma unroll
    for (int j = 0; j < N; j++) a[j] = F::value(a[j]);
    store<N>(y + i, a);
  });
}

template <class F>
__device__ __forceinline__ void backward(const T* x, const T* g, T* d, long long n) {
  each<Pack<T>::N>(n, aligned(g, x, d), [&](auto width, long long i) {
    const int N = decltype(width)::value;
    A a[N], b[N];
    load<N>(g + i, a);
    load<N>(x + i, b);
#pragma unroll
    for (int j = 0; j < N; j++) a[j] = F::times(a[j], b[j]);
    store<N>(d + i, a);
  });
}

#define ACTIVATION(name, F)                                                               \
  KERNEL(256) name(const T* x, T* y, long long n) { forward<F>(x, y, n); }                \
  KERNEL(256) d_##name(const T* x, const T* g, T* d, long long n) { backward<F>(x, g, d, n); }

ACTIVATION(relu, Relu)
ACTIVATION(gelu, Gelu)
ACTIVATION(gelu_tanh, GeluTanh)
ACTIVATION(silu, Silu)
ACTIVATION(mish, Mish)
