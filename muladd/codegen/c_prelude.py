"""Functions in the C-like dialects' common ground that every rendered kernel begins with.

pack and unpack take a float type's exponent and mantissa widths, which are constants wherever they
are called. 4 exponent bits mean e4m3, which has no infinity. odd_* round to float32 so that an
inexact result's last bit is one (Boldo and Melquiond, 2008): rounding that again to a narrow float
is rounding once. divide_* round down and give zero for a zero divisor; nothing traps or overflows.
"""

FUSED = """\
#ifdef FP_FAST_FMAF
#define multiply_add fma
#else  // a call of a function that emulates it, on some CPUs; the fast profile need not have it
#define multiply_add(a, b, c) ((a) * (b) + (c))
#endif
"""

PRELUDE = """\
inline uint pack(float x, int exponent, int mantissa) {
  const uint bits = as_uint(x), magnitude = bits & 0x7fffffffu, drop = 23 - mantissa;
  const uint bias = (1u << (exponent - 1)) - 1, sign = (bits >> 31) << (exponent + mantissa);
  const uint top = exponent == 4 ? 0x7fu : ((1u << exponent) - 1) << mantissa;
  const uint nan = exponent == 4 ? 0x7fu : exponent == 5 && mantissa == 2 ? 0x7fu
                                         : top | 1u << (mantissa - 1);
  uint code = (magnitude + (1u << (drop - 1)) - 1 + ((magnitude >> drop) & 1)) >> drop;
  if (exponent < 8) {
    const float magic = as_float((127 + 1 - bias - mantissa + 23) << 23);
    code = magnitude < (128 - bias) << 23 ? as_uint(as_float(magnitude) + magic) - as_uint(magic)
                                          : code - ((127 - bias) << mantissa);
    code = code > top ? top : code;
  }
  return sign | (x != x ? nan : code);
}
inline float unpack(uint code, int exponent, int mantissa) {
  const uint sign = (code >> (exponent + mantissa)) << 31;
  const uint magnitude = code & ((1u << (exponent + mantissa)) - 1);
  if (exponent == 8) return as_float(sign | magnitude << 16);
  const uint top = exponent == 4 ? 0x7fu : ((1u << exponent) - 1) << mantissa;
  const float scale = as_float((127 + 127 - ((1u << (exponent - 1)) - 1)) << 23);
  const uint bits = as_uint(as_float(magnitude << (23 - mantissa)) * scale);
  const uint wild = exponent == 4 || magnitude > top ? 0x7fc00000u : 0x7f800000u;
  return as_float(sign | (magnitude >= top ? wild : bits));
}
inline float odd_ulong(ulong x) {
  const int over = 40 - (int)clz(x);
  if (over <= 0) return (float)x;
  const ulong top = x >> over;
  return ldexp((float)(top | (top << over != x)), over);
}
inline float odd_long(long x) { return x < 0 ? -odd_ulong(-(ulong)x) : odd_ulong((ulong)x); }
#ifdef cl_khr_fp64
inline float odd_double(double x) {
  const float near = (float)x;
  if ((double)near == x || x != x) return near;
  return as_float((as_uint(near) - (fabs((double)near) > fabs(x))) | 1u);
}
#endif
inline ulong divide_u(ulong x, ulong y) { return y ? x / y : 0; }
inline long divide_s(long x, long y) {
  if (y == 0) return 0;
  if (y == -1) return (long)(-(ulong)x);
  const long q = x / y, rest = x - q * y;
  return q - (rest && (rest ^ y) < 0);
}
"""
