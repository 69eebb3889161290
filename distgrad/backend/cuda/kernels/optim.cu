// Optimizers, norms and scales of gradients: one launch for many arrays, whose addresses are in a
// table that is given by value.  What changes from step to step is read from the device.
#include "common.cuh"
#include "exact.cuh"

typedef T_TYPE T;
typedef Wide<T>::type A;

const int MOST = 48;      // arrays of a launch; parameters of a kernel take 4 KiB at most
const int PLACES = 5;     // parameter, gradient, three of state
const int CHUNK = 8192;   // elements of a block
const int NUMBERS = 8;

struct Table {
  long long count;
  long long sizes[MOST];
  long long first[MOST + 1];  // block of each array
  T* places[MOST][PLACES];
};

struct Hyper {
  double lr, decay, a, b, eps, c, d, e;
};

enum Flag { MAXIMIZE = 1, DECOUPLED = 2, NESTEROV = 4, FIRST = 8 };
enum Rule { SGD, ADAM, ADAMAX, ADAGRAD, ADADELTA, RMSPROP, RADAM };

// ---------------------------------------------------------------- arithmetic
// The rules in optim/rules.py round each result, and so do these: the same bits.
// NumPy's maximum hands nan on, CUDA's does not.
__device__ __forceinline__ A larger(A a, A b) { return a != a ? a : b != b ? b : most(a, b); }

__device__ __forceinline__ A average(A mean, A value, A rest) {
  return add(mean, mul(minus(value, mean), rest));
}
__device__ __forceinline__ A average_square(A mean, A value, A kept, A rest) {
  return add(mul(mean, kept), mul(mul(value, value), rest));
}

// ---------------------------------------------------------------- the rules, for one element
// x: the rule's own numbers, as `prepare` leaves them; s, t, u: the state.
struct Sgd {
  static __device__ __forceinline__ void step(
      const A* x, long long flags, bool kept, A& p, A g, A& s, A& t, A& u) {
    if (!kept) {
      p = minus(p, mul(g, x[0]));
      return;
    }
    s = flags & FIRST ? g : add(mul(s, x[1]), mul(g, x[2]));
    A way = flags & NESTEROV ? add(mul(s, x[1]), g) : s;
    p = minus(p, mul(way, x[0]));
  }
};

struct Adam {
  static __device__ __forceinline__ void step(
      const A* x, long long flags, bool kept, A& p, A g, A& s, A& t, A& u) {
    s = average(s, g, x[0]);
    t = average_square(t, g, x[1], x[2]);
    A v = t;
    if (kept) v = u = larger(u, t);
    A scale = add(mul(root(v), x[3]), x[4]);
    p = minus(p, mul(over(s, scale), x[5]));
  }
};

struct Adamax {
  static __device__ __forceinline__ void step(
      const A* x, long long flags, bool kept, A& p, A g, A& s, A& t, A& u) {
    s = average(s, g, x[0]);
    t = larger(mul(t, x[1]), add(size(g), x[2]));
    p = minus(p, mul(over(s, t), x[3]));
  }
};

struct Adagrad {
  static __device__ __forceinline__ void step(
      const A* x, long long flags, bool kept, A& p, A g, A& s, A& t, A& u) {
    s = add(s, mul(g, g));
    p = minus(p, mul(over(g, add(root(s), x[0])), x[1]));
  }
};

struct Adadelta {
  static __device__ __forceinline__ void step(
      const A* x, long long flags, bool kept, A& p, A g, A& s, A& t, A& u) {
    s = average_square(s, g, x[0], x[1]);
    A delta = mul(over(root(add(t, x[2])), root(add(s, x[2]))), g);
    t = average_square(t, delta, x[0], x[1]);
    p = minus(p, mul(delta, x[3]));
  }
};

struct Rmsprop {
  static __device__ __forceinline__ void step(
      const A* x, long long flags, bool kept, A& p, A g, A& s, A& t, A& u) {
    s = average_square(s, g, x[0], x[1]);
    A v = s;
    if (kept) {
      u = average(u, g, x[1]);
      v = minus(s, mul(u, u));
    }
    A d = over(g, add(root(v), x[2]));
    if (x[4] > (A)0) d = t = add(mul(t, x[4]), d);
    p = minus(p, mul(d, x[3]));
  }
};

struct Radam {
  static __device__ __forceinline__ void step(
      const A* x, long long flags, bool kept, A& p, A g, A& s, A& t, A& u) {
    s = average(s, g, x[0]);
    t = average_square(t, g, x[1], x[2]);
    A d = x[5] != (A)0 ? over(s, add(root(t), x[3])) : s;
    p = minus(p, mul(d, x[4]));
  }
};

// ---------------------------------------------------------------- the numbers of a step
__device__ void numbers(double* c, long long rule, const Hyper& h, double t, long long flags) {
  double lr = h.lr, *x = c + 2;
  bool shrinks = flags & DECOUPLED;
  c[0] = shrinks ? 0 : h.decay;
  c[1] = shrinks ? add(1.0, -mul(lr, h.decay)) : 1.0;
  if (rule == SGD) {
    x[0] = lr, x[1] = h.a, x[2] = 1 - h.b;
  } else if (rule == ADAM) {
    x[0] = 1 - h.a, x[1] = h.b, x[2] = 1 - h.b;
    x[3] = 1 / sqrt(1 - pow(h.b, t)), x[4] = h.eps, x[5] = lr / (1 - pow(h.a, t));
  } else if (rule == ADAMAX) {
    x[0] = 1 - h.a, x[1] = h.b, x[2] = h.eps, x[3] = lr / (1 - pow(h.a, t));
  } else if (rule == ADAGRAD) {
    x[0] = h.eps, x[1] = lr / add(1.0, mul(t - 1, h.a));
  } else if (rule == ADADELTA) {
    x[0] = h.a, x[1] = 1 - h.a, x[2] = h.eps, x[3] = lr;
  } else if (rule == RMSPROP) {
    x[0] = h.a, x[1] = 1 - h.a, x[2] = h.eps, x[3] = lr, x[4] = h.b;
  } else if (rule == RADAM) {
    double correction = 1 - pow(h.b, t), limit = add(2 / (1 - h.b), -1.0);
    double certain = add(limit, -mul(mul(2, t), pow(h.b, t)) / correction);
    double rate = lr / (1 - pow(h.a, t));
    x[0] = 1 - h.a, x[1] = h.b, x[2] = 1 - h.b, x[3] = h.eps, x[4] = rate;
    x[5] = certain > 5.0;
    if (certain > 5.0) {
      double over = mul(mul(certain - 4, certain - 2), limit);
      double under = mul(mul(limit - 4, limit - 2), certain);
      x[4] = mul(rate, sqrt(mul(over / under, correction)));
    }
  }
}

// Counts a step and works out its numbers.  `device`, if given, has the options; `steps`, if given,
// the counts of `many` parameters, all alike.  A step that is left out is not counted.
KERNEL(32) prepare(
    const double* device, Hyper given, long long rule, long long flags, float* steps,
    long long many, double step, const float* found, double* out) {
  if (found && *found != 0) return;
  double t = steps ? (double)steps[0] + 1 : step;
  __syncwarp();
  for (long long i = threadIdx.x; i < many; i += 32) steps[i] = (float)t;
  if (threadIdx.x == 0) numbers(out, rule, device ? *(const Hyper*)device : given, t, flags);
}

// ---------------------------------------------------------------- many arrays
// Calls f(Width<N>(), array, i) for all elements i of this block's part of an array.
template <class F>
__device__ __forceinline__ void part(const Table& table, int places, F f) {
  int k = 0;
  while (k + 1 < table.count && blockIdx.x >= table.first[k + 1]) k++;
  long long from = (blockIdx.x - table.first[k]) * CHUNK, to = from + CHUNK;
  if (to > table.sizes[k]) to = table.sizes[k];
  unsigned long long bits = 0;
  for (int j = 0; j < places; j++) bits |= (unsigned long long)table.places[k][j];
  const int N = Pack<T>::N;
  long long wide = bits & 15 ? from : from + (to - from) / N * N;
  for (long long i = from + threadIdx.x * N; i < wide; i += blockDim.x * N) f(Width<N>(), k, i);
  for (long long i = wide + threadIdx.x; i < to; i += blockDim.x) f(Width<1>(), k, i);
}

template <class F>
__device__ __forceinline__ void update(
    const Table& table, const double* c, const float* found, long long flags, int keeps) {
  if (found && *found != 0) return;
  A penalty = (A)c[0], shrink = (A)c[1], x[6];
  for (int j = 0; j < 6; j++) x[j] = (A)c[2 + j];
  part(table, PLACES, [&](auto width, int k, long long i) {
    const int N = decltype(width)::value;
    T* const* at = table.places[k];
    A p[N], g[N], s[3][N];
    load<N>(at[0] + i, p);
    load<N>(at[1] + i, g);
    for (int j = 0; j < 3; j++)
      if (at[2 + j]) load<N>(at[2 + j] + i, s[j]);
#pragma unroll
    for (int j = 0; j < N; j++) {
      A d = flags & MAXIMIZE ? negative(g[j]) : g[j];
      if (penalty != (A)0) d = add(mul(p[j], penalty), d);
      if (shrink != (A)1) p[j] = mul(p[j], shrink);
      F::step(x, flags, at[2 + keeps] != 0, p[j], d, s[0][j], s[1][j], s[2][j]);
    }
    store<N>(at[0] + i, p);
    for (int j = 0; j < 3; j++)
      if (at[2 + j]) store<N>(at[2 + j] + i, s[j]);
  });
}

// keeps: the array of state that an option adds.
#define RULE(name, F, keeps)                                                                   \
  KERNEL(256) name(Table table, const double* c, const float* found, long long flags) {        \
    update<F>(table, c, found, flags, keeps);                                                  \
  }

RULE(sgd, Sgd, 0)
RULE(adam, Adam, 2)
RULE(adamax, Adamax, 0)
RULE(adagrad, Adagrad, 0)
RULE(adadelta, Adadelta, 0)
RULE(rmsprop, Rmsprop, 2)
RULE(radam, Radam, 0)

// ---------------------------------------------------------------- norms and scales
enum Norm { LARGEST, COUNT, SIZES, SQUARES, POWERS };

// Sums, or the maximum, of what the norm is made of, one for each block, from `out` on.
KERNEL(256) norm_parts(Table table, long long kind, double power, double* out) {
  __shared__ double room[32];
  double mine = 0;
  part(table, 1, [&](auto width, int k, long long i) {
    const int N = decltype(width)::value;
    A g[N];
    load<N>(table.places[k][0] + i, g);
    for (int j = 0; j < N; j++) {
      double v = fabs((double)g[j]);
      if (kind == LARGEST) mine = mine != mine || mine > v ? mine : v;
      else if (kind == COUNT) mine += v != 0;
      else if (kind == SIZES) mine += v;
      else if (kind == SQUARES) mine += v * v;
      else mine += pow(v, power);
    }
  });
  if (kind == LARGEST) {
    double wrong = block_sum((double)(mine != mine), room);
    mine = block_max(mine != mine ? 0 : mine, room);
    if (wrong != 0) mine = nan("");
  } else {
    mine = block_sum(mine, room);
  }
  if (threadIdx.x == 0) out[blockIdx.x] = mine;
}

// The norm, and what gradients are multiplied by so that it is at most `most`.
KERNEL(256) norm_total(
    const double* parts, long long count, long long kind, double power, double most, T* norm,
    double* factor) {
  __shared__ double room[32];
  double mine = 0;
  bool wrong = false;
  for (long long i = threadIdx.x; i < count; i += 256) {
    if (kind == LARGEST) wrong |= parts[i] != parts[i], mine = mine > parts[i] ? mine : parts[i];
    else mine += parts[i];
  }
  double total = kind == LARGEST ? block_max(mine, room) : block_sum(mine, room);
  if (block_sum((double)wrong, room) != 0) total = nan("");
  if (threadIdx.x) return;
  if (kind == SQUARES) total = sqrt(total);
  if (kind == POWERS) total = pow(total, 1 / power);
  *norm = (T)(A)total;
  A within = over((A)most, add((A)*norm, (A)1e-6));
  *factor = within < (A)1 || within != within ? (double)within : 1.0;
}

// Multiplies by a number on the device; by 1 it does nothing.
KERNEL(256) scale_all(Table table, const double* factor) {
  if (*factor == 1) return;
  T rounded = (T)(A)*factor;
  A by = (A)rounded;
  part(table, 1, [&](auto width, int k, long long i) {
    const int N = decltype(width)::value;
    A g[N];
    load<N>(table.places[k][0] + i, g);
    for (int j = 0; j < N; j++) g[j] = mul(g[j], by);
    store<N>(table.places[k][0] + i, g);
  });
}

// Takes a loss scale out of gradients; `found` becomes 1 if one is not finite.
KERNEL(256) unscale_all(Table table, const float* inverse, float* found) {
  A by = (A)*inverse;
  bool wrong = false;
  part(table, 1, [&](auto width, int k, long long i) {
    const int N = decltype(width)::value;
    A g[N];
    load<N>(table.places[k][0] + i, g);
    for (int j = 0; j < N; j++) {
      g[j] = mul(g[j], by);
      wrong |= !(size(g[j]) < infinity_((A)0));
    }
    store<N>(table.places[k][0] + i, g);
  });
  if (wrong) *found = 1;  // whoever comes, it is the same
}

// What `update` of a gradient scaler does: state is scale, 1 / scale, steps since it grew.
KERNEL(32) adapt_scale(
    float* state, const float* found, long long many, double growth, double backoff,
    double interval) {
  if (threadIdx.x) return;
  bool wrong = false;
  for (long long i = 0; i < many; i++) wrong |= found[i] != 0;
  float scale = state[0], since = state[2] + 1;
  if (wrong) {
    scale = (float)(scale * backoff), since = 0;
  } else if (since >= (float)interval) {
    float grown = (float)(scale * growth);
    if (grown < infinity_(0.0f)) scale = grown;
    since = 0;
  }
  state[0] = scale, state[1] = (float)(1.0 / scale), state[2] = since;
}
