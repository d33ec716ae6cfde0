/* A relaxed step: the mixture of the whole pool over one input t (BM-NAS, Eq. 4 to 8, 10).
 *
 * B batch, L length, C channels, R = B*L rows. t, out and their gradients are (B, L, C); products (R, 3C) are value, gate and joint before their BatchNorm; the affine part of
 * the attention's LayerNorm is (L, C). gamma holds the weights of zero, sum, attention, linear_glu,
 * concat_fc. Of an element's random bits the first byte decides linear_glu, the second concat_fc,
 * the third attention.
 */
#include "common.h"

enum { SUM = 1, ATTENTION, GLU, CONCAT, OPERATIONS };

typedef struct {
    i64 batch, length, channels;
    const float *gamma;
    Norm norm;
    const float *weight, *bias; /* LayerNorm of the attention */
    float eps;
    Drop drop, attention_drop;
} Step;

/* What LayerNorm needs of ``count`` values: their mean and 1 / standard deviation. */
static void layer_statistics(const float *restrict x, i64 count, float eps, float *mean,
                                    float *rstd) {
    float sum = 0.0f, square = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < count; i++) sum += x[i];
    const float centre = sum / (float)count;
#pragma omp simd reduction(+ : square)
    for (i64 i = 0; i < count; i++) {
        const float d = x[i] - centre;
        square += d * d;
    }
    *mean = centre;
    *rstd = 1.0f / sqrtf(square / (float)count + eps);
}

/* LayerNorm backward over one sample: adds to d_weight and d_bias, writes dx (may be g). */
static void layer_backward(const float *g, const float *x, const float *restrict weight,
                                  i64 count, float mean, float rstd, float *restrict d_weight,
                                  float *restrict d_bias, float *dx) {
    float sum = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : sum, product)
    for (i64 i = 0; i < count; i++) {
        const float normal = (x[i] - mean) * rstd, weighted = g[i] * weight[i];
        d_weight[i] += g[i] * normal;
        d_bias[i] += g[i];
        sum += weighted;
        product += weighted * normal;
    }
    sum /= (float)count;
    product /= (float)count;
#pragma omp simd
    for (i64 i = 0; i < count; i++) {
        const float normal = (x[i] - mean) * rstd;
        dx[i] = rstd * (g[i] * weight[i] - sum - normal * product);
    }
}

/* Adds the partial sums (chunks, width) into the first of them, in order. */
static void reduce_chunks(float *partial, i64 chunks, i64 width) {
#pragma omp for
    for (i64 first = 0; first < width; first += BLOCK) {
        const i64 count = smaller(BLOCK, width - first);
        for (i64 k = 1; k < chunks; k++)
            for (i64 c = 0; c < count; c++)
                partial[first + c] += partial[k * width + first + c];
    }
}

/* The masked weighted sum of a sample's tokens, given its attention (L, L). */
static void attend(const Step *s, i64 b, const float *restrict t, const float *attention,
                   float *restrict attended) {
    for (i64 i = 0; i < s->length; i++) {
        float *restrict to = attended + i * s->channels;
        const uint32_t own = row_seed(s->drop.seed, b * s->length + i);
        memset(to, 0, sizeof(float) * (size_t)s->channels);
        for (i64 j = 0; j < s->length; j++) {
            const float w = attention[i * s->length + j];
            for (i64 c = 0; c < s->channels; c++) to[c] += w * t[j * s->channels + c];
        }
        for (i64 c = 0; c < s->channels; c++)
            to[c] *= keep(random_bits(own, c), 2, s->attention_drop.threshold, s->attention_drop.factor);
    }
}

static void attention_weights(const Step *s, const float *t, float *attention) {
    const i64 length = s->length;
    const float scale = 1.0f / sqrtf((float)s->channels);
    for (i64 i = 0; i < length; i++)
        for (i64 j = 0; j <= i; j++)
            attention[i * length + j] = attention[j * length + i] =
                scale * dot(t + i * s->channels, t + j * s->channels, s->channels);
    for (i64 i = 0; i < length; i++) {
        float *restrict row = attention + i * length;
        float largest = row[0], sum = 0.0f;
        for (i64 j = 1; j < length; j++) largest = row[j] > largest ? row[j] : largest;
        for (i64 j = 0; j < length; j++) sum += row[j] = exponential(row[j] - largest);
        for (i64 j = 0; j < length; j++) row[j] /= sum;
    }
}

/* scratch is (threads, L*C). */
void mixture_forward(i64 batch, i64 length, i64 channels, const float *t, const float *products,
                     const float *gamma, const float *norm_weight, const float *norm_bias,
                     float *running_mean, float *running_var, float momentum, float norm_eps,
                     const float *weight, const float *bias, float eps, i64 threshold, float factor,
                     i64 seed, i64 attention_threshold, float attention_factor, float *norm_mean,
                     float *norm_rstd, float *attention, float *mean, float *rstd, float *scratch,
                     float *out, i64 threads) {
    const i64 size = length * channels, wide = 3 * channels;
    const Step step = {batch,
                       length,
                       channels,
                       gamma,
                       {norm_weight, norm_bias, running_mean, running_var, momentum, norm_eps,
                        norm_mean, norm_rstd},
                       weight,
                       bias,
                       eps,
                       {(uint32_t)threshold, factor, (uint64_t)seed},
                       {(uint32_t)attention_threshold, attention_factor, (uint64_t)seed}};
    const Step *const s = &step;
    const Norm *norm = &s->norm;
    const float of_sum = 2.0f * gamma[SUM], of_attention = gamma[ATTENTION];
    const float of_glu = gamma[GLU], of_concat = gamma[CONCAT];
#pragma omp parallel num_threads((int)threads)
    {
#pragma omp for
        for (i64 first = 0; first < wide; first += BLOCK)
            column_statistics(products, s->batch * s->length, wide, first,
                              smaller(BLOCK, wide - first), norm);
        float *attended = scratch + thread_number() * size;
#pragma omp for
        for (i64 b = 0; b < s->batch; b++) {
            const float *restrict own_t = t + b * size;
            float *weights = attention + b * s->length * s->length;
            attention_weights(s, own_t, weights);
            attend(s, b, own_t, weights, attended);
            layer_statistics(attended, size, s->eps, mean + b, rstd + b);
            for (i64 l = 0; l < s->length; l++) {
                const i64 row = b * s->length + l;
                const uint32_t own = row_seed(s->drop.seed, row);
                const float *restrict p = products + row * wide;
                const float *restrict from = own_t + l * channels;
                const float *restrict z = attended + l * channels;
                const float *restrict weight = s->weight + l * channels;
                const float *restrict bias = s->bias + l * channels;
                float *restrict to = out + row * channels;
                const float centre = mean[b], scale = rstd[b];
#pragma omp simd
                for (i64 c = 0; c < channels; c++) {
                    const uint32_t bits = random_bits(own, c);
                    const float value = normalised(norm, p, c);
                    const float gate = normalised(norm, p, channels + c);
                    const float joint = normalised(norm, p, 2 * channels + c);
                    const float kept = keep(bits, 0, s->drop.threshold, s->drop.factor);
                    const float kept_joint = keep(bits, 1, s->drop.threshold, s->drop.factor);
                    to[c] = of_sum * from[c] +
                            of_attention * ((z[c] - centre) * scale * weight[c] + bias[c]) +
                            of_glu * kept * value * sigmoid(gate) +
                            of_concat * kept_joint * (joint < 0.0f ? 0.0f : joint);
                }
            }
        }
    }
}

/* Gradient through the attention of one sample: dz (L, C) is that of what it attended to; adds to
 * dt. scores is scratch for (L, L). */
static void attention_backward(const Step *s, const float *t, const float *attention,
                               const float *dz, float *scores, float *restrict dt) {
    const i64 length = s->length, channels = s->channels;
    const float scale = 1.0f / sqrtf((float)channels);
    for (i64 i = 0; i < length; i++) {
        const float *a = attention + i * length;
        float *ds = scores + i * length, mean = 0.0f;
        for (i64 j = 0; j < length; j++) {
            ds[j] = dot(dz + i * channels, t + j * channels, channels);
            mean += a[j] * ds[j];
        }
        for (i64 j = 0; j < length; j++) ds[j] = scale * a[j] * (ds[j] - mean);
    }
    for (i64 i = 0; i < length; i++) {
        float *restrict to = dt + i * channels;
        for (i64 j = 0; j < length; j++) {
            /* The scores of t with itself: t_i is query of row i and key of column i. */
            const float of_t = scores[i * length + j] + scores[j * length + i];
            const float of_z = attention[j * length + i];
            const float *restrict from = t + j * channels, *restrict d = dz + j * channels;
#pragma omp simd
            for (i64 c = 0; c < channels; c++) to[c] += of_t * from[c] + of_z * d[c];
        }
    }
}

/* One row: writes dp before its BatchNorm, adds its sums, writes dt and what the weights of
 * linear_glu and concat_fc get. */
static void row_backward(const Step *s, i64 row, const float *restrict g, const float *restrict p,
                         float *restrict dp, float *restrict dt, float *restrict sum,
                         float *restrict product, double *d_gamma) {
    const Norm *norm = &s->norm;
    const i64 channels = s->channels, gates = channels, joints = 2 * channels;
    const float of_sum = 2.0f * s->gamma[SUM];
    const float of_glu = s->gamma[GLU], of_concat = s->gamma[CONCAT];
    const uint32_t own = row_seed(s->drop.seed, row);
    const uint32_t threshold = s->drop.threshold;
    const float factor = s->drop.factor;
    /* Behind struct pointers GCC would not vectorise this loop. */
    const float *restrict mean = norm->mean, *restrict rstd = norm->rstd;
    const float *restrict weight = norm->weight, *restrict bias = norm->bias;
    float glu = 0.0f, concat = 0.0f;
#pragma omp simd reduction(+ : glu, concat)
    for (i64 c = 0; c < channels; c++) {
        const uint32_t bits = random_bits(own, c);
        const float kept = g[c] * keep(bits, 0, threshold, factor);
        const float kept_joint = g[c] * keep(bits, 1, threshold, factor);
        const float normal_value = (p[c] - mean[c]) * rstd[c];
        const float normal_gate = (p[gates + c] - mean[gates + c]) * rstd[gates + c];
        const float normal_joint = (p[joints + c] - mean[joints + c]) * rstd[joints + c];
        const float value = normal_value * weight[c] + bias[c];
        const float open = sigmoid(normal_gate * weight[gates + c] + bias[gates + c]);
        const float joint = normal_joint * weight[joints + c] + bias[joints + c];
        const float passed = joint <= 0.0f ? 0.0f : kept_joint;
        const float d_value = of_glu * kept * open;
        const float d_gate = d_value * value * (1.0f - open);
        const float d_joint = of_concat * passed;
        glu += kept * value * open;
        concat += passed * joint;
        dt[c] = of_sum * g[c];
        dp[c] = d_value;
        dp[gates + c] = d_gate;
        dp[joints + c] = d_joint;
        sum[c] += d_value;
        sum[gates + c] += d_gate;
        sum[joints + c] += d_joint;
        product[c] += d_value * normal_value;
        product[gates + c] += d_gate * normal_gate;
        product[joints + c] += d_joint * normal_joint;
    }
    d_gamma[GLU] += glu;
    d_gamma[CONCAT] += concat;
}

/* partial is (chunks, 2*L*C + 6*C): gradients of the LayerNorm's weight and bias, then of the
 * BatchNorm's; the first chunk holds the sums in the end. d_gamma is (chunks, 5), still to be
 * summed. scratch is (threads, 2*L*C + L*L). dt lacks what comes through the products. */
void mixture_backward(i64 batch, i64 length, i64 channels, i64 chunks, const float *g,
                      const float *t, const float *products, const float *gamma,
                      float *norm_weight, float *norm_bias, float *norm_mean, float *norm_rstd,
                      const float *weight, const float *bias, i64 threshold, float factor,
                      i64 seed, i64 attention_threshold, float attention_factor,
                      const float *attention, const float *mean, const float *rstd, float *scratch,
                      float *dt, float *dp, float *partial, double *d_gamma, i64 threads) {
    const i64 size = length * channels, wide = 3 * channels, width = 2 * size + 2 * wide;
    const i64 rows = batch * length;
    const float share = 1.0f / (float)rows;
    const Step step = {
        batch,
        length,
        channels,
        gamma,
        {norm_weight, norm_bias, NULL, NULL, 0.0f, 0.0f, norm_mean, norm_rstd},
        weight,
        bias,
        0.0f,
        {(uint32_t)threshold, factor, (uint64_t)seed},
        {(uint32_t)attention_threshold, attention_factor, (uint64_t)seed}};
    const Step *const s = &step;
    const Norm *norm = &s->norm;
    float *const d_weight = partial + 2 * size, *const d_bias = d_weight + wide;
#pragma omp parallel num_threads((int)threads)
    {
        float *attended = scratch + thread_number() * (2 * size + length * length);
        float *dz = attended + size, *scores = dz + size;
#pragma omp for
        for (i64 k = 0; k < chunks; k++) {
            float *const layer = partial + k * width;
            float *const product = layer + 2 * size, *const sum = product + wide;
            double *own = d_gamma + k * OPERATIONS;
            memset(layer, 0, sizeof(float) * (size_t)width);
            memset(own, 0, sizeof(double) * OPERATIONS);
            for (i64 b = k * s->batch / chunks; b < (k + 1) * s->batch / chunks; b++) {
                const float *own_g = g + b * size, *own_t = t + b * size;
                const float *weights = attention + b * length * length;
                for (i64 r = b * length; r < (b + 1) * length; r++)
                    row_backward(s, r, g + r * channels, products + r * wide, dp + r * wide,
                                 dt + r * channels, sum, product, own);
                own[SUM] += 2.0f * dot(own_g, own_t, size);
                attend(s, b, own_t, weights, attended);
                layer_backward(own_g, attended, s->weight, size, mean[b], rstd[b], layer,
                               layer + size, dz);
                for (i64 l = 0; l < length; l++) {
                    const uint32_t bits = row_seed(s->drop.seed, b * length + l);
                    float *restrict to = dz + l * channels;
#pragma omp simd
                    for (i64 c = 0; c < channels; c++)
                        to[c] *= s->gamma[ATTENTION] * keep(random_bits(bits, c), 2,
                                                            s->attention_drop.threshold,
                                                            s->attention_drop.factor);
                }
                attention_backward(s, own_t, weights, dz, scores, dt + b * size);
            }
        }
        reduce_chunks(partial, chunks, width);
#pragma omp single
        {
            const float weight = s->gamma[ATTENTION];
            d_gamma[ATTENTION] = dot(partial, s->weight, size) + dot(partial + size, s->bias, size);
            for (i64 i = 0; i < 2 * size; i++) partial[i] *= weight;
        }
#pragma omp for
        for (i64 r = 0; r < rows; r++) {
            const float *restrict p = products + r * wide;
            float *restrict to = dp + r * wide;
#pragma omp simd
            for (i64 c = 0; c < wide; c++)
                to[c] = norm->rstd[c] * norm->weight[c] *
                        (to[c] - d_bias[c] * share -
                         normal(norm, p, c) * d_weight[c] * share);
        }
    }
}
