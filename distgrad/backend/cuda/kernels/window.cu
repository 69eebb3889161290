// Reductions over windows that several ranks have filled: each is read once, and what becomes of
// them is written, in one pass.  The order is compiled in: ORDER_TYPE is f(f(x(0), x(1)), x(2)) or
// such, of the windows' numbers x, as the tree of additions has it.
#include "common.cuh"
#include "exact.cuh"

typedef T_TYPE T;  // of the windows and the result
typedef W_TYPE W;  // of each result on the way: T, or float where narrow ones are rounded at last
typedef Wide<T>::type A;

const int MOST = 32;

struct Windows {
  const T* at[MOST];
};

// ---------------------------------------------------------------- operations
EXACT(least, "min", a <= b ? a : b)
__device__ __forceinline__ double least(double a, double b) { return a <= b ? a : b; }

struct Sum {
  static __device__ __forceinline__ A of(A a, A b) { return add(a, b); }
};
struct Product {
  static __device__ __forceinline__ A of(A a, A b) { return mul(a, b); }
};
struct Largest {  // NumPy's hands nan on, CUDA's does not
  static __device__ __forceinline__ A of(A a, A b) { return a != a ? a : b != b ? b : most(a, b); }
};
struct Least {
  static __device__ __forceinline__ A of(A a, A b) { return a != a ? a : b != b ? b : least(a, b); }
};

// ---------------------------------------------------------------- the reduction
template <int N>
struct Numbers {
  A at[N];
};

template <int N>
__device__ __forceinline__ Numbers<N> f(Numbers<N> a, const Numbers<N>& b) {
#pragma unroll
  for (int j = 0; j < N; j++) a.at[j] = (A)(W)OP_TYPE::of(a.at[j], b.at[j]);
  return a;
}

// wide: all begin at multiples of 16 bytes; ranks: to divide by, 0 for a sum.
KERNEL(256) reduce_windows(
    Windows windows, T* out, long long n, long long wide, double ranks) {
  each<Pack<T>::N>(n, wide != 0, [&](auto width, long long i) {
    const int N = decltype(width)::value;
    auto x = [&](int rank) {
      Numbers<N> got;
      load<N>(windows.at[rank] + i, got.at);
      return got;
    };
    Numbers<N> total = ORDER_TYPE;
    if (ranks != 0) {
#pragma unroll
      for (int j = 0; j < N; j++) total.at[j] = over(total.at[j], (A)ranks);
    }
    store<N>(out + i, total.at);
  });
}
