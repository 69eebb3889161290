// What is wrong with operands that only the device looks at: the first such find is written down
// for the host, which asks when it reads numbers anyway.  See ``faults.py``.
const long long NO_CLASS = 1, NO_ROW = 2;

// `fault`: kind, the value, and what it must be below.
__device__ __forceinline__ void report(long long* fault, long long kind, long long value,
                                       long long limit) {
  if (atomicCAS((unsigned long long*)fault, 0ull, (unsigned long long)kind) == 0) {
    fault[1] = value;
    fault[2] = limit;
  }
}
