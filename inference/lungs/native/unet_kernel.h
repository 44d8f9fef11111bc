/* One slice through the U-Net; included once per instruction set and number format, see unet.c and formats.h.

   Activations are blocks of as many channels as a vector has lanes: [block][row][column][LANES] float32, one column more
   per row than the image has (rows a power of two apart would share the same cache sets). A convolution leaves its raw
   sums; whoever reads them applies normalisation and ReLU on the way, so that no pass over memory is spent on them.

   3x3 convolutions by Winograd's F(4x4, 3x3): 36 products for 16 outputs instead of 144
   (Lavin and Gray 2015, Fast Algorithms for Convolutional Neural Networks). */

#define RELU(x) MAX(x, (VECTOR){0})

static inline VECTOR NAME(load)(const float *p) { return *(const VECTOR *)p; }
static inline void NAME(store)(float *p, VECTOR v) { *(VECTOR *)p = v; }

static inline VECTOR NAME(activate)(VECTOR x, const struct input *in, VECTOR scale, VECTOR shift)
{
    return in->scale ? RELU(x * scale + shift) : x;
}

/* B^T d: one column of 6 pixels of a tile. */
static inline void NAME(forward)(const VECTOR d[6], VECTOR *o, int step)
{
    VECTOR even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1];
    VECTOR even2 = d[4] - d[2], odd2 = 2.0f * (d[3] - d[1]);
    o[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    o[step] = even + odd;
    o[2 * step] = even - odd;
    o[3 * step] = even2 + odd2;
    o[4 * step] = even2 - odd2;
    o[5 * step] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

/* A^T m: 6 products to 4 sums. */
static inline void NAME(backward)(const VECTOR m[6], VECTOR *o, int step)
{
    VECTOR s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
    o[0] = m[0] + s1 + s2;
    o[step] = d1 + 2.0f * d2;
    o[2 * step] = s1 + 4.0f * s2;
    o[3 * step] = d1 + 8.0f * d2 + m[5];
}

/* Transformed tiles of one block of channels, `count` tiles from `first` on, to v[36][...][TILES][LANES]. */
static void NAME(tiles_in)(const struct input *in, int block, struct size size, int first, int count,
                           ELEMENT *v, size_t v_step)
{
    const ptrdiff_t pitch = PITCH(size.w);
    const int across = (size.w + 3) / 4;
    const float *source = in->data + pitch * size.h * block;
    VECTOR scale = {0}, shift = {0}, columns[(4 * RUN + 2) * 6];
    if (in->scale) {
        scale = NAME(load)(in->scale + block * LANES);
        shift = NAME(load)(in->shift + block * LANES);
    }
    for (int t = 0, run; t < count; t += run) {
        const int ty = (first + t) / across, tx = (first + t) % across, y0 = 4 * ty - 1, x0 = 4 * tx - 1;
        run = count - t < across - tx ? count - t : across - tx;
        run = run < RUN ? run : RUN;
        const int inside = y0 >= 0 && y0 + 5 < size.h;
        for (int c = 0; c < 4 * run + 2; c++) {
            VECTOR d[6];
            const int x = x0 + c;
            if (x < 0 || x >= size.w) {
                for (int r = 0; r < 6; r++) columns[c * 6 + r] = (VECTOR){0};
                continue;
            }
            const float *p = source + y0 * pitch + x * LANES;
            if (inside)
                for (int r = 0; r < 6; r++) d[r] = NAME(activate)(NAME(load)(p + r * pitch), in, scale, shift);
            else
                for (int r = 0; r < 6; r++)
                    d[r] = y0 + r < 0 || y0 + r >= size.h ? (VECTOR){0}
                                                          : NAME(activate)(NAME(load)(p + r * pitch), in, scale, shift);
            NAME(forward)(d, columns + c * 6, 1);
        }
        for (int i = 0; i < run; i++)
            for (int r = 0; r < 6; r++) {
                VECTOR d[6], o[6];
                for (int c = 0; c < 6; c++) d[c] = columns[(4 * i + c) * 6 + r];
                NAME(forward)(d, o, 1);
                for (int c = 0; c < 6; c++) KEEP(v + (r * 6 + c) * v_step + (t + i) * LANES, o[c]);
            }
    }
}

/* m[tile][LANES] = sum over k of v[k / LANES][tile][k % LANES] * u[k][LANES], for ROWS1 tiles. */
static inline void NAME(product1)(const ELEMENT *v, const ELEMENT *u, int blocks, float *m)
{
    VECTOR a[ROWS1];
    for (int t = 0; t < ROWS1; t++) a[t] = (VECTOR){0};
    for (int b = 0; b < blocks; b++, v += TILES * LANES)
        for (int k = 0; k < LANES; k += TOGETHER, u += LANES * TOGETHER) {
            const WEIGHTS w = *(const WEIGHTS *)u;
#pragma GCC unroll 24
            for (int t = 0; t < ROWS1; t++) a[t] = MULTIPLY(a[t], w, VALUE(v + t * LANES + k));
        }
    for (int t = 0; t < ROWS1; t++) NAME(store)(m + t * LANES, a[t]);
}

/* The same for two blocks of outputs, u[k][2 LANES], and ROWS2 tiles; the second block goes TILES tiles further. */
static inline void NAME(product2)(const ELEMENT *v, const ELEMENT *u, int blocks, float *m)
{
    VECTOR a[ROWS2], b[ROWS2];
    for (int t = 0; t < ROWS2; t++) a[t] = b[t] = (VECTOR){0};
    for (int n = 0; n < blocks; n++, v += TILES * LANES)
        for (int k = 0; k < LANES; k += TOGETHER, u += 2 * LANES * TOGETHER) {
            const WEIGHTS w0 = *(const WEIGHTS *)u, w1 = *(const WEIGHTS *)(u + LANES * TOGETHER);
#pragma GCC unroll 12
            for (int t = 0; t < ROWS2; t++) {
                const SPREAD x = VALUE(v + t * LANES + k);
                a[t] = MULTIPLY(a[t], w0, x);
                b[t] = MULTIPLY(b[t], w1, x);
            }
        }
    for (int t = 0; t < ROWS2; t++) {
        NAME(store)(m + t * LANES, a[t]);
        NAME(store)(m + (TILES + t) * LANES, b[t]);
    }
}

/* All 36 products of a block of tiles: m[36][out block][TILES][LANES]. */
static void NAME(products)(const ELEMENT *v, const ELEMENT *u, int in_blocks, int out_blocks, int count, float *m)
{
    for (int p = 0; p < 36; p++, v += in_blocks * TILES * LANES, m += out_blocks * TILES * LANES) {
        if (out_blocks == 1) {
            for (int t = 0; t < count; t += ROWS1) NAME(product1)(v + t * LANES, u, in_blocks, m + t * LANES);
            u += in_blocks * LANES * LANES;
        }
        for (int n = 0; n + 1 < out_blocks; n += 2, u += in_blocks * LANES * 2 * LANES)
            for (int t = 0; t < count; t += ROWS2)
                NAME(product2)(v + t * LANES, u, in_blocks, m + (n * TILES + t) * LANES);
    }
}

/* Products back to pixels of one block of channels; their sums and sums of squares are added to the statistics. */
static void NAME(tiles_out)(const float *m, size_t m_step, int block, struct size size, int first, int count,
                            float *out, double *sums)
{
    const ptrdiff_t pitch = PITCH(size.w);
    const int across = (size.w + 3) / 4;
    float *target = out + pitch * size.h * block;
    VECTOR total = {0}, squares = {0};
    for (int t = 0; t < count; t++) {
        const int y0 = (first + t) / across * 4, x0 = (first + t) % across * 4;
        VECTOR half[4 * 6], o[16];
        for (int c = 0; c < 6; c++) {
            VECTOR d[6];
            for (int r = 0; r < 6; r++) d[r] = NAME(load)(m + (r * 6 + c) * m_step + t * LANES);
            NAME(backward)(d, half + c, 6);
        }
        for (int r = 0; r < 4; r++) NAME(backward)(half + r * 6, o + r * 4, 1);
        const int rows = size.h - y0 < 4 ? size.h - y0 : 4, cols = size.w - x0 < 4 ? size.w - x0 : 4;
        float *p = target + y0 * pitch + x0 * LANES;
        if (rows == 4 && cols == 4)
            for (int i = 0; i < 16; i++) {
                total += o[i];
                squares += o[i] * o[i];
                NAME(store)(p + i / 4 * pitch + i % 4 * LANES, o[i]);
            }
        else
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < cols; c++) {
                    total += o[r * 4 + c];
                    squares += o[r * 4 + c] * o[r * 4 + c];
                    NAME(store)(p + r * pitch + c * LANES, o[r * 4 + c]);
                }
    }
    for (int i = 0; i < LANES; i++) {
        sums[(block * LANES + i) * 2] += total[i];
        sums[(block * LANES + i) * 2 + 1] += squares[i];
    }
}

/* A 3x3 convolution of one or two inputs, channels one after the other. v, m: working memory. */
static void NAME(convolve)(const struct input *in, int inputs, struct size size, const struct layer *layer, float *out,
                           double *sums, ELEMENT *v, float *m)
{
    const int tiles = ((size.w + 3) / 4) * ((size.h + 3) / 4);
    const int in_blocks = layer->inputs / LANES, out_blocks = layer->outputs / LANES;
    for (int first = 0; first < tiles; first += TILES) {
        const int count = tiles - first < TILES ? tiles - first : TILES;
        int k = 0;
        for (int i = 0; i < inputs; i++)
            for (int b = 0; b < in[i].blocks; b++, k++)
                NAME(tiles_in)(in + i, b, size, first, count, v + k * TILES * LANES,
                               (size_t)in_blocks * TILES * LANES);
        NAME(products)(v, layer->weights, in_blocks, out_blocks, count, m);
        for (int n = 0; n < out_blocks; n++)
            NAME(tiles_out)(m + n * TILES * LANES, (size_t)out_blocks * TILES * LANES, n, size, first, count, out, sums);
    }
}

/* The first convolution: one grey value in, 16 channels out, weights [9][16]. grey: with a border of one 0. */
static void NAME(convolve_grey)(const float *grey, struct size size, const struct layer *layer, float *out, double *sums)
{
    const size_t pitch = PITCH(size.w);
    for (int b = 0; b < 16 / LANES; b++, out += pitch * size.h) {
        const float *weights = (const float *)layer->weights + b * LANES;
        VECTOR w[9];
        for (int k = 0; k < 9; k++) w[k] = NAME(load)(weights + k * 16);
        for (int y = 0; y < size.h; y++) {
            VECTOR total = {0}, squares = {0};
            for (int x = 0; x < size.w; x++) {
                const float *g = grey + (size_t)y * (size.w + 2) + x;
                VECTOR a = w[0] * g[0];
                for (int k = 1; k < 9; k++) a += w[k] * g[k / 3 * (size.w + 2) + k % 3];
                total += a;
                squares += a * a;
                NAME(store)(out + y * pitch + x * LANES, a);
            }
            for (int i = 0; i < LANES; i++) {
                sums[(b * LANES + i) * 2] += total[i];
                sums[(b * LANES + i) * 2 + 1] += squares[i];
            }
        }
    }
}

/* Maximum of 2 x 2 pixels, after normalisation and ReLU. */
static void NAME(pool)(const struct input *in, struct size size, float *out)
{
    const size_t pitch = PITCH(size.w), half = PITCH(size.w / 2);
    for (int b = 0; b < in->blocks; b++) {
        VECTOR scale = NAME(load)(in->scale + b * LANES), shift = NAME(load)(in->shift + b * LANES);
        for (int y = 0; y < size.h / 2; y++) {
            const float *p = in->data + ((size_t)b * size.h + 2 * y) * pitch;
            float *o = out + ((size_t)b * (size.h / 2) + y) * half;
            for (int x = 0; x < size.w / 2; x++, p += 2 * LANES) {
                VECTOR top = MAX(NAME(load)(p) * scale + shift, NAME(load)(p + LANES) * scale + shift);
                VECTOR low = MAX(NAME(load)(p + pitch) * scale + shift, NAME(load)(p + pitch + LANES) * scale + shift);
                NAME(store)(o + x * LANES, RELU(MAX(top, low)));
            }
        }
    }
}

/* One row, normalised, rectified and twice as wide. */
static void NAME(wider)(const float *row, int w, VECTOR scale, VECTOR shift, float *out)
{
    const float step = w > 1 ? (float)(w - 1) / (float)(2 * w - 1) : 0.0f;
    for (int x = 0; x < 2 * w; x++) {
        const float at = step * (float)x;
        const int left = (int)at, right = left + 1 < w ? left + 1 : left;
        const float share = at - (float)left;
        VECTOR l = RELU(NAME(load)(row + left * LANES) * scale + shift), r = RELU(NAME(load)(row + right * LANES) * scale + shift);
        NAME(store)(out + x * LANES, (1.0f - share) * l + share * r);
    }
}

/* Twice the height and width, bilinear, corners on corners. rows: two rows of the result. */
static void NAME(enlarge)(const struct input *in, struct size size, float *out, float *rows)
{
    const size_t pitch = PITCH(size.w), wide = 2 * (size_t)size.w, wide_pitch = PITCH(wide);
    const float step = size.h > 1 ? (float)(size.h - 1) / (float)(2 * size.h - 1) : 0.0f;
    for (int b = 0; b < in->blocks; b++) {
        VECTOR scale = NAME(load)(in->scale + b * LANES), shift = NAME(load)(in->shift + b * LANES);
        const float *source = in->data + pitch * size.h * b;
        float *held[2] = {rows, rows + wide * LANES};
        int has[2] = {-1, -1};
        for (int y = 0; y < 2 * size.h; y++) {
            const float at = step * (float)y;
            const int top = (int)at, low = top + 1 < size.h ? top + 1 : top;
            const float share = at - (float)top;
            for (int i = top; i <= low; i++)
                if (has[i % 2] != i) {
                    NAME(wider)(source + i * pitch, size.w, scale, shift, held[i % 2]);
                    has[i % 2] = i;
                }
            float *o = out + ((size_t)b * 2 * size.h + y) * wide_pitch;
            const float *up = held[top % 2], *down = held[low % 2];
            for (size_t x = 0; x < wide * LANES; x += LANES)
                NAME(store)(o + x, (1.0f - share) * NAME(load)(up + x) + share * NAME(load)(down + x));
        }
    }
}

static inline float NAME(sum)(VECTOR v)
{
    float part[LANES];
    for (int i = 0; i < LANES; i++) part[i] = v[i];
    for (int n = LANES / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++) part[i] += part[i + n];
    return part[0];
}

/* The 1x1 convolution to one number: above 0 is lung. */
static void NAME(decide)(const struct input *in, struct size size, const float *weights, float bias, uint8_t *mask)
{
    const size_t pitch = PITCH(size.w);
    for (int y = 0; y < size.h; y++)
        for (int x = 0; x < size.w; x++) {
            VECTOR a = {0};
            for (int b = 0; b < in->blocks; b++) {
                const int c = b * LANES;
                const float *p = in->data + pitch * ((size_t)b * size.h + y) + (size_t)x * LANES;
                a += NAME(load)(weights + c) *
                     RELU(NAME(load)(p) * NAME(load)(in->scale + c) + NAME(load)(in->shift + c));
            }
            mask[(size_t)y * size.w + x] = NAME(sum)(a) + bias > 0;
        }
}

#undef RELU
