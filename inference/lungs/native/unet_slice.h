/* The layers in their order, for one slice; included after unet_kernel.h. */

/* Working memory, cut from one piece; every part begins on a 64-byte boundary. */
struct NAME(memory) {
    float *next, *grey, *rows, *one, *other, *levels[LEVELS], *scale[LAYERS], *shift[LAYERS], *products;
    ELEMENT *transformed;
};

static float *NAME(take)(struct NAME(memory) *memory, size_t floats)
{
    float *taken = memory->next;
    memory->next += (floats + 15) / 16 * 16;
    return taken;
}

static struct NAME(memory) NAME(divide)(float *workspace, int h, int w)
{
    struct NAME(memory) memory = {.next = workspace};
    memory.grey = NAME(take)(&memory, (size_t)(h + 2) * (w + 2));
    memory.rows = NAME(take)(&memory, (size_t)w * 32);
    memory.one = NAME(take)(&memory, between(h, w));
    memory.other = NAME(take)(&memory, between(h, w));
    for (int i = 0; i < LEVELS; i++)
        memory.levels[i] = NAME(take)(&memory, plane((struct size){h >> i, w >> i}, CHANNELS[i]));
    for (int i = 0; i < LAYERS; i++) {
        memory.scale[i] = NAME(take)(&memory, 128);
        memory.shift[i] = NAME(take)(&memory, 128);
    }
    memory.transformed = (ELEMENT *)NAME(take)(&memory, TRANSFORMED);
    memory.products = NAME(take)(&memory, PRODUCTS);
    return memory;
}

/* Scale and shift that normalise what a layer left, and that input itself. sums: of values and squares, by channel. */
static struct input NAME(normalised)(const struct unet *net, int number, const double *sums, struct size size,
                                     const float *data, struct NAME(memory) *memory)
{
    const struct layer *layer = net->layers + number;
    float *scale = memory->scale[number], *shift = memory->shift[number];
    for (int c = 0; c < layer->outputs; c++) {
        double factor = layer->gamma[c], mean = 0;
        if (layer->per_slice) {
            const double count = (double)size.h * size.w;
            mean = sums[2 * c] / count;
            const double variance = sums[2 * c + 1] / count - mean * mean;
            factor /= __builtin_sqrt((variance > 0 ? variance : 0) + layer->eps);
        }
        scale[c] = (float)factor;
        shift[c] = (float)(layer->beta[c] - mean * factor);
    }
    return (struct input){data, scale, shift, layer->outputs / LANES};
}

/* One convolution with its normalisation. number: of the layer, in the order of the network. */
static struct input NAME(layer)(const struct unet *net, int number, const struct input *in, int inputs,
                                struct size size, float *out, struct NAME(memory) *memory)
{
    double sums[2 * 128] = {0};
    if (number == 0)
        NAME(convolve_grey)(memory->grey, size, net->layers, out, sums);
    else
        NAME(convolve)(in, inputs, size, net->layers + number, out, sums, memory->transformed, memory->products);
    return NAME(normalised)(net, number, sums, size, out, memory);
}

static void NAME(slice)(const struct unet *net, const uint8_t *grey, int h, int w, uint8_t *mask, float *workspace)
{
    struct NAME(memory) memory = NAME(divide)(workspace, h, w);
    memset(memory.grey, 0, (size_t)(h + 2) * (w + 2) * sizeof(float));
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++)
            memory.grey[(size_t)(y + 1) * (w + 2) + x + 1] = (float)grey[(size_t)y * w + x] / 255.0f;

    struct input levels[LEVELS], x = {0};
    int number = 0;
    for (int i = 0; i < LEVELS; i++) {
        const struct size size = {h >> i, w >> i};
        if (i > 0) {
            NAME(pool)(levels + i - 1, (struct size){h >> (i - 1), w >> (i - 1)}, memory.one);
            x = (struct input){memory.one, NULL, NULL, levels[i - 1].blocks};
        }
        x = NAME(layer)(net, number++, &x, 1, size, memory.other, &memory);
        levels[i] = NAME(layer)(net, number++, &x, 1, size, memory.levels[i], &memory);
    }
    x = levels[LEVELS - 1];
    for (int i = LEVELS - 2; i >= 0; i--) {
        const struct size size = {h >> i, w >> i};
        NAME(enlarge)(&x, (struct size){h >> (i + 1), w >> (i + 1)}, memory.other, memory.rows);
        const struct input both[2] = {levels[i], {memory.other, NULL, NULL, x.blocks}};
        x = NAME(layer)(net, number++, both, 2, size, memory.one, &memory);
        /* The features of the way down were read for the last time: their memory takes the result. */
        x = NAME(layer)(net, number++, &x, 1, size, memory.levels[i], &memory);
    }
    NAME(decide)(&x, (struct size){h, w}, net->last_weights, net->last_bias, mask);
}
