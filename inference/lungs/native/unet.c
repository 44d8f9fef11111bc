/* The U-Net of this project on one slice and one thread, for the instruction sets of x86-64 servers.

   Built by setup.py where there is a C compiler; without it the node computes the same through other back ends.
   `inference/lungs/native/__init__.py` loads it, `inference/lungs/engine_native.py` packs the weights. */

#define Py_LIMITED_API 0x030B0000 /* one build for Python 3.11 and newer */
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LAYERS 18
#define LEVELS 5

/* Of the functions and structures below; raised with them, and in __init__.py: an older build is not called then. */
#define VERSION 1

int unet_version(void)
{
    return VERSION;
}

/* Tiles that one block of a convolution works on, and tiles of a row transformed together: what the caches hold. */
#define TILES 24
#define RUN 12

/* Floats from one row to the next, for blocks of LANES channels. One column more than the image has: rows a power of two
   apart would share the same few sets of the cache. */
#define PITCH(w) (((size_t)(w) + 1) * LANES)

struct size {
    int h, w;
};

/* What a layer reads: activations, and the normalisation that they still need; none where scale is NULL. */
struct input {
    const float *data, *scale, *shift;
    int blocks;
};

/* gamma and beta normalise by the slice's own statistics, or are scale and shift themselves. */
struct layer {
    const void *weights;
    const float *gamma, *beta;
    float eps;
    int32_t inputs, outputs, per_slice;
};

struct unet {
    struct layer layers[LAYERS];
    const float *last_weights;
    float last_bias;
};

static const int CHANNELS[LEVELS] = {16, 32, 64, 128, 128};

static size_t plane(struct size size, int channels)
{
    return (size_t)channels * size.h * (size.w + 1);
}

static size_t most(size_t a, size_t b)
{
    return a > b ? a : b;
}

#define TRANSFORMED ((size_t)36 * TILES * 256)
#define PRODUCTS ((size_t)36 * TILES * 128)

/* The largest of what passes between two convolutions: no level widens to more channels than its own. */
static size_t between(int h, int w)
{
    size_t result = 0;
    for (int i = 0; i < LEVELS; i++) result = most(result, plane((struct size){h >> i, w >> i}, CHANNELS[i]));
    return result;
}

/* Floats of working memory that one slice needs. */
size_t unet_workspace(int h, int w)
{
    size_t floats = 2 * between(h, w) + TRANSFORMED + PRODUCTS + (size_t)(h + 2) * (w + 2) + 16 + (size_t)w * 32 + 16;
    for (int i = 0; i < LEVELS; i++) floats += plane((struct size){h >> i, w >> i}, CHANNELS[i]);
    return floats + 2 * LAYERS * 128;
}

#if defined(__x86_64__)

#include <immintrin.h>

typedef float V8 __attribute__((vector_size(32)));
typedef float V16 __attribute__((vector_size(64)));

/* Two bfloat16 numbers, read as one. */
typedef int32_t PAIR __attribute__((may_alias));

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAME(f) f##_avx2
#define LANES 8
#define VECTOR V8
#define MAX(a, b) ((VECTOR)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define ROWS1 12
#define ROWS2 6
#include "formats.h"
#include "unet_kernel.h"
#include "unet_slice.h"
#undef NAME
#undef LANES
#undef VECTOR
#undef MAX
#undef ROWS1
#undef ROWS2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#define NAME(f) f##_avx512
#define LANES 16
#define VECTOR V16
#define MAX(a, b) ((VECTOR)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define ROWS1 24
#define ROWS2 12
#include "formats.h"
#include "unet_kernel.h"
#include "unet_slice.h"
#undef NAME
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#define NAME(f) f##_bf16
#define BFLOAT16
#include "formats.h"
#include "unet_kernel.h"
#include "unet_slice.h"
#pragma GCC pop_options

/* Which kinds this processor runs: bit 0 AVX2, bit 1 AVX-512, bit 2 AVX-512 with bfloat16 products. */
int unet_kinds(void)
{
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx2 | (avx2 && avx512) << 1 | (avx2 && avx512 && __builtin_cpu_supports("avx512bf16")) << 2;
}

/* The mask of one slice, 1 in the lung. kind: number of a bit of unet_kinds. workspace: on a 64-byte boundary.
   0, or 1 for a kind that this processor does not run, 2 for a size that four halvings do not divide. */
int unet_mask(int kind, const struct unet *net, const uint8_t *grey, int h, int w, uint8_t *mask, float *workspace)
{
    if (kind < 0 || kind > 2 || !(unet_kinds() & 1 << kind)) return 1;
    if (h < 16 || w < 16 || h % 16 || w % 16) return 2;
    if (kind == 0) slice_avx2(net, grey, h, w, mask, workspace);
    if (kind == 1) slice_avx512(net, grey, h, w, mask, workspace);
    if (kind == 2) slice_bf16(net, grey, h, w, mask, workspace);
    return 0;
}

#else

int unet_kinds(void)
{
    return 0;
}

int unet_mask(int kind, const struct unet *net, const uint8_t *grey, int h, int w, uint8_t *mask, float *workspace)
{
    return 1;
}

#endif

/* Importable, so that packaging finds it; the functions above are called through ctypes. */
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_unet", NULL, 0, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__unet(void)
{
    return PyModule_Create(&module);
}
