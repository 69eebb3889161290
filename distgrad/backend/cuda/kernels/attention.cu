// Rows of attention between its matrix products.  T: numbers, float or double.
//
// s is [rows][count]; a row is a query, `length` of them follow each other in a head.  With `causal`
// query i sees the keys 0 ... i.  A block has one row at a time.
#include "common.cuh"

typedef T_TYPE T;

__device__ __forceinline__ int seen(long long row, long long count, long long length,
                                    long long causal) {
  const long long own = row % length + 1;
  return (int)(causal && own < count ? own : count);
}

// Puts softmax(scale·s) in the place of s, and the logarithms of the sums of exponentials in logs.
KERNEL(1024) attention_rows(T* s, T* logs, long long rows, long long count, long long length,
                            long long causal, double scale) {
  __shared__ T room[32];
  for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
    T* x = s + row * count;
    const int end = seen(row, count, length, causal);
    T top = -infinity_((T)0), sum = 0;
    for (int k = threadIdx.x; k < end; k += blockDim.x) top = max_(top, x[k] * (T)scale);
    top = block_max(top, room);
    if (top == -infinity_((T)0)) top = 0;
    for (int k = threadIdx.x; k < end; k += blockDim.x) sum += exp_(x[k] * (T)scale - top);
    sum = block_sum(sum, room);
    const T log = sum == 0 ? (T)0 : log_(sum) + top;  // 0: all weights are 0
    for (int k = threadIdx.x; k < count; k += blockDim.x)
      x[k] = k < end ? exp_(x[k] * (T)scale - log) : (T)0;
    if (threadIdx.x == 0) logs[row] = log;
  }
}

// Makes the weights p again in the place of s, and puts p·(dp − Σ p·dp)·scale in that of dp.
KERNEL(1024) d_attention_rows(T* s, T* dp, const T* logs, long long rows, long long count,
                              long long length, long long causal, double scale) {
  __shared__ T room[32];
  for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
    T *x = s + row * count, *d = dp + row * count, sum = 0;
    const int end = seen(row, count, length, causal);
    const T log = logs[row];
    for (int k = threadIdx.x; k < count; k += blockDim.x) {
      const T p = k < end ? exp_(x[k] * (T)scale - log) : (T)0;
      x[k] = p;
      sum += p * d[k];
    }
    sum = block_sum(sum, room);
    for (int k = threadIdx.x; k < count; k += blockDim.x) d[k] = x[k] * (d[k] - sum) * (T)scale;
  }
}
