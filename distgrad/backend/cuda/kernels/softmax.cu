// Softmax, log-softmax and the cross entropy of class numbers.  T: numbers; A: sums.
//
// x is [outer][count][inner].  With inner = 1 a row belongs to one block, or to one warp of a block
// of several rows; else to one thread, and neighbouring threads read neighbouring numbers.
#include "common.cuh"
#include "fault.cuh"

typedef T_TYPE T;
typedef Wide<T>::type A;

// The threads that share a row, and where its numbers lie.
template <bool ALONE>
struct Team {
  A* room;
  long long inner;

  __device__ __forceinline__ int first() const { return ALONE ? 0 : threadIdx.x; }
  __device__ __forceinline__ int size() const { return ALONE ? 1 : blockDim.x; }
  __device__ __forceinline__ bool leads() const { return ALONE || threadIdx.x == 0; }
  __device__ __forceinline__ A sum(A value) const {
    return ALONE ? value : blockDim.x == 32 ? warp_sum(value) : block_sum(value, room);
  }
  __device__ __forceinline__ A max(A value) const {
    return ALONE ? value : blockDim.x == 32 ? warp_max(value) : block_max(value, room);
  }
  // Calls f(k, numbers...) for all of the row, N numbers k ... k + N - 1 at a time.
  template <int N, class F, class... P>
  __device__ __forceinline__ void over(int count, F f, const P*... rows) const {
    for (int k = first() * N; k < count; k += size() * N) f(k, rows + k * (ALONE ? inner : 1)...);
  }
};

// Calls f(width, team, row, offset) for the rows of this thread; `offset`: where a row begins.
template <class F>
__device__ __forceinline__ void rows_of(long long outer, long long count, long long inner,
                                        bool wide, F f) {
  __shared__ A room[32];
  if (inner > 1) {
    Team<true> team = {room, inner};
    each<1>(outer * inner, false, [&](auto, long long row) {
      f(Width<1>(), team, row, row / inner * count * inner + row % inner);
    });
    return;
  }
  Team<false> team = {room, 1};
  long long step = (long long)gridDim.x * blockDim.y;
  for (long long row = blockIdx.x * (long long)blockDim.y + threadIdx.y; row < outer; row += step)
    if (wide) f(Width<Pack<T>::N>(), team, row, row * count);
    else f(Width<1>(), team, row, row * count);
}

// The maximum of a row, and the sum of the exponentials of what is below it: in one pass.
template <int N, class TEAM>
__device__ __forceinline__ void exponentials(const TEAM& team, const T* x, int count, A& top,
                                             A& sum) {
  top = -infinity_((A)0), sum = 0;
  team.template over<N>(count, [&](int, const T* at) {
    A a[N], best = top;
    load<N>(at, a);
#pragma unroll
    for (int j = 0; j < N; j++) best = max_(best, a[j]);
    if (best > top) {
      sum *= exp_(top - best);
      top = best;
    }
#pragma unroll
    for (int j = 0; j < N; j++) sum += a[j] == -infinity_((A)0) ? (A)0 : exp_(a[j] - top);
  }, x);
  A mine = top;
  top = team.max(mine);
  sum = team.sum(mine == top ? sum : sum * exp_(mine - top));
}

// ---------------------------------------------------------------- softmax
template <bool LOG>
__device__ __forceinline__ void softmax_rows(const T* x, T* y, long long outer, long long count,
                                             long long inner) {
  bool wide = count % Pack<T>::N == 0 && aligned(x, y);
  rows_of(outer, count, inner, wide, [&](auto width, auto team, long long, long long offset) {
    const int N = decltype(width)::value;
    A top, sum;
    exponentials<N>(team, x + offset, count, top, sum);
    A shift = LOG ? top + log_(sum) : top, scale = (A)1 / sum;
    team.template over<N>(count, [&](int, const T* from, const T* to) {
      A a[N];
      load<N>(from, a);
#pragma unroll
      for (int j = 0; j < N; j++)
        a[j] = LOG ? a[j] - shift : exp_(a[j] - shift) * scale;
      store<N>((T*)to, a);
    }, x + offset, (const T*)y + offset);
  });
}

KERNEL(1024) softmax(const T* x, T* y, long long outer, long long count, long long inner) {
  softmax_rows<false>(x, y, outer, count, inner);
}

KERNEL(1024) log_softmax(const T* x, T* y, long long outer, long long count, long long inner) {
  softmax_rows<true>(x, y, outer, count, inner);
}

// y·(g − Σ g·y), or g − exp(y)·Σ g
template <bool LOG>
__device__ __forceinline__ void d_softmax_rows(const T* g, const T* y, T* dx, long long outer,
                                               long long count, long long inner) {
  bool wide = count % Pack<T>::N == 0 && aligned(g, y, dx);
  rows_of(outer, count, inner, wide, [&](auto width, auto team, long long, long long offset) {
    const int N = decltype(width)::value;
    A sum = 0;
    team.template over<N>(count, [&](int, const T* from, const T* out) {
      A a[N], b[N];
      load<N>(from, a);
      if (!LOG) load<N>(out, b);
#pragma unroll
      for (int j = 0; j < N; j++) sum += LOG ? a[j] : a[j] * b[j];
    }, g + offset, y + offset);
    sum = team.sum(sum);
    team.template over<N>(count, [&](int, const T* from, const T* out, const T* to) {
      A a[N], b[N];
      load<N>(from, a);
      load<N>(out, b);
#pragma unroll
      for (int j = 0; j < N; j++) a[j] = LOG ? a[j] - exp_(b[j]) * sum : b[j] * (a[j] - sum);
      store<N>((T*)to, a);
    }, g + offset, y + offset, (const T*)dx + offset);
  });
}

KERNEL(1024) softmax_backward(const T* g, const T* y, T* dx, long long outer, long long count,
                              long long inner) {
  d_softmax_rows<false>(g, y, dx, outer, count, inner);
}

KERNEL(1024) log_softmax_backward(const T* g, const T* y, T* dx, long long outer, long long count,
                                  long long inner) {
  d_softmax_rows<true>(g, y, dx, outer, count, inner);
}

// ---------------------------------------------------------------- cross entropy
#ifdef Y_TYPE
typedef Y_TYPE Y;  // class numbers
typedef W_TYPE W;  // weights of classes
typedef L_TYPE L;  // losses

// For each row its loss, its weight, the sum of exponentials and what was subtracted before.
KERNEL(1024) cross_entropy(const T* x, const Y* labels, const W* weight, const A* weight_sum,
                           A* losses, A* row_weights, A* sums, A* shifts, long long* fault,
                           long long outer, long long count, long long inner, long long ignored,
                           double smoothing) {
  bool wide = count % Pack<T>::N == 0 && aligned(x);
  rows_of(outer, count, inner, wide, [&](auto width, auto team, long long row, long long offset) {
    const int N = decltype(width)::value;
    A top, sum, spread = 0;
    exponentials<N>(team, x + offset, count, top, sum);
    if (smoothing != 0) {
      team.template over<N>(count, [&](int k, const T* from) {
        A a[N];
        load<N>(from, a);
        for (int j = 0; j < N; j++) spread += weight ? a[j] * (A)weight[k + j] : a[j];
      }, x + offset);
      spread = team.sum(spread);
    }
    if (!team.leads()) return;
    if (top == -infinity_(top)) top = 0, sum = 0;
    const long long label = labels[row];
    const bool counts = label != ignored, right = label >= 0 && label < count;
    if (counts && !right) report(fault, NO_CLASS, label, count);
    A w = !counts ? (A)0 : weight && right ? (A)weight[label] : (A)1;
    A lse = log_(sum) + top, loss = 0;
    if (counts && right) {
      loss = (lse - (A)x[offset + label * team.inner]) * w;
      if (smoothing != 0) {
        A all = weight ? *weight_sum : (A)count;
        loss = loss * (A)(1 - smoothing) + (lse * all - spread) * (A)(smoothing / count);
      }
    } else if (counts) {
      loss = infinity_(loss) - infinity_(loss);  // no number
    }
    losses[row] = loss;
    row_weights[row] = w;
    sums[row] = sum;
    shifts[row] = top;
  });
}

// The sum of the losses, or their mean; and what they were divided by.  One block.
KERNEL(1024) finish_cross_entropy(const A* losses, const A* row_weights, L* loss, A* total,
                                  long long rows, long long mean) {
  __shared__ A room[32];
  A sum = 0, weights = 0;
  for (long long row = threadIdx.x; row < rows; row += blockDim.x) {
    sum += losses[row];
    weights += row_weights[row];
  }
  sum = block_sum(sum, room);
  weights = block_sum(weights, room);
  if (threadIdx.x) return;
  *total = weights;
  if (loss) *loss = (L)(mean ? sum / weights : sum);
}

// (p·Σq − q)·g for each row, q the target distribution times the weights.
// `g`: one number, or one for each row; `total`: 0, or what the losses were divided by.
KERNEL(1024) d_cross_entropy(const L* g, const T* x, const Y* labels, const W* weight,
                             const A* weight_sum, const A* row_weights, const A* sums,
                             const A* shifts, const A* total, T* dx, long long outer,
                             long long count, long long inner, long long ignored, double smoothing,
                             long long many) {
  bool wide = count % Pack<T>::N == 0 && aligned(x, dx);
  rows_of(outer, count, inner, wide, [&](auto width, auto team, long long row, long long offset) {
    const int N = decltype(width)::value;
    const long long label = labels[row];
    A scale = (A)g[many ? row : 0];
    if (total) scale /= *total;
    A hit = scale * row_weights[row] * (A)(1 - smoothing), whole = hit, part = 0;
    if (smoothing != 0 && label != ignored) {
      part = scale * (A)(smoothing / count);
      whole += part * (weight ? *weight_sum : (A)count);
    }
    const A shift = shifts[row];
    whole /= sums[row];
    team.template over<N>(count, [&](int k, const T* from, const T* to) {
      A a[N];
      load<N>(from, a);
#pragma unroll
      for (int j = 0; j < N; j++) {
        a[j] = exp_(a[j] - shift) * whole - (k + j == label ? hit : (A)0);
        if (smoothing != 0) a[j] -= weight ? part * (A)weight[k + j] : part;
      }
      store<N>((T*)to, a);
    }, x + offset, (const T*)dx + offset);
  });
}
#endif
