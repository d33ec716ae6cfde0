/* Features after their projection: BatchNorm, ReLU, dropout, and the edges of all Cells.
 *
 * F features, S members, R rows, C channels, N Cells. x and y are F matrices of R rows, in which
 * the members stand side by side as one product with the weights of all leaves them: S*C columns,
 * and ``stride`` from row to row. The norm is (S, F*C), mix (S, N, F), the mixed result
 * (N, S, R, C).
 */
#include "common.h"

typedef struct {
    i64 features, members, rows, channels, stride, cells;
    const float *mix;
    Norm norm;
    uint32_t threshold;
    float factor;
    uint64_t seed;
    int threads;
} Reshape;

/* Statistics of ``count`` features from ``first``, of which x is the first. */
void reshape_statistics(const Reshape *s, i64 first, i64 count, const float *x) {
    const i64 blocks = (s->channels + BLOCK - 1) / BLOCK;
#pragma omp parallel for collapse(3) num_threads(s->threads)
    for (i64 f = 0; f < count; f++)
        for (i64 m = 0; m < s->members; m++)
            for (i64 block = 0; block < blocks; block++) {
                const i64 at = block * BLOCK;
                const Norm own = norm_at(&s->norm, (m * s->features + first + f) * s->channels);
                column_statistics(x + f * s->rows * s->stride + m * s->channels, s->rows, s->stride,
                                  at, smaller(BLOCK, s->channels - at), &own);
            }
}

void reshape_forward(const Reshape *s, const float *x, float *y, float *mixed) {
    const i64 features = s->features, members = s->members, rows = s->rows;
    const i64 channels = s->channels, cells = s->cells, size = rows * channels;
    const uint32_t threshold = s->threshold;
    const float factor = s->factor;
    const Norm *norm = &s->norm;
#pragma omp parallel for collapse(2) num_threads(s->threads)
    for (i64 r = 0; r < rows; r++)
        for (i64 m = 0; m < members; m++) {
            const uint64_t member = member_seed(s->seed, m);
            for (i64 k = 0; k < cells; k++)
                memset(mixed + (k * members + m) * size + r * channels, 0,
                       sizeof(float) * (size_t)channels);
            for (i64 f = 0; f < features; f++) {
                const uint32_t own = row_seed(member, f * rows + r);
                const i64 row = (f * rows + r) * s->stride + m * channels;
                const i64 at = (m * features + f) * channels;
                const float *restrict in = x + row;
                float *restrict out = y + row;
                const float *restrict mean = norm->mean + at, *restrict rstd = norm->rstd + at;
                const float *restrict weight = norm->weight + at;
                const float *restrict bias = norm->bias + at;
#pragma omp simd
                for (i64 c = 0; c < channels; c++) {
                    const float z = (in[c] - mean[c]) * rstd[c] * weight[c] + bias[c];
                    out[c] =
                        (z < 0.0f ? 0.0f : z) * keep(random_bits(own, c), 0, threshold, factor);
                }
                for (i64 k = 0; k < cells; k++) {
                    float *restrict sum = mixed + (k * members + m) * size + r * channels;
                    const float w = s->mix[(m * cells + k) * features + f];
#pragma omp simd
                    for (i64 c = 0; c < channels; c++) sum[c] += w * out[c];
                }
            }
        }
}

/* The edges' gradients alone: some columns of a feature of a member, y and g from their corner. */
static void edges_of_block(const Reshape *s, i64 count, const float *g, const float *y,
                           double *edges) {
    const i64 cell = s->members * s->rows * s->channels;
    for (i64 r = 0; r < s->rows; r++)
        for (i64 k = 0; k < s->cells; k++)
            edges[k] += dot(g + k * cell + r * s->channels, y + r * s->stride, count);
}

/* The same columns with the gradients of x and of the norm; mix has one weight a Cell. */
static void block_backward(const Reshape *s, i64 count, const float *g, const float *x,
                           const float *y, const float *mix, const Norm *norm, float *dx,
                           float *d_weight, float *d_bias, double *edges) {
    const i64 rows = s->rows, cell = s->members * rows * s->channels;
    const float *restrict mean = norm->mean, *restrict rstd = norm->rstd;
    double sum[BLOCK] = {0}, product[BLOCK] = {0};
    float part[BLOCK], part_product[BLOCK];
    for (i64 start = 0; start < rows; start += BLOCK) {
        memset(part, 0, sizeof part);
        memset(part_product, 0, sizeof part_product);
        for (i64 r = start; r < smaller(start + BLOCK, rows); r++) {
            const float *restrict out = y + r * s->stride, *restrict in = x + r * s->stride;
            float *restrict d = dx + r * s->stride;
            for (i64 c = 0; c < count; c++) d[c] = 0.0f;
            for (i64 k = 0; k < s->cells; k++) {
                const float *restrict from = g + k * cell + r * s->channels;
                const float w = s->factor * mix[k * s->features];
                edges[k] += dot(from, out, count);
#pragma omp simd
                for (i64 c = 0; c < count; c++) d[c] += w * from[c];
            }
#pragma omp simd
            for (i64 c = 0; c < count; c++) {
                const float normal = (in[c] - mean[c]) * rstd[c];
                d[c] = out[c] <= 0.0f ? 0.0f : d[c];
                part[c] += d[c];
                part_product[c] += d[c] * normal;
            }
        }
        for (i64 c = 0; c < count; c++) {
            sum[c] += part[c];
            product[c] += part_product[c];
        }
    }
    for (i64 c = 0; c < count; c++) {
        d_bias[c] = part[c] = (float)sum[c];
        d_weight[c] = part_product[c] = (float)product[c];
        part[c] /= (float)rows;
        part_product[c] /= (float)rows;
    }
    for (i64 r = 0; r < rows; r++) {
        const float *restrict in = x + r * s->stride;
        float *restrict d = dx + r * s->stride;
#pragma omp simd
        for (i64 c = 0; c < count; c++) {
            const float normal = (in[c] - mean[c]) * rstd[c];
            d[c] = rstd[c] * norm->weight[c] * (d[c] - part[c] - normal * part_product[c]);
        }
    }
}

/* Of ``count`` features from ``first``, of which x, y and dx are the first; x and y stay as they
 * are. d_weight and d_bias are as the norm; d_mix is (S, F, blocks, N) and still to be summed over
 * blocks. Without dx only d_mix is written. */
void reshape_backward(const Reshape *s, i64 first, i64 count, const float *g, const float *x,
                      const float *y, float *dx, float *d_weight, float *d_bias, double *d_mix) {
    const i64 blocks = (s->channels + BLOCK - 1) / BLOCK;
#pragma omp parallel for collapse(3) num_threads(s->threads)
    for (i64 f = 0; f < count; f++)
        for (i64 m = 0; m < s->members; m++)
            for (i64 block = 0; block < blocks; block++) {
                const i64 column = block * BLOCK, number = m * s->features + first + f;
                const i64 width = smaller(BLOCK, s->channels - column);
                const i64 at = number * s->channels + column;
                const i64 corner = f * s->rows * s->stride + m * s->channels + column;
                const float *own_g = g + m * s->rows * s->channels + column;
                double *edges = d_mix + (number * blocks + block) * s->cells;
                for (i64 k = 0; k < s->cells; k++) edges[k] = 0.0;
                if (dx == NULL) {
                    edges_of_block(s, width, own_g, y + corner, edges);
                } else {
                    const Norm own = norm_at(&s->norm, at);
                    const float *mix = s->mix + m * s->cells * s->features + first + f;
                    block_backward(s, width, own_g, x + corner, y + corner, mix, &own, dx + corner,
                                   d_weight + at, d_bias + at, edges);
                }
            }
}
