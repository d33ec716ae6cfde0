/* The end of a Cell: LayerNorm(s + dropout(ReLU(BatchNorm(joined)))).
 *
 * B batch, L length, C channels, R = B*L rows. Of each member s and z are (B, L, C), joined (R, C);
 * the affine part of the LayerNorm is (L, C).
 */
#include "common.h"

static void member_forward(i64 batch, i64 length, i64 channels, const float *s,
                           const float *joined, const Norm *norm, const float *weight,
                           const float *bias, float eps, uint32_t threshold, float factor,
                           uint64_t seed, float *mean, float *rstd, float *residual, float *z,
                           int threads) {
    const i64 size = length * channels;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (i64 first = 0; first < channels; first += BLOCK)
            column_statistics(joined, batch * length, channels, first,
                              smaller(BLOCK, channels - first), norm);
#pragma omp for
        for (i64 b = 0; b < batch; b++) {
            for (i64 r = b * length; r < (b + 1) * length; r++) {
                const uint32_t own = row_seed(seed, r);
                const float *restrict in = joined + r * channels, *restrict from = s + r * channels;
                float *restrict to = residual + r * channels;
#pragma omp simd
                for (i64 c = 0; c < channels; c++) {
                    const float y = (in[c] - norm->mean[c]) * norm->rstd[c] * norm->weight[c] +
                                    norm->bias[c];
                    to[c] = from[c] + (y < 0.0f ? 0.0f : y) *
                                          keep(random_bits(own, c), 0, threshold, factor);
                }
            }
            const float *restrict in = residual + b * size;
            float *restrict out = z + b * size;
            layer_statistics(in, size, eps, mean + b, rstd + b);
            const float centre = mean[b], scale = rstd[b];
#pragma omp simd
            for (i64 i = 0; i < size; i++)
                out[i] = (in[i] - centre) * scale * weight[i] + bias[i];
        }
    }
}

void output_forward(i64 members, i64 batch, i64 length, i64 channels, const float *s,
                    const float *joined, const Norm *norm, const float *weight, const float *bias,
                    float eps, uint32_t threshold, float factor, uint64_t seed, float *mean,
                    float *rstd, float *residual, float *z, int threads) {
    const i64 layer = length * channels, size = batch * layer;
    for (i64 m = 0; m < members; m++) {
        const Norm own = norm_at(norm, m * channels);
        member_forward(batch, length, channels, s + m * size, joined + m * size, &own,
                       weight + m * layer, bias + m * layer, eps, threshold, factor,
                       member_seed(seed, m), mean + m * batch, rstd + m * batch,
                       residual + m * size, z + m * size, threads);
    }
}

static void member_backward(i64 batch, i64 length, i64 channels, i64 chunks, const float *g,
                            const float *joined, const float *residual, const Norm *norm,
                            const float *weight, const float *mean, const float *rstd,
                            uint32_t threshold, float factor, uint64_t seed, float *ds, float *dj,
                            float *partial, int threads) {
    const i64 size = length * channels, width = 2 * size + 2 * channels, rows = batch * length;
    const float share = 1.0f / (float)rows;
    float *const d_weight = partial + 2 * size, *const d_bias = d_weight + channels;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (i64 k = 0; k < chunks; k++) {
            float *const layer = partial + k * width;
            float *restrict product = layer + 2 * size, *restrict sum = product + channels;
            memset(layer, 0, sizeof(float) * (size_t)width);
            for (i64 b = k * batch / chunks; b < (k + 1) * batch / chunks; b++) {
                layer_backward(g + b * size, residual + b * size, weight, size, mean[b], rstd[b],
                               layer, layer + size, ds + b * size);
                for (i64 r = b * length; r < (b + 1) * length; r++) {
                    const uint32_t own = row_seed(seed, r);
                    const float *restrict in = joined + r * channels;
                    const float *restrict from = ds + r * channels;
                    float *restrict to = dj + r * channels;
#pragma omp simd
                    for (i64 c = 0; c < channels; c++) {
                        const float normal = (in[c] - norm->mean[c]) * norm->rstd[c];
                        const float y = normal * norm->weight[c] + norm->bias[c];
                        const float kept = keep(random_bits(own, c), 0, threshold, factor);
                        const float d = y <= 0.0f ? 0.0f : from[c] * kept;
                        to[c] = d;
                        sum[c] += d;
                        product[c] += d * normal;
                    }
                }
            }
        }
        reduce_chunks(partial, chunks, width);
#pragma omp for
        for (i64 r = 0; r < rows; r++) {
            const float *restrict in = joined + r * channels;
            float *restrict to = dj + r * channels;
#pragma omp simd
            for (i64 c = 0; c < channels; c++) {
                const float normal = (in[c] - norm->mean[c]) * norm->rstd[c];
                to[c] = norm->rstd[c] * norm->weight[c] *
                        (to[c] - d_bias[c] * share - normal * d_weight[c] * share);
            }
        }
    }
}

/* partial is (members, chunks, 2*L*C + 2*C): gradients of the LayerNorm's weight and bias, then of
 * the BatchNorm's; the first chunk holds the sums in the end. */
void output_backward(i64 members, i64 batch, i64 length, i64 channels, i64 chunks, const float *g,
                     const float *joined, const float *residual, const Norm *norm,
                     const float *weight, const float *mean, const float *rstd, uint32_t threshold,
                     float factor, uint64_t seed, float *ds, float *dj, float *partial,
                     int threads) {
    const i64 layer = length * channels, size = batch * layer;
    for (i64 m = 0; m < members; m++) {
        const Norm own = norm_at(norm, m * channels);
        member_backward(batch, length, channels, chunks, g + m * size, joined + m * size,
                        residual + m * size, &own, weight + m * layer, mean + m * batch,
                        rstd + m * batch, threshold, factor, member_seed(seed, m), ds + m * size,
                        dj + m * size, partial + m * chunks * (2 * layer + 2 * channels), threads);
    }
}
