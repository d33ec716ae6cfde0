/* What the kernels share: random numbers, exp, BatchNorm over the columns of a matrix.
 *
 * Everything is float32 and contiguous. Sums run in a fixed order that does not depend on the
 * number of threads, so that a run gives the same bits on one machine. NaN must come through:
 * comparisons are written so that a NaN takes the branch that keeps it.
 */
#ifndef BMNAS_COMMON_H
#define BMNAS_COMMON_H

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

typedef int64_t i64;

enum { BLOCK = 64 }; /* columns that one thread works on, and rows summed in single precision */

static inline i64 thread_number(void) { return omp_get_thread_num(); }

static inline i64 smaller(i64 a, i64 b) { return a < b ? a : b; }

/* 32 random bits for an element: the finaliser of MurmurHash3 over a row's own seed. */
static inline uint32_t scramble(uint32_t x) {
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ (x >> 16);
}

static inline uint32_t row_seed(uint64_t seed, i64 row) {
    const uint64_t mixed = (seed ^ (uint64_t)row) * 0x9e3779b97f4a7c15u;
    return scramble((uint32_t)(mixed >> 32)) ^ (uint32_t)seed;
}

static inline uint32_t random_bits(uint32_t seed, i64 column) {
    return scramble(seed + (uint32_t)column * 0x9e3779b9u);
}

/* factor where the given byte of the random bits is kept, else 0. */
static inline float keep(uint32_t bits, int byte, uint32_t threshold, float factor) {
    return ((bits >> (8 * byte)) & 255u) >= threshold ? factor : 0.0f;
}

/* Cephes' polynomial, which compilers turn into vector instructions; 2e-7 relative. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float n = rintf(x * 1.44269504f);
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union {
        int32_t bits;
        float value;
    } power = {.bits = ((int32_t)n + 127) << 23};
    return p * power.value;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

static inline float dot(const float *restrict a, const float *restrict b, i64 count) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

/* A BatchNorm in training: what the caller keeps in a module, and what a batch gives. */
typedef struct {
    const float *weight, *bias;        /* (width) */
    float *running_mean, *running_var; /* (width), updated forward */
    float momentum, eps;
    float *mean, *rstd; /* (width), written forward and read backward */
} Norm;

/* A dropout: an element is dropped where its random byte lies below the threshold. */
typedef struct {
    uint32_t threshold;
    float factor; /* for what is kept */
    uint64_t seed;
} Drop;

/* Column c of a row x: normalised, and with the affine part too. */
static inline float normal(const Norm *norm, const float *restrict x, i64 c) {
    return (x[c] - norm->mean[c]) * norm->rstd[c];
}

static inline float normalised(const Norm *norm, const float *restrict x, i64 c) {
    return normal(norm, x, c) * norm->weight[c] + norm->bias[c];
}

/* Mean and 1 / standard deviation of up to BLOCK columns from ``first``; updates what runs. */
static void column_statistics(const float *x, i64 rows, i64 stride, i64 first, i64 count,
                              const Norm *norm) {
    double mean[BLOCK] = {0}, square[BLOCK] = {0};
    float centre[BLOCK], part[BLOCK];
    x += first;
    for (i64 start = 0; start < rows; start += BLOCK) {
        const i64 end = smaller(start + BLOCK, rows);
        memset(part, 0, sizeof part);
        for (i64 r = start; r < end; r++)
            for (i64 c = 0; c < count; c++) part[c] += x[r * stride + c];
        for (i64 c = 0; c < count; c++) mean[c] += part[c];
    }
    for (i64 c = 0; c < count; c++) centre[c] = (float)(mean[c] / (double)rows);
    for (i64 start = 0; start < rows; start += BLOCK) {
        const i64 end = smaller(start + BLOCK, rows);
        memset(part, 0, sizeof part);
        for (i64 r = start; r < end; r++)
            for (i64 c = 0; c < count; c++) {
                const float d = x[r * stride + c] - centre[c];
                part[c] += d * d;
            }
        for (i64 c = 0; c < count; c++) square[c] += part[c];
    }
    for (i64 c = 0; c < count; c++) {
        const i64 at = first + c;
        const double variance = square[c] / (double)rows;
        const double unbiased = square[c] / (double)(rows - 1);
        norm->mean[at] = centre[c];
        norm->rstd[at] = (float)(1.0 / sqrt(variance + (double)norm->eps));
        norm->running_mean[at] += norm->momentum * (centre[c] - norm->running_mean[at]);
        norm->running_var[at] += norm->momentum * ((float)unbiased - norm->running_var[at]);
    }
}

#endif
