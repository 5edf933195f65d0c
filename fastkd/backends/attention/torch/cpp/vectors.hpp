// Vectors of floats, their exponential and their logarithm.
#pragma once

#include <stdint.h>
#include <string.h>

namespace fastkd {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline vec load(const float* from) { return *reinterpret_cast<const vec*>(from); }
inline void store(float* to, vec value) { *reinterpret_cast<vec*>(to) = value; }
// A load that stays in its register: GCC otherwise reads memory again at every use.
inline vec held(const float* from) {
    vec value = load(from);
#if defined(__x86_64__)
    asm("" : "+v"(value));
#endif
    return value;
}
inline vec splat(float value) { return vec{} + value; }
inline vec larger(vec a, vec b) { return a > b ? a : b; }

// Lane i of the result is lane i ^ step of a.
template <int STEP> inline vec swapped(vec a) {
#if defined(__clang__)
    ivec result;
    ivec lanes = (ivec)a;
    for (int i = 0; i < LANES; i++) result[i] = lanes[i ^ STEP];
    return (vec)result;
#else
    ivec order;
    for (int i = 0; i < LANES; i++) order[i] = i ^ STEP;
    return __builtin_shuffle(a, order);
#endif
}

inline float sum(vec a) {
    if constexpr (LANES == 16) a += swapped<8>(a);
    a += swapped<4>(a);
    a += swapped<2>(a);
    a += swapped<1>(a);
    return a[0];
}

inline float maximum(vec a) {
    if constexpr (LANES == 16) a = larger(a, swapped<8>(a));
    a = larger(a, swapped<4>(a));
    a = larger(a, swapped<2>(a));
    a = larger(a, swapped<1>(a));
    return a[0];
}

// Zero in the lanes from `count` on.
inline vec first(vec a, int count) {
    ivec lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane < count ? a : vec{};
}

// (exp(x) − 1 − x) / x² for |x| up to ln(2)/2
inline vec tail(vec x) {
    vec p = splat(1.0f / 5040) * x + 1.0f / 720;
    p = p * x + 1.0f / 120;
    p = p * x + 1.0f / 24;
    p = p * x + 1.0f / 6;
    return p * x + 0.5f;
}

// exp(x) = power · (1 + fraction + rest); |x| at most 86.
struct Exponential {
    vec power, fraction, rest;

    explicit Exponential(vec x) {
        const float magic = 12582912.0f;  // 1.5 · 2^23: low bits of the sum are x in whole log2s
        vec shifted = x * 1.44269504f + magic;
        vec whole = shifted - magic;
        fraction = x - whole * 0.693359375f;
        fraction = fraction + whole * 2.12194440e-4f;
        power = (vec)(((ivec)shifted << 23) + 0x3f800000);
        rest = tail(fraction) * (fraction * fraction);
    }
    vec exp() const { return power * (fraction + rest) + power; }
    // exp(x) − 1 − x, without cancellation for small x
    vec excess(vec x) const { return power * rest + ((power * fraction - x) + (power - 1.0f)); }
};

// For normal positive x, and NaN; after Cephes.
inline vec logarithm(vec x) {
    ivec bits = (ivec)x;
    ivec exponent = (bits >> 23) - 126;
    vec mantissa = (vec)((bits & 0x007fffff) | 0x3f000000);  // [0.5, 1)
    ivec low = mantissa < 0.707106781f;                      // −1 where true
    exponent += low;
    vec f = (low ? mantissa + mantissa : mantissa) - 1.0f;
    vec e = __builtin_convertvector(exponent, vec);
    vec square = f * f;
    vec p = splat(7.0376836292e-2f) * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    p = p * f * square - 2.12194440e-4f * e - 0.5f * square;
    return x == x ? f + p + 0.693359375f * e : x;
}

}  // namespace fastkd
